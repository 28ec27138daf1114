"""Artifacts as files: labels against an oracle of their own, official values, names, and folders that stay whole."""

import csv
import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from calseg_cli.artifacts import writer
from calseg_cli.artifacts.geometry import Geometry
from calseg_cli.artifacts.reader import open_artifact
from calseg_cli.artifacts.writer import ArtifactWriter
from calseg_cli.data.catalog import CITYSCAPES19
from calseg_cli.data.palettes import default_palette
from calseg_cli.engine.progress import Silent
from calseg_cli.errors import ArtifactError, ConfigError, DataError, StoppedError
from calseg_cli.stages import exporting
from calseg_cli.stages.exporting import ExportOptions, export_artifact
from calseg_cli.stages.whole_folder import MARK, whole_folder

NAMES = ("road", "car", "sky")
PALETTE = ((128, 64, 128), (0, 0, 142), (70, 130, 180))
PLACES = {
    "bonn/bonn_1": Geometry((24, 32), (48, 64), stride=4),
    "bonn/bonn_2": Geometry((17, 21), (33, 45), pad=(3, 3), stride=4),
    "ulm/ulm_1": Geometry((17, 17), (17, 17), stride=8, align_corners=True),
}
LABEL = np.array([[0, 1, 2, 255], [2, 2, 0, 255]], np.uint8)
CITYSCAPES_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)


def meta(names=NAMES, palette=PALETTE):
    classes = {"names": list(names), "palette": [list(color) for color in palette], "ignore": 255}
    return {"classes": classes, "protocol": {}}


