"""Owns reading files of other tools (.npy, .npz): what they claim is held against what is there before it is read.

Nothing is unpickled. An array's declared size must be the size of what is stored, so that a header cannot make calseg
ask for memory, and a packed one is unpacked in small pieces that stop where the header says.
"""

import io
import math
import os
import stat
import struct
import tokenize
import warnings
import zipfile
import zlib
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from types import TracebackType
from typing import IO, Any, Self

import numpy as np
from numpy.lib import format as npy_format
from numpy.typing import NDArray

from calseg_cli.artifacts.kinds import LARGEST_ITEM
from calseg_cli.errors import DataError

Array = NDArray[Any]
ARRAY_SUFFIXES = (".npy", ".npz")
_READERS = {(1, 0): npy_format.read_array_header_1_0, (2, 0): npy_format.read_array_header_2_0}
_LONGEST_HEADER = 10_000  # bytes; numpy's own limit
_LONGEST_TEXT = 4096  # bytes of a text, such as a digest
_LONGEST_ID = 1024  # bytes
_BEST_DEFLATE = 1032  # to 1; what claims to be packed better lies
_PACKINGS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # the others cannot be unpacked in pieces of a known size
_ENCRYPTED = 1
_BLOCK = 1024**2  # bytes
_NUMBERS = {"f": (2, 4, 8), "i": (1, 2, 4, 8), "u": (1, 2, 4, 8), "b": (1,)}
_BROKEN = (
    OSError, ValueError, RuntimeError, EOFError, KeyError, IndexError, TypeError, OverflowError, SyntaxError,
    MemoryError, struct.error, zlib.error, zipfile.BadZipFile, tokenize.TokenError,
)  # fmt: skip


@dataclass(frozen=True)
class Header:
    """What the head of an array declares, and the byte at which its values begin."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    fortran: bool
    begins: int

    @property
    def nbytes(self) -> int:
        """The size of the values, in whole numbers that cannot overflow."""
        return math.prod(self.shape) * self.dtype.itemsize


class ArrayFile:
    """The arrays of an .npy (one, called "") or .npz file by name; a context manager. Only what is asked for is read.

    Opening raises DataError for what is no plain file, and for a zip that numpy has not written or that is damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._held = ExitStack()
        self._zip: zipfile.ZipFile | None = None
        check_plain_file(path)
        with foreign_errors(str(path)):
            try:
                self._open()
            except BaseException:
                self._held.close()
                raise

    def _open(self) -> None:
        if self.path.suffix.lower() == ".npz":
            self._zip = self._held.enter_context(zipfile.ZipFile(self.path))
            self._members = _members(self._zip, self.path)
        else:
            self._members = {"": None}
        self._headers: dict[str, Header] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._held.close()

    @property
    def names(self) -> list[str]:
        """The names of the arrays in their order."""
        return list(self._members)

    def header(self, name: str) -> Header:
        """What the head of an array declares.

        Raises DataError for one that holds objects, claims another size than what is stored, or more than 4 GiB.
        """
        if name not in self._headers:
            self._headers[name] = self._read_header(name)
        return self._headers[name]

    def where(self, name: str) -> str:
        """How an error names an array."""
        return shown(f"{self.path}: {name}" if name else str(self.path))

    def read(self, name: str) -> Array:
        """The values in the machine's byte order. Raises DataError where they are damaged or fewer than declared."""
        header, where = self.header(name), self.where(name)
        with foreign_errors(where), self._stream(name) as stream:
            stream.read(header.begins)
            flat = np.empty(math.prod(header.shape), header.dtype)
            _fill(flat, stream, where)
            ordered = flat.reshape(header.shape, order="F" if header.fortran else "C")
        return ordered.astype(header.dtype.newbyteorder("="), order="C", copy=False)

    @contextmanager
    def _stream(self, name: str) -> Iterator[IO[bytes]]:
        member = self._members[name]
        if self._zip is None or member is None:
            with self.path.open("rb") as stream:
                yield stream
        else:
            with self._zip.open(member) as packed:
                yield packed

    def _read_header(self, name: str) -> Header:
        where, member = self.where(name), self._members[name]
        with foreign_errors(where), self._stream(name) as stream:
            header = _parsed_header(stream, where)
        stored = self.path.stat().st_size if member is None else member.file_size
        _check_header(header, stored, where)
        return header


