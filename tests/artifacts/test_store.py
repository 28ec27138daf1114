"""Writing and reading artifacts: content survives, halves never get a final name, strangers' files are refused."""

import pickle
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from calseg_cli.artifacts.describe import describe
from calseg_cli.artifacts.geometry import Geometry
from calseg_cli.artifacts.reader import open_artifact
from calseg_cli.artifacts.seal import seal
from calseg_cli.artifacts.writer import ArtifactWriter
from calseg_cli.errors import ArtifactError, DiskFullError

GEOMETRY = Geometry(in_hw=(33, 45), out_hw=(66, 90), pad=(3, 3), stride=4, align_corners=True)
META = {"classes": {"names": ["road", "sky"], "palette": [[1, 2, 3], [4, 5, 6]], "ignore": 255}, "protocol": {"a": 1}}


def write(path: Path, *, seed: int = 0, images: int = 3, **options) -> ArtifactWriter:
    rng = np.random.default_rng(seed)
    writer = ArtifactWriter(path, "logits", meta=META, **options)
    with writer:
        for number in range(images):
            logits = rng.normal(size=(2, 5 + number, 7)).astype(np.float16)
            writer.add_item(f"city/ünï {number}", {"logits": logits}, GEOMETRY)
    return writer


@pytest.mark.parametrize("compression", ["gzip", "none"])
def test_read_of_write_is_the_same(tmp_path, compression):
    write(tmp_path / "a.h5", compression=compression)
    rng = np.random.default_rng(0)
    with open_artifact(tmp_path / "a.h5", "logits") as artifact:
        assert artifact.ids == [f"city/ünï {n}" for n in range(3)]
        assert artifact.class_names == ["road", "sky"]
        assert artifact.geometry("city/ünï 1") == GEOMETRY
        for number, (_, logits) in enumerate(artifact.items("logits")):
            np.testing.assert_array_equal(logits, rng.normal(size=(2, 5 + number, 7)).astype(np.float16))


def test_digest_is_of_content(tmp_path):
    first = write(tmp_path / "a.h5").digest
    assert write(tmp_path / "b.h5", compression="none").digest == first
    assert write(tmp_path / "c.h5", seed=1).digest != first
    with open_artifact(tmp_path / "a.h5") as a, open_artifact(tmp_path / "b.h5") as b:
        assert a.digest == first
        assert a.item_digests == b.item_digests


def test_an_exception_keeps_the_old_result_and_what_was_begun(tmp_path):
    path = tmp_path / "a.h5"
    before = write(path).digest
    with (
        pytest.raises(KeyboardInterrupt),
        ArtifactWriter(path, "logits", meta=META, force=True) as writer,
    ):
        writer.add_item("x", {"logits": np.zeros((2, 3, 3), np.float16)}, GEOMETRY)
        raise KeyboardInterrupt
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["a.h5", "a.h5.partial"]
    assert open_artifact(path).digest == before


def test_an_exception_before_the_first_item_leaves_nothing(tmp_path):
    with pytest.raises(KeyboardInterrupt), ArtifactWriter(tmp_path / "a.h5", "logits", meta=META):
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())


def test_existing_result_needs_force(tmp_path):
    write(tmp_path / "a.h5")
    with pytest.raises(ArtifactError, match="exists already"):
        write(tmp_path / "a.h5")
    write(tmp_path / "a.h5", seed=5, force=True)


def test_same_id_twice_is_refused(tmp_path):
    writer = ArtifactWriter(tmp_path / "a.h5", "logits", meta=META)
    with pytest.raises(ArtifactError, match="there already"), writer as w:
        for _ in range(2):
            w.add_item("x", {"logits": np.zeros((2, 3, 3), np.float16)}, GEOMETRY)


def test_values_that_float16_cannot_hold_are_refused(tmp_path):
    with pytest.raises(ArtifactError, match="not finite"), ArtifactWriter(tmp_path / "a.h5", "logits", meta=META) as w:
        w.add_item("x", {"logits": np.full((2, 3, 3), np.inf, np.float16)}, GEOMETRY)
    assert not list(tmp_path.iterdir())


def test_handle_is_per_process_and_not_pickled(tmp_path):
    write(tmp_path / "a.h5")
    artifact = open_artifact(tmp_path / "a.h5")
    copy = pickle.loads(pickle.dumps(artifact))
    np.testing.assert_array_equal(copy.item("city/ünï 2", "logits"), artifact.item("city/ünï 2", "logits"))