def write_logits(path=Path("x.h5"), places=PLACES, names=NAMES, palette=PALETTE):
    with ArtifactWriter(path, "logits", meta=meta(names, palette), force=True) as writer:
        for number, (name, place) in enumerate(places.items()):
            grid = [-(-side // place.stride) for side in place.padded_hw]
            noise = np.random.default_rng(number).normal(0, 2, (len(names), *grid))
            writer.add_item(name, {"logits": noise.astype(np.float16)}, place)
    return path


def write_labels(path=Path("l.h5"), label=LABEL, names=NAMES, palette=PALETTE, **more):
    size = label.shape
    with ArtifactWriter(path, "pseudo_labels", meta=meta(names, palette), force=True) as writer:
        writer.add_item("a", {"label": label, **more}, Geometry(size, size))
    return path


def export(path=Path("x.h5"), folder=Path("out"), to="png", *, force=False, progress=None, **options):
    return export_artifact(
        path, folder, ExportOptions(to=to, **options), resolved=None, force=force, progress=progress or Silent()
    )


def pixels(path) -> np.ndarray:
    with Image.open(path) as image:
        return np.array(image)


def files(folder=Path("out")) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


# Label files


def test_labels_are_the_largest_logit_at_full_size():
    export(write_logits())
    with open_artifact(Path("x.h5")) as artifact:
        for name, place in PLACES.items():
            logits = torch.from_numpy(artifact.item(name, "logits")).double()[None]
            if place.pad != (0, 0):
                logits = F.interpolate(logits, size=place.padded_hw, mode="bilinear")
                logits = logits[..., : place.in_hw[0], : place.in_hw[1]]
            full = F.interpolate(logits, size=place.out_hw, mode="bilinear", align_corners=place.align_corners)[0]
            top = full.topk(2, dim=0).values
            clear = (top[0] - top[1] > 1e-4).numpy()
            found = pixels(f"out/{name}.png")
            assert found.shape == place.out_hw
            assert found.dtype == np.uint8
            assert clear.mean() > 0.99
            np.testing.assert_array_equal(found[clear], full.argmax(dim=0).numpy()[clear])


def test_of_equal_logits_the_first_class_wins():
    with ArtifactWriter(Path("x.h5"), "logits", meta=meta()) as writer:
        writer.add_item("a", {"logits": np.zeros((3, 2, 2), np.float32)}, Geometry((2, 2), (2, 2)))
    export()
    assert not pixels("out/a.png").any()


def test_label_files_are_grey_of_8_bits_and_nothing_else_lies_beside_them():
    export(write_logits())
    assert files() == [MARK, *(f"{name}.png" for name in PLACES)]
    with Image.open("out/ulm/ulm_1.png") as image:
        assert image.mode == "L"


def test_ignored_pixels_and_raw_values():
    export(write_labels())
    assert pixels("out/a.png").tolist() == LABEL.tolist()
    done = export(Path("l.h5"), ids="7,26,23", ignore_id=0, force=True)
    assert (done.values, done.ignore_id) == ({"road": 7, "car": 26, "sky": 23}, 0)
    assert pixels("out/a.png").tolist() == [[7, 26, 23, 0], [23, 23, 7, 0]]
    assert json.loads((Path("out") / MARK).read_text())["values"] == done.values


def test_official_cityscapes_values():
    label = np.array([[*range(19), 255]], np.uint8)
    write_labels(label=label, names=CITYSCAPES19, palette=default_palette(19))
    assert export(Path("l.h5"), ids="cityscapes", suffix="_labelIds").ignore_id == 0
    assert pixels("out/a_labelIds.png").tolist() == [[*CITYSCAPES_IDS, 0]]


def test_a_palette_colours_and_keeps_the_values():
    export(write_labels(), palette=True, ids="7,26,23", ignore_id=200)
    with Image.open("out/a.png") as image:
        assert image.mode == "P"
        assert np.array(image).tolist() == [[7, 26, 23, 200], [23, 23, 7, 200]]
        seen = np.array(image.convert("RGB"))
    assert seen[0].tolist() == [list(color) for color in (*PALETTE, (0, 0, 0))]


@pytest.mark.parametrize("ignore_id", [7, 256, -1])
def test_ignore_values_that_cannot_be(ignore_id):
    with pytest.raises(ConfigError, match=r"stands for ignored pixels and for 'road'|does not fit"):
        export(write_labels(), ids="7,26,23", ignore_id=ignore_id)
    assert not Path("out").exists()


def test_256_classes_fit_where_nothing_is_ignored():
    names = [f"c{number}" for number in range(256)]
    logits = np.zeros((256, 1, 2), np.float16)
    logits[255, 0, 1] = 1
    with ArtifactWriter(Path("x.h5"), "logits", meta=meta(names, default_palette(256))) as writer:
        writer.add_item("a", {"logits": logits}, Geometry((1, 2), (1, 2)))
    export()
    assert pixels("out/a.png").tolist() == [[0, 255]]
    with pytest.raises(ConfigError, match="255 stands for ignored pixels and for 'c255'"):
        export(ignore_id=255, force=True)


@pytest.fixture
def another_writer(monkeypatch):
    """One that does not refuse what every reader does."""
    monkeypatch.setattr(writer, "is_plain_id", lambda name: True)
    monkeypatch.setattr(writer, "check_values", lambda *arguments: None)


@pytest.mark.usefixtures("another_writer")
def test_a_label_of_no_class_is_refused():
    with pytest.raises(ArtifactError, match="has the class 7"):
        export(write_labels(label=np.array([[7]], np.uint8)))
    assert sorted(path.name for path in Path().iterdir()) == ["l.h5"]


# Arrays


def test_npz_holds_everything_of_an_image():
    export(write_logits(), to="npz")
    for name, place in PLACES.items():
        with np.load(f"out/{name}.npz", allow_pickle=False) as found, open_artifact(Path("x.h5")) as artifact:
            np.testing.assert_array_equal(found["logits"], artifact.item(name, "logits"), strict=True)
            assert Geometry.from_attrs(found) == place


def test_npy_comes_with_a_table():
    export(write_logits(), to="npy")
    assert files() == [MARK, *(f"{name}.npy" for name in PLACES if "bonn" in name), "classes.json", "index.csv",
                       "ulm/ulm_1.npy"]  # fmt: skip
    with Path("out/index.csv").open(newline="") as stream:
        rows = {row["id"]: row for row in csv.DictReader(stream)}
    assert list(rows) == list(PLACES)
    assert rows["bonn/bonn_2"] == {
        "id": "bonn/bonn_2", "file": "bonn/bonn_2.npy", "in_h": "17", "in_w": "21", "out_h": "33", "out_w": "45",
        "pad_bottom": "3", "pad_right": "3", "stride": "4", "align_corners": "0", "image_digest": "",
    }  # fmt: skip
    assert json.loads(Path("out/classes.json").read_text())["names"] == list(NAMES)
    assert np.load("out/ulm/ulm_1.npy").shape == (3, 3, 3)


def test_labels_as_npz_have_their_confidence():
    export(write_labels(confidence=np.full(LABEL.shape, 0.25, np.float16)), to="npz")
    with np.load("out/a.npz", allow_pickle=False) as found:
        assert found["label"].tolist() == LABEL.tolist()
        assert found["confidence"].dtype == np.float16


def test_the_same_export_has_the_same_bytes():
    write_logits()
    for to in ("npz", "npy", "png"):
        for folder in ("one", "two"):
            export(folder=Path(folder), to=to, force=True)
        assert files(Path("one")) == files(Path("two"))
        for name in files(Path("one")):
            assert Path("one", name).read_bytes() == Path("two", name).read_bytes()


# Names


def test_flat_names():
    export(write_logits(), flat=True, suffix="_labelIds")
    assert files() == [MARK, "bonn_1_labelIds.png", "bonn_2_labelIds.png", "ulm_1_labelIds.png"]
    place = Geometry((4, 4), (4, 4))
    write_logits(places={"a/1": place, "b/1": place})
    with pytest.raises(DataError, match=r"'a/1' and 'b/1' would both be 1\.png"):
        export(flat=True, force=True)


@pytest.mark.parametrize("name", ["../x", "/tmp/x", "a/../../x", "a//b", "a\\b", "a\nb", "C:x", ""])
@pytest.mark.usefixtures("another_writer")
def test_ids_that_leave_the_folder(name, tmp_path):
    place = Geometry((4, 4), (4, 4))
    write_logits(places={"fine": place, name: place})
    for to in ("npz", "npy", "png"):
        with pytest.raises((DataError, ArtifactError), match=r"cannot be an image's id|does not name a file below"):
            export(to=to)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.h5"]


@pytest.mark.parametrize("suffix", ["/../x", "/x", "\\x", "\0"])
def test_suffixes_that_leave_the_folder(suffix):
    with pytest.raises((DataError, ConfigError), match="suffix"):
        export(write_logits(), suffix=suffix)


# Options


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"to": "jpg"}, "--to jpg is not known"),
        ({"to": "npz", "ids": "train"}, "--ids has no effect with --to npz"),
        ({"to": "npy", "palette": True, "ignore_id": 3}, "--ignore-id, --palette has no effect"),
        ({"ids": "nonsense"}, "no value of 0 to 65535"),
    ],
)
def test_options_that_mean_nothing(options, told):
    with pytest.raises(ConfigError, match=told):
        export(write_logits(), **options)
    with pytest.raises(ConfigError, match="npy"):
        export(write_labels(), to="npy")