def check_plain_file(path: Path) -> None:
    """Raise DataError for what is missing or is no plain file: opening a pipe would wait for ever."""
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise DataError(f"{path} cannot be read: {(error.strerror or str(error)).lower()}", "check the path") from error
    if not stat.S_ISREG(mode):
        raise DataError(f"{path} is no plain file", "name a file, or a folder of files")


def find_foreign_files(root: Path, suffixes: Collection[str]) -> dict[str, Path]:
    """Every file below a folder that has one of the suffixes, by id: its relative path without the suffix, sorted.

    Names that begin with a dot are left out. Linked folders are not entered. Raises DataError for a link that leads out
    of the folder, an id that `check_id` refuses, two files of one id, and a folder that cannot be read.
    """
    found: dict[str, Path] = {}
    home = root.resolve()
    for folder, folders, names in os.walk(root, onerror=_cannot_list):
        folders[:] = [name for name in folders if not name.startswith(".")]
        wanted = [name for name in names if not name.startswith(".") and Path(name).suffix.lower() in suffixes]
        for path in (Path(folder, name) for name in [*folders, *wanted]):
            if path.is_symlink() and not _is_below(path, home):
                raise DataError(
                    f"{path} is a link that leads out of {root}, or nowhere", "copy what it points to, or take it out"
                )
        for path in (Path(folder, name) for name in wanted):
            name = check_id(path.relative_to(root).with_suffix("").as_posix(), str(path))
            if name in found:
                raise DataError(f"{found[name]} and {path} have the same id {name!r}", "rename or move one of them")
            found[name] = path
    return dict(sorted(found.items()))


def _is_below(path: Path, home: Path) -> bool:
    try:
        return path.resolve(strict=True).is_relative_to(home)
    except (OSError, RuntimeError):  # a link to nothing, or in a circle
        return False


def check_id(name: str, where: str) -> str:
    """The id itself. Raises DataError for one that would not name a file below a folder, here or on another system."""
    try:
        size = len(name.encode("utf-8"))
    except UnicodeEncodeError as error:
        raise DataError(f"{shown(where)}: the name is not UTF-8", "rename the file") from error
    path = PurePosixPath(name)
    plain = str(path) == name and path.parts and not path.is_absolute() and ".." not in path.parts
    strange = "\\" in name or PureWindowsPath(name).drive or any(ord(sign) < 32 or ord(sign) == 127 for sign in name)
    if not plain or strange or size > _LONGEST_ID:
        raise DataError(
            f"{shown(where)}: {shown(name[:200])!r} cannot be an image's id",
            "ids are relative paths with forward slashes, without `..` and control characters; rename it",
        )
    return name


def read_text(path: Path, *, most: int = 64 * 1024**2) -> str:
    """A small text file as UTF-8. Raises DataError where it is missing, large (bytes over `most`) or no text."""
    check_plain_file(path)
    with foreign_errors(str(path)), path.open("rb") as stream:
        raw = stream.read(most + 1)
        if len(raw) > most:
            raise DataError(f"{path} is larger than {most} bytes", "is it the right file?")
        return raw.decode("utf-8")


def shown(text: str) -> str:
    """Text of a stranger's file as an error may print it: what a terminal would obey, or cannot print, becomes `?`."""
    return "".join(sign if sign.isprintable() else "?" for sign in text)


@contextmanager
def foreign_errors(where: str) -> Iterator[None]:
    """Turn whatever a damaged or hostile file makes a library say into one DataError that names it."""
    try:
        yield
    except _BROKEN as error:
        told = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise DataError(f"{where} cannot be read: {told}", "is it whole? Copy or write it again") from error


def _cannot_list(error: OSError) -> None:
    raise DataError(f"{error.filename} cannot be read: {(error.strerror or str(error)).lower()}", "check its rights")


