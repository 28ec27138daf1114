"""Owns the seal at the end of a finished artifact: proof that HDF5's own tables are as they were written.

HDF5 trusts its tables: a damaged one can make the library loop or crash before anybody can check anything. So the last
thing written is a seal, outside of what HDF5 reads, and the first thing read is the seal, before HDF5 sees the file.

    [HDF5 file] [n pairs of uint64: offset, length] [64 bytes: magic, uint64 HDF5 length, uint64 n, 8 zeros, sha256]

All numbers are little-endian. The pairs are the stretches that hold chunks of data, rising and apart from each other;
each chunk has a checksum of its own. The sha256 is over every byte of the HDF5 file outside the stretches, then the
pairs, then the first 32 bytes of the last 64. A seal proves that nothing was damaged, not who wrote it.
"""

import hashlib
import os
import struct
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import BinaryIO

MAGIC = b"CALSEAL1"
_TAIL = struct.Struct("<8sQQ8x")
_SIZE = _TAIL.size + 32
_BLOCK = 1024**2

Stretch = tuple[int, int]


class BrokenSealError(ValueError):
    """The file bears no seal, or was changed since it was sealed; the text says which."""


def seal(path: Path, chunks: Iterable[Stretch]) -> None:
    """Append the seal to a closed HDF5 file; `chunks` are (offset, length) of its chunks of data, in any order.

    Calling it on a sealed file is an error of the caller: the first seal would become part of the HDF5 file.
    """
    stretches = joined(chunks)
    table = b"".join(struct.pack("<QQ", *stretch) for stretch in stretches)
    with path.open("r+b") as stream:
        length = stream.seek(0, os.SEEK_END)
        head = _TAIL.pack(MAGIC, length, len(stretches))
        stream.write(table)
        stream.flush()
        digest = _digest(stream, length, len(stretches), head)
        stream.seek(0, os.SEEK_END)
        stream.write(head + digest)
        stream.flush()
        os.fsync(stream.fileno())


def joined(chunks: Iterable[Stretch]) -> list[Stretch]:
    """The chunks by rising offset, neighbours made one."""
    stretches: list[Stretch] = []
    for offset, length in sorted(chunks):
        if stretches and sum(stretches[-1]) == offset:
            stretches[-1] = (stretches[-1][0], stretches[-1][1] + length)
        elif length:
            stretches.append((offset, length))
    return stretches


def check_seal(path: Path) -> None:
    """Read the seal and everything of the HDF5 file but its chunks. Raises BrokenSealError, OSError."""
    with path.open("rb") as stream:
        size = stream.seek(0, os.SEEK_END)
        if size < _SIZE:
            raise BrokenSealError("it is cut short")
        stream.seek(size - _SIZE)
        tail = stream.read(_SIZE)
        magic, length, number = _TAIL.unpack(tail[: _TAIL.size])
        if magic != MAGIC:
            raise BrokenSealError("it bears no seal")
        if length + 16 * number + _SIZE != size:
            raise BrokenSealError("its size is not the one it was sealed with")
        if _digest(stream, length, number, tail[: _TAIL.size]) != tail[_TAIL.size :]:
            raise BrokenSealError("it was changed or damaged after it was sealed")


def _digest(stream: BinaryIO, length: int, number: int, head: bytes) -> bytes:
    """The table of `number` pairs lies at `length`; it is never read whole, for a stranger's may be huge."""
    digest = hashlib.sha256()
    for start, end in chain(_gaps(stream, length, number), [(length, length + 16 * number)]):
        for block in _blocks(stream, start, end):
            digest.update(block)
    digest.update(head)
    return digest.digest()


def _gaps(stream: BinaryIO, length: int, number: int) -> Iterator[Stretch]:
    """(start, end) of what lies between the stretches."""
    last = 0
    for block in _blocks(stream, length, length + 16 * number):
        for offset, extent in struct.iter_unpack("<QQ", block):
            if offset < last or not extent or offset + extent > length:
                raise BrokenSealError("the table of its seal is damaged")
            if offset > last:
                yield last, offset
            last = offset + extent
    if length > last:
        yield last, length


def _blocks(stream: BinaryIO, start: int, end: int) -> Iterator[bytes]:
    while start < end:
        stream.seek(start)
        block = stream.read(min(end - start, _BLOCK))
        if len(block) < min(end - start, _BLOCK):
            raise BrokenSealError("it is cut short")
        yield block
        start += len(block)