def test_other_kinds_are_refused():
    with ArtifactWriter(Path("m.h5"), "metrics", meta=meta()) as writer:
        writer.add_array("counts", np.zeros(3))
    with pytest.raises(ArtifactError, match="holds metrics"):
        export(Path("m.h5"))


# Folders


class Interrupting(Silent):
    """Sends SIGTERM to this process after the first item."""

    def advance(self, units=1, **facts):
        os.kill(os.getpid(), signal.SIGTERM)


def test_an_older_export_stays_until_the_new_one_is_whole(monkeypatch, tmp_path):
    export(write_logits(), to="npz")
    before = {name: Path("out", name).read_bytes() for name in files()}
    with pytest.raises(ArtifactError, match="out exists already"):
        export()
    with pytest.raises(StoppedError) as caught:
        export(force=True, progress=Interrupting())
    assert caught.value.exit_code == 143
    monkeypatch.setattr(exporting, "_describe", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        export(to="npy", force=True)
    assert {name: Path("out", name).read_bytes() for name in files()} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "x.h5"]
    export(force=True)
    assert "ulm/ulm_1.png" in files()
    assert "ulm/ulm_1.npz" not in files()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "x.h5"]


def test_an_empty_folder_is_nothing_to_lose():
    Path("out").mkdir()
    export(write_logits())
    assert len(files()) == 4


def test_what_a_killed_run_left_is_cleared():
    Path("out.partial").mkdir()
    (Path("out.partial") / f"{MARK}").write_text("{}")
    (Path("out.partial") / "a.png.partial").write_text("")
    export(write_logits())
    assert not Path("out.partial").exists()


def dataset() -> None:
    Path("out").mkdir()
    Image.fromarray(LABEL).save("out/precious.png")


def notes_in_an_export() -> None:
    export()
    Path("out/bonn/notes.txt").write_text("mine")


def linked() -> None:
    export(folder=Path("elsewhere"))
    Path("out").symlink_to("elsewhere")


def link_in_an_export() -> None:
    export()
    Path("mine").mkdir()
    Path("out/mine").symlink_to(Path("mine").absolute())


def plain_file() -> None:
    Path("out").write_text("mine")


def foreign_partial() -> None:
    Path("out.partial").mkdir()
    Path("out.partial/mine.txt").write_text("mine")


def foreign_aside() -> None:
    Path("out.replaced").mkdir()
    Path("out.replaced/mine.png").write_text("mine")


@pytest.mark.parametrize(
    "make", [dataset, notes_in_an_export, linked, link_in_an_export, plain_file, foreign_partial, foreign_aside]
)
def test_force_deletes_only_what_an_export_wrote(make, tmp_path):
    write_logits()
    make()
    before = sorted(str(path) for path in tmp_path.rglob("*"))
    with pytest.raises(ArtifactError, match=r"no folder that an export wrote|was written by no export"):
        export(force=True)
    assert sorted(str(path) for path in tmp_path.rglob("*")) == before


@pytest.mark.parametrize("folder", [".", "..", "/"])
def test_force_never_replaces_where_one_stands(folder, tmp_path):
    write_logits()
    (tmp_path.parent / "beside").touch()
    with pytest.raises(ArtifactError):
        export(folder=Path(folder), force=True)
    assert Path("x.h5").exists()


def test_two_exports_at_once():
    write_logits()
    with (
        whole_folder(Path("out"), force=False, mark={}, endings=[".png"]),
        pytest.raises(ArtifactError, match="another calseg works on"),
    ):
        export(force=True)
    assert files() == [MARK]


def test_a_rename_that_fails_puts_the_old_folder_back(monkeypatch):
    export(write_logits())
    rename = Path.rename

    def fail(self, target):
        if self.name == "out.partial":
            raise OSError(28, "No space left on device")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(StoppedError, match="no space left"):
        export(to="npz", force=True)
    assert "ulm/ulm_1.png" in files()
