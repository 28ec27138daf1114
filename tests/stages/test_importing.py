"""Other tools' files become artifacts: exports come back exactly, mistakes are named, nothing is guessed."""

import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from calseg_cli.artifacts.foreign_values import Place
from calseg_cli.artifacts.geometry import Geometry
from calseg_cli.artifacts.provenance import file_digest
from calseg_cli.artifacts.reader import open_artifact
from calseg_cli.artifacts.verify import verify
from calseg_cli.artifacts.writer import ArtifactWriter
from calseg_cli.config import load_config
from calseg_cli.data.palettes import default_palette
from calseg_cli.engine.progress import Silent
from calseg_cli.errors import ArtifactError, ConfigError, DataError, StoppedError
from calseg_cli.stages.exporting import ExportOptions, export_artifact
from calseg_cli.stages.import_plan import ImportOptions
from calseg_cli.stages.importing import import_artifact

NAMES = ("road", "car", "sky")
SIZES = {"a": (12, 16), "b/c": (9, 7), "b/d": (20, 13)}
DIGEST = "sha256:" + "5e" * 32
QUICK = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
WORDS = st.text(st.sampled_from("abcü 0_-."), min_size=1, max_size=6).filter(lambda word: word.strip(" .") == word)


def logits_of(name: str, classes: int = 3, dtype=np.float32):
    height, width = (-(-side // 4) for side in SIZES[name])
    return np.random.default_rng(len(name)).normal(0, 2, (classes, height, width)).astype(dtype)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working directory with a configuration, target test images, and a folder of logits of their ids."""
    for name, (height, width) in SIZES.items():
        path = tmp_path / "target" / "test" / "images" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((height, width, 3), len(name), np.uint8)).save(path)
        array = tmp_path / "logits" / f"{name}.npy"
        array.parent.mkdir(parents=True, exist_ok=True)
        np.save(array, logits_of(name))
    text = "source: {root: source, classes: [road, car, sky]}\ntarget: {root: target}\n"
    (tmp_path / "calseg.yaml").write_text(text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def bring(source, *, config=True, target="x.h5", resume=False, force=False, progress=None, **options):
    resolved = load_config(Path("calseg.yaml"), environ={}) if config else None
    return import_artifact(
        resolved, Path(source), Path(target), ImportOptions(**options),
        resume=resume, force=force, progress=progress or Silent(),
    )  # fmt: skip


def plain(source, **options):
    """An import without a configuration."""
    return bring(source, config=False, **{"classes": "road,car,sky", **options})


def refused(error, match, source="logits", **options):
    with pytest.raises(error, match=match) as caught:
        bring(source, **options)
    assert caught.value.hint
    assert not Path("x.h5").exists()
    assert not Path("x.h5.partial").exists()
    return caught.value


# Round trips


@st.composite
def contents(draw):
    """Items of an artifact of logits: ids, arrays, geometry, digests; small and large, even and odd."""
    classes = draw(st.integers(1, 150))
    items = {}
    for name in draw(st.lists(st.lists(WORDS, min_size=1, max_size=3).map("/".join), max_size=3, unique=True)):
        if any(other.startswith(f"{name}/") or name.startswith(f"{other}/") for other in items):
            continue
        height, width, stride = draw(st.integers(1, 70)), draw(st.integers(1, 70)), draw(st.integers(1, 9))
        pad = (draw(st.integers(0, 5)), draw(st.integers(0, 5)))
        out = (draw(st.integers(1, 200)), draw(st.integers(1, 200)))
        grid = -(-(height + pad[0]) // stride), -(-(width + pad[1]) // stride)
        dtype = draw(st.sampled_from([np.float16, np.float32]))
        noise = np.random.default_rng(draw(st.integers(0, 99))).normal(0, 30, (classes, *grid)).astype(dtype)
        geometry = Geometry((height, width), out, pad, stride, draw(st.booleans()))
        items[name] = ({"logits": noise}, geometry, draw(st.sampled_from(["", DIGEST])))
    return classes, items


@st.composite
def label_contents(draw):
    """The same of pseudo-labels, with and without confidence."""
    classes, items = draw(st.integers(1, 254)), {}
    kept = draw(st.sampled_from([None, np.uint8, np.float16]))
    for name in draw(st.lists(WORDS, max_size=3, unique=True)):
        size = draw(arrays.array_shapes(min_dims=2, max_dims=2, max_side=40))
        label = draw(arrays.arrays(np.uint8, size, elements=st.sampled_from([0, classes - 1, 255])))
        part = {"label": label}
        if kept is not None:
            noise = np.random.default_rng(0).random(size)
            part["confidence"] = noise.astype(kept) if kept == np.float16 else (noise * 255).astype(np.uint8)
        items[name] = (part, Geometry(size, size), draw(st.sampled_from(["", DIGEST])))
    return classes, items


def write(path: Path, kind: str, classes: int, items) -> None:
    names = [f"class {number}" for number in range(classes)]
    palette = [list(color) for color in default_palette(classes)]
    meta = {"classes": {"names": names, "palette": palette, "ignore": 255}, "protocol": {}}
    with ArtifactWriter(path, kind, meta=meta, ids=list(items), force=True) as writer:
        for name, (part, geometry, digest) in items.items():
            writer.add_item(name, part, geometry, image_digest=digest)


def compare(first: Path, second: Path) -> None:
    with open_artifact(first) as one, open_artifact(second) as other:
        assert sorted(one.ids) == other.ids
        assert one.item_digests == other.item_digests
        assert one.class_names == other.class_names
        assert one.meta["classes"]["palette"] == other.meta["classes"]["palette"]
        for name in one.ids:
            assert one.geometry(name) == other.geometry(name)
            assert one.image_digest(name) == other.image_digest(name)
            for key in one.keys(name):
                np.testing.assert_array_equal(one.item(name, key), other.item(name, key), strict=True)
        assert not [wrong for _, wrong in verify(other) if wrong]


@pytest.mark.parametrize("to", ["npz", "npy"])
@QUICK
@given(contents())
def test_exported_logits_come_back_exactly(tmp_path, to, content):
    classes, items = content
    write(tmp_path / "x.h5", "logits", classes, items)
    export(tmp_path / "x.h5", tmp_path / "out", to)
    if items:
        import_artifact(
            None, tmp_path / "out", tmp_path / "y.h5", ImportOptions(), resume=False, force=True, progress=Silent()
        )
        compare(tmp_path / "x.h5", tmp_path / "y.h5")


@QUICK
@given(label_contents())
def test_exported_labels_come_back_exactly(tmp_path, content):
    classes, items = content
    write(tmp_path / "x.h5", "pseudo_labels", classes, items)
    export(tmp_path / "x.h5", tmp_path / "out", "npz")
    if items:
        import_artifact(
            None, tmp_path / "out", tmp_path / "y.h5", ImportOptions(), resume=False, force=True, progress=Silent()
        )
        compare(tmp_path / "x.h5", tmp_path / "y.h5")


@QUICK
@given(label_contents(), st.booleans())
def test_labels_come_back_from_pictures(tmp_path, content, coloured):
    classes, items = content
    write(tmp_path / "x.h5", "pseudo_labels", classes, items)
    export(tmp_path / "x.h5", tmp_path / "out", "png", palette=coloured)
    if items:
        options = ImportOptions(classes=",".join([f"class {number}" for number in range(classes)] + [""]))
        import_artifact(None, tmp_path / "out", tmp_path / "y.h5", options, resume=False, force=True, progress=Silent())
        with open_artifact(tmp_path / "y.h5", "pseudo_labels") as found:
            assert found.ids == sorted(items)
            for name, (part, geometry, _) in items.items():
                np.testing.assert_array_equal(found.item(name, "label"), part["label"], strict=True)
                assert found.geometry(name) == geometry


def export(path: Path, folder: Path, to: str, **options) -> None:
    export_artifact(path, folder, ExportOptions(to=to, **options), resolved=None, force=True, progress=Silent())


# With a configuration: ids, sizes and digests of the images


def test_ids_are_matched_and_images_recorded(folder):
    done = bring("logits")
    assert vars(done) == {
        "artifact": Path("x.h5"), "kind": "logits", "images": 3, "classes": 3, "digest": done.digest,
        "domain": "target", "split": "test", "lacking": 0,
    }  # fmt: skip
    with open_artifact(Path("x.h5"), "logits") as found:
        assert found.ids == list(SIZES)
        assert (found.meta["protocol"]["domain"], found.meta["protocol"]["split"]) == ("target", "test")
        for name, size in SIZES.items():
            assert found.geometry(name) == Geometry(size, size, stride=4)
            assert found.image_digest(name) == file_digest(folder / "target/test/images" / f"{name}.png")
            np.testing.assert_array_equal(found.item(name, "logits"), logits_of(name))


def test_other_names_and_an_npz_of_all_give_the_same_items(folder):
    bring("logits")
    (folder / "other").mkdir()
    for name in SIZES:
        np.savez(folder / "other" / f"{Path(name).name}_leftImg8bit.npz", scores=logits_of(name))
    np.savez_compressed(folder / "all.npz", **{name: logits_of(name) for name in reversed(SIZES)})
    bring("other", target="y.h5")
    bring("all.npz", target="z.h5")
    compare(folder / "x.h5", folder / "y.h5")
    compare(folder / "x.h5", folder / "z.h5")


def test_files_without_an_image_are_all_named(folder):
    np.save(folder / "logits" / "stranger.npy", logits_of("a"))
    np.save(folder / "logits" / "c_2.npy", logits_of("a"))
    error = refused(DataError, r"2 of 5 fit no image of target test: c_2, stranger")
    assert "--out-size" in error.hint
    np.save(folder / "logits" / "c_logits.npy", logits_of("b/c"))
    refused(DataError, r"2 of 6 are not of one image of target test alone: b/c \(b/c\), c_logits \(b/c\)")


def test_images_without_a_file_are_told(folder):
    (folder / "logits" / "a.npy").unlink()
    told = []
    progress = Silent()
    progress.note = told.append
    assert bring("logits", progress=progress).lacking == 1
    assert told[-1] == "1 images of target test have nothing there"


def test_no_images_to_match_with(folder):
    error = refused(DataError, "train", split="train")
    assert "--out-size HxW does without" in error.hint
    (folder / "calseg.yaml").write_text("source: {root: source, classes: [road, car, sky]}\n", encoding="utf-8")
    error = refused(ConfigError, "there is no target")
    assert "--out-size HxW does without" in error.hint


def test_sizes_that_do_not_fit_are_said_with_their_numbers(folder):
    refused(DataError, r"logits/a\.npy: stride 8 over 12x16 gives a grid of 2x2, and it is 3x4", place=Place(stride=8))
    np.save(folder / "logits" / "a.npy", logits_of("b/d"))
    refused(DataError, r"logits/a\.npy: a grid of 5x4 is no even part of 12x16")
    refused(
        DataError, r"a\.npy and its image .*a\.png: the full size is 30x40 and 12x16",
        place=Place(out_hw=(30, 40)), split="test",
    )  # fmt: skip


def test_a_network_that_saw_another_size(folder):
    np.save(folder / "logits" / "a.npy", logits_of("b/d"))
    for name in ("b/c", "b/d"):
        (folder / "logits" / f"{name}.npy").unlink()
    bring("logits", place=Place(in_hw=(18, 13), pad=(2, 3), stride=4, align_corners=True))
    with open_artifact(Path("x.h5")) as found:
        assert found.geometry("a") == Geometry((18, 13), (12, 16), (2, 3), 4, True)
        assert "align_corners" in found.meta["protocol"]["grid"]


def test_an_export_of_another_image_is_refused(folder):
    bring("logits")
    export(folder / "x.h5", folder / "out", "npz")
    (folder / "x.h5").unlink()
    image = folder / "target/test/images/b/c.png"
    Image.fromarray(np.full((*SIZES["b/c"], 3), 99, np.uint8)).save(image)
    refused(DataError, r"out/b/c\.npz: logits was made from another image than .*c\.png", source="out", split="test")


def test_labels_are_matched_too_and_must_be_of_the_image_size(folder):
    (folder / "labels").mkdir()
    Image.fromarray(np.zeros(SIZES["a"], np.uint8)).save(folder / "labels" / "a_labelTrainIds.png")
    bring("labels")
    with open_artifact(Path("x.h5"), "pseudo_labels") as found:
        assert found.ids == ["a"]
        assert found.image_digest("a") == file_digest(folder / "target/test/images/a.png")
    (folder / "x.h5").unlink()
    Image.fromarray(np.zeros((6, 8), np.uint8)).save(folder / "labels" / "a_labelTrainIds.png")
    refused(DataError, r"a_labelTrainIds\.png and its image .*: the full size is 12x16 and 6x8", source="labels")


# Without a configuration


def test_without_images_the_full_size_is_given_or_grid_times_stride(folder):
    plain("logits", place=Place(stride=4))
    with open_artifact(Path("x.h5")) as found:
        assert {name: found.geometry(name).out_hw for name in found.ids} == {
            "a": (12, 16),
            "b/c": (12, 8),
            "b/d": (20, 16),
        }
        assert found.image_digest("a") == ""
        assert "domain" not in found.meta["protocol"]
    plain("logits/a.npy", target="y.h5", place=Place(out_hw=(11, 15)))
    with open_artifact(Path("y.h5")) as found:
        assert found.geometry("a") == Geometry((11, 15), (11, 15), stride=4)


def test_with_a_size_a_configuration_only_names_classes(folder):
    bring("logits/a.npy", place=Place(out_hw=(12, 16)))
    with open_artifact(Path("x.h5")) as found:
        assert found.image_digest("a") == ""
        assert found.class_names == list(NAMES)


def test_classes_of_ones_own_are_matched_to_the_same_images(folder):
    text = "source: {root: s, classes: [road]}\ntarget: {root: target, classes: [road]}\n"
    (folder / "calseg.yaml").write_text(text, encoding="utf-8")
    assert bring("logits", classes="x,y,z").split == "test"


def test_the_classes_must_fit_the_axis(folder):
    refused(DataError, "its axis of classes has 3 entries, not 2", classes="a,b")
    np.save(folder / "logits" / "a.npy", np.moveaxis(logits_of("a"), 0, -1))
    assert refused(DataError, r"a\.npy is 3x4x3: .*|a\.npy").hint


def test_values_and_types(folder):
    powers = np.exp(logits_of("a").astype(np.float64))
    np.save(folder / "p.npy", powers / powers.sum(axis=0))
    plain("p.npy", values="probabilities", dtype="float16")
    with open_artifact(Path("x.h5")) as found:
        assert found.item("p", "logits").dtype == np.float16
        assert "log-probabilities" in found.meta["protocol"]["values"]
        assert found.meta["protocol"]["stored_as"] == "float16"
        logs = found.item("p", "logits").astype(np.float64)
        np.testing.assert_allclose(np.exp(logs), powers / powers.sum(axis=0), atol=2e-3)


def test_a_bad_value_names_its_image_and_leaves_nothing(folder):
    for bad, told in ((np.nan, "1 NaN"), (np.inf, "1 infinite"), (1e6, r"up to 1e\+06, which float16")):
        array = logits_of("b/d")
        array[2, 1, 0] = bad
        np.save(folder / "logits/b/d.npy", array)
        refused(DataError, rf"logits/b/d\.npy holds .*{told}", dtype="float16")


# What is in a source


def test_npz_files_with_several_arrays(folder):
    np.savez(folder / "a.npz", first=logits_of("a"), second=logits_of("a") * 2)
    (folder / "many").mkdir()
    (folder / "a.npz").rename(folder / "many" / "a.npz")
    error = refused(DataError, r"many/a\.npz holds the arrays first, second", source="many")
    assert "--key" in error.hint
    refused(DataError, r"many/a\.npz has no array 'third'", source="many", key="third")
    bring("many", key="second")
    with open_artifact(Path("x.h5")) as found:
        np.testing.assert_array_equal(found.item("a", "logits"), logits_of("a") * 2)
    with pytest.raises(ConfigError, match="--key x names an array"):
        bring("logits", key="x", force=True)


def test_kinds_by_type_of_file(folder):
    label = np.zeros(SIZES["a"], np.uint8)
    (folder / "mixed").mkdir()
    np.save(folder / "mixed" / "a.npy", label)
    assert bring("mixed", kind="pseudo-labels", target="y.h5").kind == "pseudo_labels"
    refused(DataError, "is 12x16; logits have three axes", source="mixed")
    refused(DataError, "is 3x3x4; a label map", kind="pseudo-labels")
    Image.fromarray(label).save(folder / "mixed" / "b.png")
    refused(ConfigError, "mixed holds arrays and PNG files", source="mixed")
    refused(ConfigError, "--kind masks is not known", kind="masks")
    refused(DataError, "holds no .npy, .npz file", source="target", kind="logits")
    refused(DataError, "no such file", source="absent")
    refused(DataError, "calseg.yaml is none of", source="calseg.yaml")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"ids": "train"}, "--ids has no effect on logits"),
        ({"axes": "whc"}, "--axes whc is not known"),
        ({"values": "scores"}, "--values scores is not known"),
        ({"dtype": "float64"}, "--dtype float64 is not known"),
    ],
)
def test_options_that_mean_nothing(folder, options, told):
    refused(ConfigError, told, **options)


def test_options_of_logits_have_no_effect_on_labels(folder):
    Image.fromarray(np.zeros((2, 2), np.uint8)).save(folder / "l.png")
    given = {"axes": "hwc", "dtype": "float16", "place": Place(stride=4, pad=(1, 1))}
    refused(ConfigError, "--axes, --dtype, --stride, --pad has no effect on pseudo-labels", source="l.png", **given)


def test_ids_that_leave_the_folder(folder):
    np.savez(folder / "evil.npz", **{"../../etc/a": logits_of("a")})
    refused(DataError, r"evil\.npz: '\.\./\.\./etc/a' cannot be an image's id", source="evil.npz")
    (folder / "out").mkdir()
    np.save(folder / "out" / "a.npy", logits_of("a"))
    columns = "id,file,in_h,in_w,out_h,out_w,pad_bottom,pad_right,stride,align_corners,image_digest"
    for row, told in (
        ("../../a,a.npy,12,16,12,16,0,0,4,0,", "cannot be an image's id"),
        ("a,a.npy,12,16,12,16,0,0,4,0,md5:1", "is no digest"),
        ("a,a.npy,12,16,12,16,0,0,four,0,", "line 2 is damaged"),
        ("a,a.npy,12", "line 2 is damaged"),
        ("a,a.npy,12,16,12,16,0,0,0,0,", None),
        ("a,a.npy,-12,16,12,16,0,0,4,0,", "cannot be"),
        ("a,a.npy,12,16,12,99999,0,0,4,0,", "cannot be"),
    ):
        (folder / "out" / "index.csv").write_text(f"{columns}\n{row}\n", encoding="utf-8")
        if told:
            refused(DataError, told, source="out")
    np.save(folder / "out" / "b.npy", logits_of("a"))
    rows = [f"a,{file}.npy,12,16,12,16,0,0,4,0," for file in "ab"]
    (folder / "out" / "index.csv").write_text("\n".join([columns, *rows]), encoding="utf-8")
    refused(DataError, r"index\.csv gives the id 'a' twice", source="out")
    (folder / "out" / "b.npy").unlink()
    (folder / "out" / "index.csv").write_text("name,score\na,1\n", encoding="utf-8")
    bring("out")  # somebody else's table


# Label pictures


def save_label(path: Path, values, mode=None) -> None:
    image = Image.fromarray(np.asarray(values))
    if mode == "P":
        image = image.convert("L")
        image.putpalette([value for color in default_palette(256) for value in color])
    image.save(path)


@pytest.mark.parametrize("form", ["grey", "palette", "16 bit", "npy", "npz"])
def test_forms_of_labels(folder, form):
    values = np.array([[0, 1, 2], [255, 2, 0]], np.uint8)
    path = folder / f"l.{form if form in ('npy', 'npz') else 'png'}"
    if form == "npy":
        np.save(path, values.astype(np.int64))
    elif form == "npz":
        np.savez(path, label=values[None], confidence=np.full(values.shape, 0.5))
    else:
        save_label(path, values.astype(np.uint16) if form == "16 bit" else values, "P" if form == "palette" else None)
    plain(path, kind="pseudo-labels")
    with open_artifact(Path("x.h5"), "pseudo_labels") as found:
        np.testing.assert_array_equal(found.item("l", "label"), values, strict=True)
        assert found.geometry("l") == Geometry((2, 3), (2, 3))
        assert found.has("l", "confidence") == (form == "npz")


@pytest.mark.parametrize("form", ["png", "npy"])
def test_unknown_values_are_listed_with_counts(folder, form):
    values = np.array([[0, 3, 3], [254, 2, 300]], np.uint16)
    if form == "png":
        save_label(folder / "l.png", values)
    else:
        np.save(folder / "l.npy", values)
    told = r"l\.\w+ holds values that are no class: 3 \(2 pixels\), 254 \(1 pixels\), 300 \(1 pixels\)"
    error = refused(DataError, told, source=f"l.{form}", config=False, classes="road,car,sky", kind="pseudo-labels")
    assert "--ids dataset" in error.hint


def test_numbers_that_no_picture_holds(folder):
    for values, told in (
        (np.array([[-1, 0]]), r"-1 \(1 pixels\)"),
        (np.array([[2**63]], np.uint64), "9223372036854775808"),
    ):
        np.save(folder / "l.npy", values)
        refused(DataError, told, source="l.npy", config=False, classes="a,b", kind="pseudo-labels")


def test_raw_values_are_mapped(folder):
    save_label(folder / "l.png", np.array([[7, 26, 23, 0]], np.uint8))
    for ids in ("7=road,26=1,23=2,0=ignore", "cityscapes"):
        plain("l.png", ids=ids, force=True)
        with open_artifact(Path("x.h5")) as found:
            assert found.item("l", "label").tolist() == [[0, 1, 2, 255]]
            assert found.meta["protocol"]["pseudo_labels"]["values"]["26"] == 1


def test_pictures_that_are_no_labels(folder):
    Image.fromarray(np.zeros((2, 2, 3), np.uint8)).save(folder / "rgb.png")
    refused(DataError, r"rgb\.png is a colour image", source="rgb.png", place=Place(out_hw=(2, 2)))
    Image.fromarray(np.zeros((2, 2), np.uint8)).save(folder / "jpeg.png", format="jpeg")
    refused(DataError, r"jpeg\.png is a JPEG", source="jpeg.png", place=Place(out_hw=(2, 2)))
    (folder / "noise.png").write_bytes(b"noise")
    refused(DataError, r"noise\.png cannot be read as an image", source="noise.png")
    wide = Image.new("L", (16385, 1))
    wide.save(folder / "wide.png")
    refused(DataError, r"wide\.png: .*1 to 16384", source="wide.png", config=False, classes="a,b")


# Writing


class Interrupting(Silent):
    """Sends SIGTERM to this process when an item has been imported, `after` of them."""

    def __init__(self, after: int) -> None:
        self.left = after
        self.title = ""

    def start(self, title, total, *, done=0):
        self.title = title

    def advance(self, units=1, **facts):
        if self.title == "importing":
            self.left -= 1
            if self.left == 0:
                os.kill(os.getpid(), signal.SIGTERM)


def test_a_stopped_import_goes_on(folder):
    whole = bring("logits", target="whole.h5").digest
    with pytest.raises(StoppedError) as caught:
        bring("logits", progress=Interrupting(2))
    assert caught.value.exit_code == 143
    assert "2 items are kept" in caught.value.message
    assert not Path("x.h5").exists()
    with pytest.raises(ArtifactError, match="unfinished"):
        bring("logits")
    assert bring("logits", resume=True).digest == whole
    stamp = Path("x.h5").stat().st_mtime_ns
    assert bring("logits", resume=True).digest == whole
    assert Path("x.h5").stat().st_mtime_ns == stamp


def test_what_was_begun_from_other_files_does_not_go_on(folder):
    with pytest.raises(StoppedError):
        bring("logits", progress=Interrupting(1))
    np.save(folder / "logits" / "b" / "d.npy", logits_of("b/d") + 1)
    with pytest.raises(ArtifactError, match=r"begun differently: parents\.source was"):
        bring("logits", resume=True)
    with pytest.raises(ArtifactError, match=r"options\.dtype was absent, is float16"):
        bring("logits", resume=True, dtype="float16")
    bring("logits", force=True)


def test_a_result_in_the_way(folder):
    first = bring("logits").digest
    with pytest.raises(ArtifactError, match="exists already and is up to date"):
        bring("logits")
    np.save(folder / "logits" / "a.npy", logits_of("a") + 1)
    with pytest.raises(ArtifactError, match="exists already and is stale"):
        bring("logits")
    assert bring("logits", force=True).digest != first
    with pytest.raises(ArtifactError, match=r"end the name with \.h5|would be no artifact"):
        bring("logits", target="x.npz")


def test_nothing_private_is_recorded(folder):
    bring(folder / "logits", target=folder / "x.h5")
    with open_artifact(Path("x.h5")) as found:
        assert str(folder) not in json.dumps(found.meta)