def _members(packed: zipfile.ZipFile, path: Path) -> dict[str, zipfile.ZipInfo | None]:
    """The members by the name of their array. Raises DataError for what no honest .npz has."""
    found: dict[str, zipfile.ZipInfo | None] = {}
    for member in packed.infolist():
        if member.is_dir():
            continue
        name = member.filename.removesuffix(".npy")
        if name in found or not name or name == member.filename:
            raise DataError(
                f"{path}: {shown(member.filename)!r} is no array, or there twice", "write the file with np.savez"
            )
        _check_member(member, path)
        found[name] = member
    if sum(member.compress_size for member in found.values() if member is not None) > path.stat().st_size:
        raise DataError(f"{path}: its members lie upon each other", "do not trust this file")
    if not found:
        raise DataError(f"{path} holds no array", "write it with np.savez")
    return found


def _check_member(member: zipfile.ZipInfo, path: Path) -> None:
    where = f"{path}: {shown(member.filename)!r}"
    if member.flag_bits & _ENCRYPTED or member.compress_type not in _PACKINGS:
        raise DataError(f"{where} is encrypted or packed in a way that numpy does not write", "write it with np.savez")
    if member.file_size > _BEST_DEFLATE * member.compress_size + _LONGEST_HEADER:
        raise DataError(
            f"{where} claims {member.file_size} bytes and stores {member.compress_size}", "do not trust this file"
        )


def _parsed_header(stream: IO[bytes], where: str) -> Header:
    start = stream.read(8)
    if start[:6] != npy_format.MAGIC_PREFIX or len(start) < 8:
        raise DataError(f"{where} is no .npy array, or its beginning is damaged", "write it with np.save")
    version = (start[6], start[7])
    if version not in _READERS:
        raise DataError(f"{where} is .npy of version {version[0]}.{version[1]}", "save plain numbers with np.save")
    form = "<H" if version == (1, 0) else "<I"
    raw = stream.read(struct.calcsize(form))
    length = int(struct.unpack(form, raw)[0])
    if length > _LONGEST_HEADER:  # numpy looks at the limit only after it has read all of it
        raise DataError(f"{where} has a header of {length} bytes", "do not trust this file")
    text = stream.read(length)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what numpy says of headers from Python 2 is no news to a user
        shape, fortran, dtype = _READERS[version](io.BytesIO(raw + text))
    return Header(dtype, tuple(int(side) for side in shape), fortran, 8 + len(raw) + length)


def _check_header(header: Header, stored: int, where: str) -> None:
    dtype = header.dtype
    if dtype.hasobject:
        raise DataError(f"{where} holds Python objects, which calseg never unpickles", "save numbers with np.save")
    text = dtype.kind == "U" and header.nbytes <= _LONGEST_TEXT
    if not text and dtype.itemsize not in _NUMBERS.get(dtype.kind, ()):
        raise DataError(
            f"{where} is of the type {dtype}, which numpy programs cannot all read",
            "save float16, float32 or whole numbers; bfloat16 becomes float32 first",
        )
    if any(side < 0 for side in header.shape):
        raise DataError(f"{where} has the shape {header.shape}", "do not trust this file")
    shape = "x".join(map(str, header.shape)) or "one value"
    if header.nbytes > LARGEST_ITEM:
        raise DataError(
            f"{where} claims {shape} {dtype}, {header.nbytes} bytes; at most {LARGEST_ITEM // 1024**3} GiB are read",
            "save a smaller grid: logits at the network's own stride",
        )
    if header.begins + header.nbytes != stored:
        raise DataError(
            f"{where} claims {shape} {dtype}, {header.nbytes} bytes, and {stored - header.begins} are there",
            "is it whole? Copy or write it again, one array a file",
        )


def _fill(flat: Array, stream: IO[bytes], where: str) -> None:
    """Read exactly the array's bytes; memory is taken as they come, because the system gives it when it is written."""
    raw = flat.view(np.uint8).data if flat.size else memoryview(b"")
    done = 0
    while done < len(raw):
        block = stream.read(min(_BLOCK, len(raw) - done))
        if not block:
            raise DataError(f"{where} ends after {done} of {len(raw)} bytes", "is it whole? Copy or write it again")
        raw[done : done + len(block)] = block
        done += len(block)
