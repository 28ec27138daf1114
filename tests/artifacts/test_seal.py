"""The seal finds every changed byte of what HDF5 relies on, and nothing it says can cost memory."""

import hashlib
import struct

import h5py
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calseg_cli.artifacts.seal import MAGIC, BrokenSealError, check_seal, joined, seal

CONTENT = bytes(range(256)) * 2


def sealed(folder, chunks, content=CONTENT):
    path = folder / "sealed"
    path.write_bytes(content)
    seal(path, chunks)
    return path


@st.composite
def apart(draw):
    """Chunks apart from each other, in any order."""
    cuts = sorted(draw(st.sets(st.integers(0, len(CONTENT)), max_size=12)))
    chunks = [(a, b - a) for a, b in zip(cuts[::2], cuts[1::2], strict=False)]
    return draw(st.permutations(chunks))


def by_hand(content: bytes, chunks) -> bytes:
    """The seal as the module describes it."""
    pairs = joined(chunks)
    covered = bytearray(content)
    for offset, length in reversed(pairs):
        del covered[offset : offset + length]
    table = b"".join(struct.pack("<QQ", *pair) for pair in pairs)
    head = MAGIC + struct.pack("<QQ", len(content), len(pairs)) + bytes(8)
    return table + head + hashlib.sha256(bytes(covered) + table + head).digest()


@settings(max_examples=60, deadline=None)
@given(chunks=apart())
def test_the_seal_is_what_its_description_says(tmp_path_factory, chunks):
    path = sealed(tmp_path_factory.mktemp("s"), chunks)
    assert path.read_bytes() == CONTENT + by_hand(CONTENT, chunks)
    check_seal(path)


@settings(max_examples=60, deadline=None)
@given(chunks=apart(), data=st.data())
def test_a_changed_byte_is_noticed_outside_of_the_chunks(tmp_path_factory, chunks, data):
    path = sealed(tmp_path_factory.mktemp("s"), chunks)
    content = bytearray(path.read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    content[place] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content)
    if any(offset <= place < offset + length for offset, length in chunks):
        check_seal(path)
    else:
        with pytest.raises(BrokenSealError):
            check_seal(path)


def test_every_bit_of_the_seal_itself(tmp_path):
    path = sealed(tmp_path, [(10, 20), (40, 5)])
    content = path.read_bytes()
    for bit in range(8 * len(CONTENT), 8 * len(content)):
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        with pytest.raises(BrokenSealError):
            check_seal(path)


@pytest.mark.parametrize("change", [lambda b: b[:-1], lambda b: b + b"\0", lambda b: b[1:], lambda b: b[:63], bytes])
def test_another_size_is_noticed(tmp_path, change):
    path = sealed(tmp_path, [(10, 20)])
    content = path.read_bytes()
    path.write_bytes(change(content) if change is not bytes else b"")
    with pytest.raises(BrokenSealError):
        check_seal(path)


def test_neighbours_are_one_stretch():
    assert joined([(30, 5), (10, 20), (0, 4), (50, 0)]) == [(0, 4), (10, 25)]


@pytest.mark.parametrize(
    "pairs",
    [
        [(10, 20), (25, 5)],  # overlapping
        [(30, 5), (10, 5)],  # falling
        [(10, 0)],  # empty
        [(500, 20)],  # beyond the end
        [(2**63, 2**63)],  # around the end of counting
        [(2**64 - 1, 2**64 - 1)],
    ],
)
def test_a_stranger_may_not_say_what_is_a_chunk_at_will(tmp_path, pairs):
    table = b"".join(struct.pack("<QQ", *pair) for pair in pairs)
    head = MAGIC + struct.pack("<QQ", len(CONTENT), len(pairs)) + bytes(8)
    path = tmp_path / "x"
    path.write_bytes(CONTENT + table + head + hashlib.sha256(CONTENT + table + head).digest())
    with pytest.raises(BrokenSealError, match="table of its seal"):
        check_seal(path)


@pytest.mark.parametrize("number", [2**60 - 4, 2**64 - 1, 10**9])
def test_a_table_that_is_not_there_is_not_read(store, tmp_path, number):
    path = tmp_path / "x"
    path.write_bytes(MAGIC + struct.pack("<QQ", 16, number) + bytes(40))
    with store.frugal(), pytest.raises(BrokenSealError):
        check_seal(path)


def test_a_huge_table_of_holes_is_not_read_whole(store, tmp_path):
    """A file with holes is as long as it likes and takes no space."""
    path = tmp_path / "x"
    number = 10**9
    with path.open("wb") as stream:
        stream.truncate(16 * number)
        stream.seek(0, 2)
        stream.write(MAGIC + struct.pack("<QQ", 0, number) + bytes(40))
    with store.frugal(), pytest.raises(BrokenSealError, match="table of its seal"):
        check_seal(path)


@pytest.mark.parametrize("packing", ["gzip", "none"])
def test_an_artifact_leaves_only_its_chunks_out(store, tmp_path, packing):
    """Every byte that is not a chunk of values is under the seal: a chunk has a checksum, nothing else has."""
    made = store.write(
        tmp_path / "a.h5", compression=packing, arrays={"x": store.make_items(1)["city/ünï 0"]["logits"]}
    )
    chunks = [chunk for number in range(3) for chunk in store.chunks_of(made.path, f"items/{number:06d}/logits")]
    content = made.path.read_bytes()
    end = store.end_of_hdf5(made.path)
    number = struct.unpack("<Q", content[-48:-40])[0]
    with h5py.File(made.path) as file:
        assert file["arrays/x"].chunks is None  # small arrays lie in one piece, under the seal
    end = struct.unpack("<Q", content[-56:-48])[0]
    assert list(struct.iter_unpack("<QQ", content[end : end + 16 * number])) == joined(chunks)


def test_sealing_does_not_change_what_hdf5_reads(store, tmp_path):
    made = store.write(tmp_path / "a.h5")
    with h5py.File(made.path) as file:
        assert sorted(file) == ["index", "items", "meta"]
        assert file["items/000000/logits"].shape == (2, 5, 7)
