"""Other tools' arrays: what numpy writes reads back the same; what lies is refused before it costs anything."""

import io
import os
import pickle
import struct
import tracemalloc
import zipfile
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from calseg_cli.artifacts.foreign import ArrayFile, check_id, find_foreign_files, read_text
from calseg_cli.errors import DataError

MIB = 1024**2
SUFFIXES = (".npy", ".npz")
NUMBERS = st.one_of(
    arrays.floating_dtypes(endianness="?", sizes=(16, 32, 64)),
    arrays.integer_dtypes(endianness="?"),
    arrays.unsigned_integer_dtypes(endianness="?"),
    st.just(np.dtype(bool)),
)
ANY_ARRAY = NUMBERS.flatmap(
    lambda dtype: arrays.arrays(dtype, arrays.array_shapes(min_dims=0, max_dims=4, min_side=1, max_side=7))
)
IN_A_FOLDER = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


def read(path: Path, name: str = ""):
    with ArrayFile(path) as file:
        return file.read(name)


def npy(shape, dtype="<f4", data=b"", *, version=(1, 0), fortran=False, header=None) -> bytes:
    """The bytes of an .npy file that claims what it likes."""
    text = header or f"{{'descr': {dtype!r}, 'fortran_order': {fortran}, 'shape': {shape}, }}"
    raw = text.encode("latin1") + b"\n"
    form = "<H" if version == (1, 0) else "<I"
    return b"\x93NUMPY" + bytes(version) + struct.pack(form, len(raw)) + raw + data


def written(folder: Path, content: bytes, name: str = "x.npy") -> Path:
    (folder / name).write_bytes(content)
    return folder / name


def zipped(folder: Path, members: dict[str, bytes], packing=zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(folder / "x.npz", "w", packing) as file:
        for name, content in members.items():
            file.writestr(name, content)
    return folder / "x.npz"


def refused(path: Path, match: str, name: str = "a") -> None:
    """Refused by name, with a hint, and without taking memory for what is not there."""
    tracemalloc.start()
    with pytest.raises(DataError, match=match) as caught, ArrayFile(path) as file:
        file.read(name if path.suffix == ".npz" else "")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert str(path) in caught.value.message
    assert caught.value.hint
    assert peak < 16 * MIB, peak


# What numpy writes


@IN_A_FOLDER
@given(ANY_ARRAY, st.booleans(), st.sampled_from(["save", "savez", "savez_compressed"]))
def test_reads_what_numpy_writes(tmp_path, array, fortran, writer):
    array = np.asfortranarray(array) if fortran else array
    path = tmp_path / ("x.npy" if writer == "save" else "x.npz")
    if writer == "save":
        np.save(path, array)
    else:
        getattr(np, writer)(path, first=array, second=np.zeros(2))
    found = read(path, "" if writer == "save" else "first")
    assert found.dtype == array.dtype.newbyteorder("=")
    assert found.flags.c_contiguous
    assert found.shape == array.shape
    np.testing.assert_array_equal(found, array)


def test_arrays_larger_than_a_block_are_whole(tmp_path):
    array = np.random.default_rng(0).normal(size=(3, 700, 801))
    np.save(tmp_path / "x.npy", array)
    np.savez_compressed(tmp_path / "x.npz", a=array, b=array[0])
    np.testing.assert_array_equal(read(tmp_path / "x.npy"), array)
    with ArrayFile(tmp_path / "x.npz") as file:
        assert file.names == ["a", "b"]
        np.testing.assert_array_equal(file.read("b"), array[0])
        np.testing.assert_array_equal(file.read("a"), array)


def test_short_texts_are_read_for_digests(tmp_path):
    np.savez(tmp_path / "x.npz", a=np.array("sha256:ü"))
    assert str(read(tmp_path / "x.npz", "a")) == "sha256:ü"


@pytest.mark.parametrize("version", [(1, 0), (2, 0)])
def test_header_versions(tmp_path, version):
    assert read(written(tmp_path, npy((2,), data=b"\0" * 8, version=version))).tolist() == [0, 0]


def test_headers_of_python_2_are_read_in_silence(tmp_path):
    header = "{'descr': '<f4', 'fortran_order': False, 'shape': (2L, 1L), }"
    assert read(written(tmp_path, npy((), data=b"\0" * 8, header=header))).shape == (2, 1)


# Objects are never unpickled


class Bomb:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self):
        return os.mkdir, (str(self.trace),)