def test_whole_arrays_and_texts(tmp_path):
    with ArtifactWriter(tmp_path / "m.h5", "metrics", meta=META) as writer:
        writer.add_array("counts", np.arange(12).reshape(3, 4))
        writer.add_array("ids", np.array(["a", "ü"]))
        writer.add_array("empty", np.zeros((0, 3)))
        writer.add_array("scalar", np.array(3))
    arrays = open_artifact(tmp_path / "m.h5", "metrics").arrays()
    assert arrays["counts"].tolist() == np.arange(12).reshape(3, 4).tolist()
    assert arrays["ids"].tolist() == ["a", "ü"]
    assert arrays["empty"].shape == (0, 3)
    assert int(arrays["scalar"]) == 3


def test_long_tables_are_kept(tmp_path):
    long = {"classes": META["classes"], "config": {"text": "x" * 200_000}}
    with ArtifactWriter(tmp_path / "m.h5", "metrics", meta=long):
        pass
    assert open_artifact(tmp_path / "m.h5").meta["config"]["text"] == "x" * 200_000


def edit(path: Path, change) -> None:
    with h5py.File(path, "r+") as file:
        change(file)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda f: f.attrs.__setitem__("complete", False), "unfinished"),
        (lambda f: f.attrs.__setitem__("schema", "9.0"), "newer"),
        (lambda f: f.attrs.__setitem__("format", "else"), "no calseg artifact"),
        (lambda f: f.attrs.__setitem__("kind", "spells"), "unknown kind"),
        (lambda f: f["meta/classes"].__setitem__((), b"{"), "damaged"),
    ],
)
def test_wrong_files_are_refused_at_opening(tmp_path, change, says):
    path = tmp_path / "a.h5"
    write(path)
    edit(path, change)
    with pytest.raises(ArtifactError, match=says):
        open_artifact(path)


def reseal(path: Path) -> None:
    with h5py.File(path) as file:
        end = file.id.get_filesize()
    with path.open("r+b") as stream:
        stream.truncate(end)
    seal(path, [])


def _external(file):
    del file["items/000000/logits"]
    file["items/000000/logits"] = h5py.ExternalLink("/etc/passwd", "/x")


def _soft(file):
    del file["items/000000"]
    file["items/000000"] = h5py.SoftLink("/items/000001")


def _bomb(file):
    del file["items/000000/logits"]
    file.create_dataset("items/000000/logits", shape=(1000, 10_000, 10_000), dtype="f2", chunks=(1, 100, 100))


def _raw(file):
    del file["items/000000/logits"]
    file["items/000000"].create_dataset("logits", (2, 5, 7), "f2", external=[("/etc/passwd", 0, 140)])


@pytest.mark.parametrize(
    ("plant", "says"),
    [(_external, "external link"), (_soft, "soft link"), (_bomb, "claims"), (_raw, "external storage")],
)
def test_planted_data_are_refused_when_read(tmp_path, plant, says):
    path = tmp_path / "a.h5"
    write(path)
    edit(path, plant)
    with pytest.raises(ArtifactError, match=says):
        open_artifact(path)
    reseal(path)  # a stranger can seal too
    with pytest.raises(ArtifactError, match=says), open_artifact(path) as artifact:
        artifact.item("city/ünï 0", "logits")


def test_a_flipped_bit_is_noticed(tmp_path):
    path = tmp_path / "a.h5"
    write(path, compression="none")
    with h5py.File(path) as file:
        offset = file["items/000000/logits"].id.get_chunk_info(0).byte_offset
    content = bytearray(path.read_bytes())
    content[offset + 3] ^= 1
    path.write_bytes(content)
    with open_artifact(path) as artifact, pytest.raises(ArtifactError, match="damaged"):
        artifact.item("city/ünï 0", "logits")


@pytest.mark.parametrize("keep", [0, 7, 100, 2000])
def test_truncated_files_are_refused(tmp_path, keep):
    path = tmp_path / "a.h5"
    write(path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ArtifactError):
        describe(path)


