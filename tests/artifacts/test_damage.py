"""A damaged file is refused, or every value read from it is the one that was written; there is no third way."""

import subprocess
from types import SimpleNamespace

import numpy as np
import pytest

from calseg_cli.artifacts import safe_open
from calseg_cli.artifacts.reader import open_artifact
from calseg_cli.errors import ArtifactError

PACKINGS = ("gzip", "none")
MUTATIONS = {"gzip": 700, "none": 300}  # without packing nearly every byte has to be read to be found


def make(store, folder, packing):
    """Two images, and arrays of the whole in several chunks and in one piece."""
    items = {**store.make_items(1, size=(30, 9)), "flat": {"logits": np.zeros((2, 30, 40), np.float16)}}
    path = folder / f"{packing}.h5"
    large = np.random.default_rng(3).integers(0, 5, (3000, 4))
    return store.write(path, items, compression=packing, arrays={"large": large, "text": np.array(["a", "ü"])}).path


@pytest.fixture(scope="module")
def whole(store, tmp_path_factory):
    """Each packing's file: its bytes, what is in it, and a place to damage it."""
    folder = tmp_path_factory.mktemp("damage")
    made = {}
    for packing in PACKINGS:
        path = make(store, folder, packing)
        made[packing] = SimpleNamespace(path=path, content=path.read_bytes(), told=store.read_all(path))
    return made


@pytest.fixture
def outcome(store, whole):
    """What becomes of other bytes in a file's place: "refused" or "equal", and anything else fails."""

    def look(packing, content, *, explain=False):
        one = whole[packing]
        one.path.write_bytes(content)
        try:
            told = store.read_all(one.path, explain=explain)
        except ArtifactError as error:
            return "refused" if str(error).isprintable() else str(error)
        finally:
            one.path.write_bytes(one.content)
        assert told == one.told
        return "equal"

    return look


@pytest.mark.parametrize("packing", PACKINGS)
def test_any_changed_byte_is_refused_or_harmless(outcome, whole, packing):
    content = whole[packing].content
    rng = np.random.default_rng(7)
    refused = 0
    places, changes = rng.integers(len(content), size=MUTATIONS[packing]), rng.integers(1, 256, MUTATIONS[packing])
    for place, change in zip(places, changes, strict=True):
        damaged = bytearray(content)
        damaged[place] ^= change
        refused += outcome(packing, damaged) == "refused"
    # Harmless are HDF5's own checksums where a digest of ours says more.
    assert refused > 0.9 * MUTATIONS[packing]


@pytest.mark.parametrize("packing", PACKINGS)
def test_and_so_it_is_while_another_process_looks_for_the_reason(outcome, whole, packing):
    content = whole[packing].content
    rng = np.random.default_rng(11)
    for place in rng.integers(min(5000, len(content)), size=8):
        damaged = bytearray(content)
        damaged[place] ^= 0xFF
        outcome(packing, damaged, explain=True)


@pytest.mark.parametrize("packing", PACKINGS)
def test_truncated_anywhere(outcome, whole, packing):
    content = whole[packing].content
    ends = {0, 1, 7, 8, 9, 63, 64, 95, 96, 97, *range(512, len(content), 1777), *range(len(content) - 70, len(content))}
    for end in sorted(ends):
        assert outcome(packing, content[:end]) == "refused", end


@pytest.mark.parametrize("size", [512, 4096])
@pytest.mark.parametrize("filling", [b"\0", b"\xff"])
@pytest.mark.parametrize("packing", PACKINGS)
def test_lost_blocks(outcome, whole, packing, size, filling):
    """Blocks that a disk lost read as zeros, on some as ones."""
    content = whole[packing].content
    for start in range(0, len(content), size):
        damaged = content[:start] + filling * len(content[start : start + size]) + content[start + size :]
        assert damaged == content or outcome(packing, damaged) == "refused"


@pytest.mark.parametrize("packing", PACKINGS)
def test_blocks_that_changed_places(outcome, whole, packing):
    content, size = whole[packing].content, 512
    rng = np.random.default_rng(5)
    count = len(content) // size
    for _ in range(60):
        first, second = (int(n) * size for n in sorted(rng.choice(count, 2, replace=False)))
        a, b = content[first : first + size], content[second : second + size]
        damaged = content[:first] + b + content[first + size : second] + a + content[second + size :]
        assert damaged == content or outcome(packing, damaged) == "refused"


@pytest.mark.parametrize("extra", [b"\0", b"\0" * 4096, b"CALSEAL1" + bytes(56)])
@pytest.mark.parametrize("packing", PACKINGS)
def test_bytes_behind_the_end(outcome, whole, packing, extra):
    assert outcome(packing, whole[packing].content + extra) == "refused"