def test_object_arrays_are_refused_and_not_run(tmp_path):
    trace = tmp_path / "trace"
    bomb = np.array([Bomb(trace)], dtype=object)
    np.save(tmp_path / "x.npy", bomb, allow_pickle=True)
    np.savez(tmp_path / "x.npz", a=bomb)
    refused(tmp_path / "x.npy", "Python objects")
    refused(tmp_path / "x.npz", "Python objects")
    refused(written(tmp_path, pickle.dumps(Bomb(trace)), "y.npy"), "no .npy array")
    refused(written(tmp_path, pickle.dumps(Bomb(trace)), "y.npz"), "cannot be read")
    assert not trace.exists()
    with pytest.raises(FileNotFoundError, match="trace"):  # the bomb does go off where it is let
        trace.rmdir()
    np.load(tmp_path / "x.npy", allow_pickle=True)
    assert trace.exists()


@pytest.mark.parametrize(
    "dtype",
    [
        [("a", "<f4"), ("b", "|O")],
        [("a", "<f4")],
        "|V2",
        "<c8",
        "<M8[s]",
        "|S4",
        "<f16",
        ("<f4", (1000000, 1000000)),
    ],
    ids=str,
)
def test_other_types_are_refused(tmp_path, dtype):
    refused(written(tmp_path, npy((1,), dtype, b"\0" * 64)), "type|Python objects|cannot be read|claims")


def test_what_is_not_asked_for_is_not_looked_at(tmp_path):
    np.savez(tmp_path / "x.npz", objects=np.array([{}], dtype=object), a=np.ones(2))
    with ArrayFile(tmp_path / "x.npz") as file:
        assert file.read("a").tolist() == [1, 1]
        with pytest.raises(DataError, match="Python objects"):
            file.header("objects")


# Sizes that lie


@pytest.mark.parametrize(
    "shape",
    [
        (1 << 38,),
        (1 << 20, 1 << 20),
        (19, 1 << 17, 1 << 17),
        (1 << 62, 1 << 62),
        (10**4000,),
        (2,),
        (-1,),
        (-2, -2),
    ],
    ids=lambda shape: "x".join(str(side)[:9] for side in shape),
)
def test_a_header_cannot_ask_for_memory(tmp_path, shape):
    content = npy(shape, data=b"\0" * 4)
    refused(written(tmp_path, content), "claims|has the shape|cannot be read")
    refused(zipped(tmp_path, {"a.npy": content}), "claims|has the shape|cannot be read")


def test_sides_below_zero(tmp_path):
    refused(written(tmp_path, npy((-2, -2), data=b"\0" * 16)), r"has the shape \(-2, -2\)")


def test_more_than_declared_is_refused(tmp_path):
    twice = io.BytesIO()
    np.save(twice, np.zeros(3))
    np.save(twice, np.zeros(3))
    refused(written(tmp_path, twice.getvalue()), "are there")
    refused(zipped(tmp_path, {"a.npy": twice.getvalue()}), "are there")


def test_a_header_that_is_a_bomb_itself_is_not_read(tmp_path):
    long = b"\x93NUMPY\x02\x00" + struct.pack("<I", 0xFFFFFFF0)
    refused(written(tmp_path, long), "a header of 4294967280 bytes")
    refused(zipped(tmp_path, {"a.npy": long + b" " * (200 * MIB)}), "a header of")


@pytest.mark.parametrize(
    "header",
    [
        "{'descr': '<f4', 'fortran_order': False, 'shape': " + "(" * 2000 + ")" * 2000 + "}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (" + "-" * 5000 + "1,)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (" + "1+1j" * 1500 + ",)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (" + "9" * 5000 + ",)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': ('a',)}",
        "{'descr': '<f4', 'fortran_order': 3, 'shape': (1,)}",
        "{'descr': '<f4', 'shape': (1,)}",
        "__import__('os').mkdir('trace')",
        "\x00\x00",
        "'''",
        "[" * 900,
    ],
    ids=range(11),
)
def test_headers_that_make_parsers_stumble(tmp_path, monkeypatch, header):
    monkeypatch.chdir(tmp_path)
    refused(written(tmp_path, npy((), data=b"\0" * 4, header=header)), "cannot be read|claims")
    assert not Path("trace").exists()


@IN_A_FOLDER
@given(st.binary(max_size=300))
def test_any_header_is_a_data_error_or_an_array(tmp_path, noise):
    path = written(tmp_path, b"\x93NUMPY\x01\x00" + struct.pack("<H", len(noise)) + noise)
    with pytest.raises(DataError):
        read(path)