def test_missing_folder_and_partial_are_named(tmp_path):
    with pytest.raises(ArtifactError, match="no file"):
        open_artifact(tmp_path / "a.h5")
    (tmp_path / "a.h5.partial").write_bytes(b"")
    with pytest.raises(ArtifactError) as error:
        open_artifact(tmp_path / "a.h5")
    assert "unfinished" in str(error.value.hint)
    with pytest.raises(ArtifactError, match="folder"):
        describe(tmp_path)


def test_wrong_kind_is_named(tmp_path):
    write(tmp_path / "a.h5")
    with pytest.raises(ArtifactError, match="holds logits, not metrics"):
        open_artifact(tmp_path / "a.h5", "metrics")


def test_facts_are_plain(tmp_path):
    write(tmp_path / "a.h5")
    facts = describe(tmp_path / "a.h5")
    assert facts["kind"] == "logits"
    assert facts["images"] == 3
    assert facts["image_sizes"] == ["66x90"]
    assert facts["classes"]["names"] == ["road", "sky"]


def test_zeroed_bytes_anywhere_are_an_error_of_ours(tmp_path):
    """Attributes of plain damage: every file is read or refused, by ArtifactError alone."""
    path = tmp_path / "a.h5"
    write(path, images=1)
    whole = path.read_bytes()
    for number, start in enumerate(range(8, 1200, 90)):
        damaged = tmp_path / f"{number}.h5"
        damaged.write_bytes(whole[:start] + b"\xff" * 16 + whole[start + 16 :])
        try:
            describe(damaged)
        except ArtifactError:
            continue


@pytest.mark.parametrize("name", ["", "../x", "/tmp/x", "a/../../x", "a\0b", "x" * 5000, "\udcff"])
@pytest.mark.parametrize("planned", [True, False])
def test_an_id_that_no_reader_takes_is_refused_before_anything_is_written(tmp_path, name, planned):
    with pytest.raises(ArtifactError, match="does not name a file below a folder"):  # noqa: SIM117
        with ArtifactWriter(tmp_path / "a.h5", "logits", meta=META, ids=["fine", name] if planned else ()) as writer:
            writer.add_item(name, {"logits": np.zeros((2, 3, 3), np.float16)}, GEOMETRY)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("kind", "arrays", "said"),
    [
        ("logits", {"logits": np.zeros((3, 2, 2), np.float16)}, "has 3 classes, and its class list 2"),
        ("pseudo_labels", {"label": np.full((2, 2), 2, np.uint8)}, "has the class 2, and its class list 2"),
    ],
)
def test_classes_beyond_the_list_are_refused_when_written(tmp_path, kind, arrays, said):
    with pytest.raises(ArtifactError, match=said), ArtifactWriter(tmp_path / "a.h5", kind, meta=META) as writer:
        writer.add_item("x", arrays, GEOMETRY)
    assert not (tmp_path / "a.h5").exists()


def test_what_cannot_fit_is_told_with_a_number_that_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr("calseg_cli.artifacts.disk.free_bytes", lambda folder: 600_000)
    with pytest.raises(DiskFullError, match=r"at least 2\.1 MB, and 600\.0 kB are free"):
        write(tmp_path / "new" / "a.h5")
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


LIMITED = """
import resource, sys
import numpy as np
from calseg_cli.artifacts.geometry import Geometry
from calseg_cli.artifacts.writer import ArtifactWriter
from calseg_cli.errors import DiskFullError

resource.setrlimit(resource.RLIMIT_FSIZE, (3_000_000, resource.RLIM_INFINITY))
place = Geometry((400, 400), (400, 400))
meta = {"classes": {"names": ["a", "b"], "palette": [[0, 0, 0], [1, 1, 1]], "ignore": 255}, "protocol": {}}
try:
    with ArtifactWriter(sys.argv[1], "logits", meta=meta, compression="none") as writer:
        for number in range(20):
            writer.add_item(str(number), {"logits": np.zeros((2, 400, 400), np.float16)}, place)
except DiskFullError as error:
    print(error.message)
    sys.exit(5)
"""


def test_a_limit_on_the_size_of_files_is_met_before_hdf5_meets_it(tmp_path):
    """HDF5 cannot close a file that has reached it, and takes the process with it."""
    code = LIMITED.replace("sys.argv[1]", f"__import__('pathlib').Path({str(tmp_path / 'a.h5')!r})")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (5, "")
    assert "larger than a file may be here" in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["a.h5.partial"]
