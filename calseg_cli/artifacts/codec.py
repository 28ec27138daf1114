"""Owns how values are packed: chunks that a crop can be read from, and the filters behind each name."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from calseg_cli.errors import MissingExtraError

COMPRESSIONS = ("gzip", "none", "zstd", "bitshuffle")
_CHUNK_BYTES = 512 * 1024  # h5py's guidance is 10 KiB to 1 MiB
_CONTIGUOUS = 64 * 1024  # bytes; smaller arrays of the whole stay in one piece, which the seal covers


def item_options(array: NDArray[Any], compression: str) -> dict[str, Any]:
    """The options of h5py's create_dataset for an array of an image: chunks, checksum, packing.

    Raises MissingExtraError where the codec is not installed.
    """
    return {"chunks": chunk_shape(array.shape, array.itemsize), "fletcher32": True, **_packing(compression)}


def array_options(array: NDArray[Any], compression: str) -> dict[str, Any]:
    """The same for an array of the whole."""
    if array.nbytes < _CONTIGUOUS or not array.ndim:
        return {}
    return {"chunks": _slab(array.shape, array.itemsize), "fletcher32": True, **_packing(compression)}


def _slab(shape: tuple[int, ...], itemsize: int) -> tuple[int, ...]:
    """As many whole rows, planes, ... as stay under 512 KiB."""
    for axis in range(len(shape)):
        inner = int(np.prod(shape[axis + 1 :])) * itemsize
        if inner <= _CHUNK_BYTES:
            return (1,) * axis + (min(shape[axis], _CHUNK_BYTES // inner), *shape[axis + 1 :])
    return (1,) * len(shape)


def chunk_shape(shape: tuple[int, ...], itemsize: int) -> tuple[int, ...]:
    """(C,t,t) or (t,t) with the largest t whose chunk stays under 512 KiB: a crop touches few chunks.

    >>> chunk_shape((19, 256, 512), 2), chunk_shape((1024, 2048), 1)
    ((19, 64, 64), (512, 512))
    """
    planes = int(np.prod(shape[:-2]))
    sides = (512, 256, 128, 64, 32)
    tile = next((t for t in sides if planes * t * t * itemsize <= _CHUNK_BYTES), 32)
    return (*shape[:-2], *(min(tile, length) for length in shape[-2:]))


def _packing(compression: str) -> dict[str, Any]:
    if compression == "none":
        return {}
    if compression == "gzip":
        return {"compression": "gzip", "compression_opts": 1, "shuffle": True}
    try:
        import hdf5plugin
    except ImportError as error:
        raise MissingExtraError("hdf5plugin", "fast-io", f"the compression {compression}") from error
    if compression == "zstd":
        return {**hdf5plugin.Zstd(clevel=3), "shuffle": True}
    if compression == "bitshuffle":
        return dict(hdf5plugin.Bitshuffle(cname="lz4"))
    raise ValueError(f"unknown compression {compression!r}")