@pytest.mark.parametrize("packing", PACKINGS)
def test_a_file_put_behind_another(outcome, whole, packing):
    assert outcome(packing, whole[packing].content * 2) == "refused"


def test_every_bit_of_a_chunk(store, tmp_path):
    made = store.write(tmp_path / "a.h5", store.make_items(1), compression="none")
    ((start, length),) = store.chunks_of(made.path, "items/000000/logits")
    values = made.items[made.ids[0]]["logits"]
    content = made.path.read_bytes()
    assert length == values.nbytes + 4  # HDF5's checksum stands behind the values
    with made.path.open("r+b", buffering=0) as stream, open_artifact(made.path) as artifact:
        for bit in range(8 * values.nbytes):
            place = start + bit // 8
            stream.seek(place)
            stream.write(bytes([content[place] ^ 1 << bit % 8]))
            with pytest.raises(ArtifactError, match="damaged"):
                artifact.item(made.ids[0], "logits")
            stream.seek(place)
            stream.write(content[place : place + 1])
            np.testing.assert_array_equal(artifact.item(made.ids[0], "logits"), values)  # it was read anew each time


def test_zeros_where_labels_are_255(store, tmp_path):
    """HDF5's checksum takes 0x0000 and 0xFFFF for the same word: a lost block of ignored pixels would read as road."""
    label = np.full((64, 64), 255, np.uint8)
    label[0, :7] = 1
    geometry = type(store.GEOMETRY)((64, 64), (64, 64))
    made = store.write(
        tmp_path / "a.h5", {"x": {"label": label}}, kind="pseudo_labels", geometry=geometry, compression="none"
    )
    ((start, _),) = store.chunks_of(made.path, "items/000000/label")
    content = bytearray(made.path.read_bytes())
    content[start + 1024 : start + 2048] = bytes(1024)
    made.path.write_bytes(content)
    with open_artifact(made.path) as artifact, pytest.raises(ArtifactError, match="not what was written"):
        artifact.item("x", "label")


def test_chunks_that_changed_places(store, tmp_path):
    """Each is whole by its own checksum."""
    made = store.write(tmp_path / "a.h5", store.make_items(1, size=(512, 300)), compression="none")
    (first, size), (second, other) = store.chunks_of(made.path, "items/000000/logits")[:2]
    content = made.path.read_bytes()
    assert size == other
    a, b = content[first : first + size], content[second : second + size]
    made.path.write_bytes(content[:first] + b + content[first + size : second] + a + content[second + size :])
    with open_artifact(made.path) as artifact, pytest.raises(ArtifactError, match="not what was written"):
        artifact.item(made.ids[0], "logits")


def test_chunks_of_an_array_that_changed_places(store, tmp_path):
    """An array of the whole has no digest of its own; the content digest proves all of them."""
    made = store.write(tmp_path / "a.h5", 1, arrays={"x": np.arange(150_000), "y": np.arange(3)}, compression="none")
    (first, size), (second, other) = store.chunks_of(made.path, "arrays/x")[:2]
    content = made.path.read_bytes()
    assert size == other
    a, b = content[first : first + size], content[second : second + size]
    made.path.write_bytes(content[:first] + b + content[first + size : second] + a + content[second + size :])
    with open_artifact(made.path) as artifact:
        artifact.item(made.ids[0], "logits")
        for name in ("x", "y"):
            with pytest.raises(ArtifactError, match="its arrays are not what was written"):
                artifact.array(name)


@pytest.mark.parametrize(
    "ends",
    [
        lambda *words, **options: (_ for _ in ()).throw(subprocess.TimeoutExpired(words[0], 5)),
        lambda *words, **options: subprocess.CompletedProcess(words[0], -11, "", ""),
        lambda *words, **options: subprocess.CompletedProcess(words[0], 0, '{"refused": ', ""),
    ],
    ids=["loops", "crashes", "dies while it tells"],
)
def test_damage_that_breaks_hdf5_breaks_only_the_process_that_looks(whole, tmp_path, monkeypatch, ends):
    path = tmp_path / "a.h5"
    path.write_bytes(whole["gzip"].content[:-100])
    monkeypatch.setattr(safe_open.subprocess, "run", ends)
    with pytest.raises(ArtifactError, match="inner tables are damaged"):
        open_artifact(path)


def test_looking_for_the_reason_has_an_end(whole):
    assert safe_open.examine(whole["gzip"].path, seconds=0.001)["refused"] is not None
    assert safe_open.examine(whole["gzip"].path)["refused"] is None