def test_zip_bombs(tmp_path):
    claim = 5 * 1024**3
    refused(lying_zip(tmp_path, npy((claim // 4,)), size=claim), "claims")
    shape = (19, 4096, 4096)
    honest = npy(shape, "|u1", b"\0" * (64 * MIB))
    refused(lying_zip(tmp_path, honest, size=len(honest) + 400 * MIB), "claims")


def test_a_member_that_claims_what_no_packing_can_hold(tmp_path):
    content = npy((100 * MIB,), data=b"\0" * 64)
    claimed = len(content) - 64 + 400 * MIB
    refused(lying_zip(tmp_path, content, claimed), rf"a\.npy' claims {claimed} bytes and stores")


def test_more_than_an_item_may_hold(tmp_path):
    path = written(tmp_path, npy((5 * 1024**3,), "|u1"))
    os.truncate(path, path.stat().st_size + 5 * 1024**3)  # all of it is there, as a hole
    refused(path, "at most 4 GiB are read")


def lying_zip(folder: Path, content: bytes, size: int, packing=zipfile.ZIP_DEFLATED) -> Path:
    """An .npz whose tables claim that its only member unpacks to `size` bytes."""
    path = zipped(folder, {"a.npy": content}, packing)
    raw, real = bytearray(path.read_bytes()), struct.pack("<I", len(content))
    assert raw.count(real) >= 2
    path.write_bytes(bytes(raw).replace(real, struct.pack("<I", min(size, 0xFFFFFFFE))))
    return path


@pytest.mark.parametrize("packing", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("extra", [-4, 4])
def test_a_member_that_lies_about_its_size(tmp_path, packing, extra):
    values = np.random.default_rng(0).normal(size=1000).astype(np.float32)
    content = npy((1000 + extra // 4,), data=values.tobytes())
    path = lying_zip(tmp_path, content, len(content) + extra, packing)
    refused(path, "ends after|cannot be read|claims|goes on")


@pytest.mark.parametrize("packing", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_packings_that_unpack_without_bound_are_refused(tmp_path, packing):
    refused(zipped(tmp_path, {"a.npy": npy((4 * MIB,), data=b"\0" * 16 * MIB)}, packing), "packed in a way")


def test_encrypted_members_are_refused(tmp_path):
    path = zipped(tmp_path, {"a.npy": npy((1,), data=b"\0" * 4)})
    raw = bytearray(path.read_bytes())
    raw[6] |= 1
    raw[raw.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(bytes(raw))
    refused(path, "is encrypted or packed")


def test_members_that_lie_upon_each_other(tmp_path):
    """What lets a small file unpack without end: one member's bytes hold another one, whole."""
    path = zipped(tmp_path, {"b.npy": npy((5000,), "|u1", b"\1" * 5000)}, zipfile.ZIP_STORED)
    with zipfile.ZipFile(path) as file:
        (inner,) = file.infolist()
    entry = path.read_bytes()[: path.read_bytes().index(b"PK\x01\x02")]
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as file:
        file.writestr("a.npy", npy((len(entry),), "|u1", entry))
        inner.header_offset = path.stat().st_size - len(entry)
        file.filelist.append(inner)
    with pytest.raises(DataError, match="lie upon each other"):
        ArrayFile(path)


def test_names_in_a_zip(tmp_path):
    one = npy((1,), data=b"\0" * 4)
    refused(zipped(tmp_path, {"a.txt": one}), "is no array")
    refused(zipped(tmp_path, {".npy": one}), "is no array")
    refused(zipped(tmp_path, {}), "holds no array")
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as file:
        file.writestr("a.npy", one)
        with pytest.warns(UserWarning, match="Duplicate"):
            file.writestr("a.npy", one)
    refused(tmp_path / "x.npz", "there twice")
    refused(zipped(tmp_path, {"\x1b[31mred.txt": one}), r"\?\[31mred")


# Damage


@IN_A_FOLDER
@given(st.data())
def test_cut_anywhere_is_an_error(tmp_path, data):
    suffix = data.draw(st.sampled_from(SUFFIXES))
    array = np.arange(60, dtype=np.float32).reshape(3, 4, 5)
    path = tmp_path / f"x{suffix}"
    np.save(path, array) if suffix == ".npy" else np.savez(path, a=array)
    content = path.read_bytes()
    path.write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])
    with pytest.raises(DataError, match=r"x\.np"):
        read(path, "a" if suffix == ".npz" else "")


@IN_A_FOLDER
@given(st.data())
def test_a_flipped_bit_in_an_npz_is_an_error_or_harmless(tmp_path, data):
    array = np.arange(60, dtype=np.float32)
    path = tmp_path / "x.npz"
    writer = data.draw(st.sampled_from([np.savez, np.savez_compressed]))
    writer(path, a=array)
    raw = bytearray(path.read_bytes())
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(bytes(raw))
    with suppress(DataError), ArrayFile(path) as file:
        for name in file.names:
            np.testing.assert_array_equal(file.read(name), array)


@IN_A_FOLDER
@given(st.binary(max_size=400), st.sampled_from(SUFFIXES))
def test_noise_is_an_error(tmp_path, noise, suffix):
    with pytest.raises(DataError, match=rf"n{suffix}"):
        read(written(tmp_path, noise, f"n{suffix}"))


def test_what_is_no_plain_file(tmp_path):
    os.mkfifo(tmp_path / "pipe.npy")
    (tmp_path / "folder.npy").mkdir()
    for name, told in (("pipe.npy", "no plain file"), ("folder.npy", "no plain file"), ("absent.npy", "no such file")):
        with pytest.raises(DataError, match=told):
            ArrayFile(tmp_path / name)


# Files of a folder


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")


def test_files_are_found_by_relative_path(tmp_path):
    root = tmp_path / "root"
    touch(
        root / "b.npy", root / "a.b.NPZ", root / "city" / "ünï 1.npy", root / "._b.npy", root / ".hidden" / "x.npy",
        root / "c.txt", root / "npy",
    )  # fmt: skip
    (root / "pictures.npy").mkdir()
    assert list(find_foreign_files(root, SUFFIXES)) == ["a.b", "b", "city/ünï 1"]
    (tmp_path / "linked").symlink_to(root)
    assert list(find_foreign_files(tmp_path / "linked", SUFFIXES)) == ["a.b", "b", "city/ünï 1"]


def test_links_out_of_the_folder_are_refused(tmp_path):
    root = tmp_path / "root"
    touch(root / "a.npy", tmp_path / "secret.npy", tmp_path / "elsewhere" / "x.npy")
    (root / "same.npy").symlink_to(root / "a.npy")
    (root / "again").symlink_to(root)  # in circles
    assert list(find_foreign_files(root, SUFFIXES)) == ["a", "same"]
    for name, target in (("out.npy", "../secret.npy"), ("out", "../elsewhere"), ("loop.npy", "loop.npy")):
        (root / name).symlink_to(target)
        with pytest.raises(DataError, match=f"{name}.* leads out"):
            find_foreign_files(root, SUFFIXES)
        (root / name).unlink()


def test_two_files_of_one_id_and_bad_names(tmp_path):
    touch(tmp_path / "a.npy", tmp_path / "a.npz")
    with pytest.raises(DataError, match="the same id 'a'"):
        find_foreign_files(tmp_path, SUFFIXES)
    (tmp_path / "a.npz").unlink()
    for name in (b"back\\slash.npy", b"\xff.npy", b"es\x1bcape.npy", b"C:x.npy"):
        file = os.fsencode(tmp_path) + b"/" + name
        Path(os.fsdecode(file)).write_bytes(b"")
        with pytest.raises(DataError, match=r"cannot be an image's id|not UTF-8") as caught:
            find_foreign_files(tmp_path, SUFFIXES)
        caught.value.message.encode("utf-8")  # can be printed
        assert caught.value.message.isprintable()
        Path(os.fsdecode(file)).unlink()


@given(st.text(st.sampled_from("abü./\\\0\n: C"), max_size=12) | st.text(max_size=20))
def test_an_accepted_id_names_a_file_below_a_folder(name):
    try:
        check_id(name, "x")
    except DataError:
        return
    path = Path(os.path.normpath(Path("/root", f"{name}.npy")))
    assert path.is_relative_to("/root")
    assert path.relative_to("/root").as_posix() == f"{name}.npy"
    assert "\0" not in name


@pytest.mark.parametrize(
    "name", ["..", "../a", "a/../../b", "/a", "", ".", "./a", "a//b", "a/", "a\0b", "a\nb", "C:a", "a\\b", "x" * 1025]
)
def test_ids_that_are_refused(name):
    with pytest.raises(DataError, match="cannot be an image's id"):
        check_id(name, "x")


def test_texts_are_small_and_utf_8(tmp_path):
    assert read_text(written(tmp_path, "ü".encode(), "a.txt")) == "ü"
    with pytest.raises(DataError, match="larger than 10 bytes"):
        read_text(written(tmp_path, b"x" * 11, "a.txt"), most=10)
    with pytest.raises(DataError, match="cannot be read"):
        read_text(written(tmp_path, b"\xff", "a.txt"))
