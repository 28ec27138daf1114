"""Owns unpacking chunks within bounds: HDF5 inflates a chunk to whatever its stream holds before it looks at the size.

A chunk of 3 MB can hold a stream of 3 GB. Here a chunk is unpacked to the size that it was declared with and not a byte
further, which costs no more time than HDF5 takes.
"""

import zlib
from collections.abc import Iterator
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from calseg_cli.artifacts.policy import RefusedError

_DEFLATE, _SHUFFLE, _CHECKSUM, _BITSHUFFLE, _ZSTD = 1, 2, 3, 32008, 32015
_CHECKSUM_BYTES = 4
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"

Filter = tuple[int, int]  # its code, and the size of a value for those that need it


def read_bounded(dataset: h5py.Dataset, place: str, *, proven: bool) -> NDArray[Any]:
    """All values of a dataset that passed the rules; `place` is its name for messages.

    `proven` says that the caller takes a digest of the values; without it HDF5's own checksum is looked at as well.
    Raises RefusedError for a chunk that unpacks to another size than the one declared.
    """
    filters = _filters(dataset)
    codes = [code for code, _ in filters]
    if proven and _DEFLATE in codes:
        return _inflated(dataset, filters, place)
    for offset, mask, raw in _chunks(dataset) if {_DEFLATE, _BITSHUFFLE, _ZSTD} & set(codes) else ():
        if _unpacked_size(raw, mask, filters, _chunk_bytes(dataset)) != _chunk_bytes(dataset):
            raise _wrong_size(place, offset)
    return native(np.asarray(dataset[()]))


def _inflated(dataset: h5py.Dataset, filters: list[Filter], place: str) -> NDArray[Any]:
    values = np.zeros(dataset.shape, dataset.dtype)
    size, steps = _chunk_bytes(dataset), dataset.chunks
    for offset, mask, raw in _chunks(dataset):
        chunk = _unpacked(raw, mask, filters, size)
        if len(chunk) != size:
            raise _wrong_size(place, offset)
        block = np.frombuffer(chunk, dataset.dtype).reshape(steps)
        region = tuple(slice(o, o + step) for o, step in zip(offset, steps, strict=True))
        rest = values[region].shape
        values[region] = block[tuple(slice(length) for length in rest)]
    return native(values)


def _chunks(dataset: h5py.Dataset) -> Iterator[tuple[tuple[int, ...], int, bytes]]:
    """(offset in values, mask of the filters that were left out, packed bytes) of each chunk."""
    offsets: list[tuple[int, ...]] = []
    if dataset.chunks is not None:
        dataset.id.chunk_iter(lambda info: offsets.append(info.chunk_offset))
    for offset in offsets:
        mask, raw = dataset.id.read_direct_chunk(offset)
        yield offset, mask, raw


def _filters(dataset: h5py.Dataset) -> list[Filter]:
    properties = dataset.id.get_create_plist()
    found = [properties.get_filter(number) for number in range(properties.get_nfilters())]
    return [(code, int(values[0]) if values else 1) for code, _, values, _ in found]


def _chunk_bytes(dataset: h5py.Dataset) -> int:
    return int(np.prod(dataset.chunks)) * int(dataset.id.get_type().get_size())


def _unpacked(raw: bytes, mask: int, filters: list[Filter], size: int) -> bytes:
    """A chunk without its filters, of which deflate may be one; cut off just behind `size` bytes."""
    for number, (code, width) in reversed(list(enumerate(filters))):
        if mask >> number & 1:
            continue
        if code == _DEFLATE:
            raw = _inflate(raw, size + _CHECKSUM_BYTES + 1)
        elif code == _CHECKSUM:
            raw = raw[:-_CHECKSUM_BYTES]
        elif code == _SHUFFLE:
            raw = _unshuffled(raw, width)
    return raw


def _inflate(raw: bytes, most: int) -> bytes:
    try:
        return zlib.decompressobj().decompress(raw, most)
    except zlib.error as error:
        raise RefusedError(f"a chunk is damaged ({error})") from error


def _unshuffled(raw: bytes, width: int) -> bytes:
    """HDF5's shuffle undone: it stores first the first byte of all values, then the second; a rest stays behind."""
    count = len(raw) // width if width > 1 else 0
    if not count:
        return raw
    values = np.empty((count, width), np.uint8)
    for number, plane in enumerate(np.frombuffer(raw, np.uint8, count * width).reshape(width, count)):
        values[:, number] = plane
    return values.tobytes() + raw[count * width :]


def _unpacked_size(raw: bytes, mask: int, filters: list[Filter], size: int) -> int:
    """How many bytes a chunk unpacks to, at least as far as it exceeds `size`."""
    for number, (code, _) in enumerate(filters):
        if code in (_ZSTD, _BITSHUFFLE) and not mask >> number & 1:
            return _announced(raw, code)
    return len(_unpacked(raw, mask, filters, size))


def _announced(raw: bytes, code: int) -> int:
    """The size at the head of a packed chunk, for which the plug-in makes room; -1 where there is none.

    Bitshuffle: 8 bytes, big-endian. Zstandard: RFC 8878, section 3.1.1.1.
    """
    if code == _BITSHUFFLE:
        return int.from_bytes(raw[:8], "big")
    if raw[:4] != _ZSTD_MAGIC or len(raw) < 5:
        return -1
    flag, single = raw[4] >> 6, raw[4] >> 5 & 1
    width = (1 if single else 0, 2, 4, 8)[flag]
    start = 5 + (0 if single else 1) + (0, 1, 2, 4)[raw[4] & 3]
    return int.from_bytes(raw[start : start + width], "little") + (256 if width == 2 else 0) if width else -1


def native(values: NDArray[Any]) -> NDArray[Any]:
    """Values in the machine's own byte order, which is the only one that torch takes."""
    return values.astype(values.dtype.newbyteorder("="), copy=False)


def _wrong_size(place: str, offset: tuple[int, ...]) -> RefusedError:
    return RefusedError(f"{place} has a chunk, at {offset}, that unpacks to another size than it claims")
