"""Owns writing an artifact: whole under its own name, or visibly unfinished as NAME.partial, never between."""

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from errno import ENOSPC
from os import strerror
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import h5py
import numpy as np
from numpy.typing import NDArray

import calseg_cli
from calseg_cli.artifacts.geometry import Geometry
from calseg_cli.artifacts.kinds import FORMAT, SCHEMA, find_kind
from calseg_cli.artifacts.whole_file import sync
from calseg_cli.errors import ArtifactError, CalsegError, disk_errors

Array = NDArray[Any]
_CHUNK_BYTES = 512 * 1024  # h5py's guidance is 10 KiB to 1 MiB
_SPARE = 2 * 1024**2  # bytes that must stay free: HDF5 cannot even close a file on a full disk
_JSON_LIMIT = 60_000  # HDF5 keeps attributes of up to 64 KiB in the object header


class ArtifactWriter:
    """A context manager that writes one artifact; leaving it without an exception gives the file its name.

    `meta` holds JSON tables such as classes, protocol, provenance, config. The content digest covers names, shapes,
    types and values of all arrays and the tables `classes` and `protocol`, not the file's bytes: compression, time
    and provenance do not change it.
    """

    def __init__(
        self,
        path: Path,
        kind: str,
        *,
        meta: Mapping[str, Any],
        compression: str = "gzip",
        force: bool = False,
    ) -> None:
        self.path = path
        self.partial = path.with_name(path.name + ".partial")
        self._kind = find_kind(kind)
        self._meta = {name: json.dumps(table, sort_keys=True, ensure_ascii=False) for name, table in meta.items()}
        self._compression = compression
        self._index: list[dict[str, Any]] = []
        self._seen: set[str] = set()
        self._arrays: dict[str, str] = {}
        self._file: h5py.File | None = None
        self.digest = ""
        if path.exists() and not force:
            raise ArtifactError(f"{path} exists already", "--force replaces it, -o names another")

    def __enter__(self) -> Self:
        with disk_errors(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._need_space(0)
            self._file = h5py.File(self.partial, "w")
            self._file.attrs.update(
                {
                    "format": FORMAT,
                    "schema": f"{SCHEMA[0]}.{SCHEMA[1]}",
                    "kind": self._kind.name,
                    "kind_version": self._kind.version,
                    "complete": False,
                    "created_utc": datetime.now(UTC).isoformat(timespec="seconds"),
                    "calseg_version": calseg_cli.__version__,
                }
            )
            meta = self._file.create_group("meta")
            for name, text in self._meta.items():
                if len(text.encode()) < _JSON_LIMIT:
                    meta.attrs[name] = text
                else:
                    meta.create_dataset(name, data=text, dtype=h5py.string_dtype())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._finish()
            return
        self._close()
        self.partial.unlink(missing_ok=True)

    def add_item(
        self, name: str, arrays: Mapping[str, Array], geometry: Geometry | None = None, *, image_digest: str = ""
    ) -> None:
        """Write one image's arrays, and the digest of the image file that they were made from.

        Raises ArtifactError for a second item of that name or values out of range, DiskFullError before the disk is.
        """
        if name in self._seen:
            raise ArtifactError(f"{self.path.name}: the item {name!r} is there already", "give images distinct ids")
        if self._kind.has_geometry and geometry is None:
            raise ValueError(f"an item of kind {self._kind.name} needs its geometry")
        with disk_errors(self.path), _hdf5_errors(self.path):
            self._need_space(sum(array.nbytes for array in arrays.values()))
            group = self._open_file().create_group(f"items/{len(self._index):06d}")
            digests = [
                f"{key}={self._write(group, key, arrays[key], chunked=True)}" for key in self._check(name, arrays)
            ]
            group.attrs["id"] = name
            facts = {"image_digest": image_digest, **(geometry.to_attrs() if geometry else {})}
            group.attrs.update(facts)
            self._open_file().flush()
        self._seen.add(name)
        self._index.append({"id": name, **facts, "digest": _sha("\n".join([name, json.dumps(facts), *digests]))})

    def _check(self, name: str, arrays: Mapping[str, Array]) -> Sequence[str]:
        for key, (letters, dimensions) in self._kind.item.items():
            array = arrays[key]
            if array.dtype.kind not in letters or array.ndim != dimensions:
                raise ValueError(f"{key} of {name!r} is {array.dtype} with {array.ndim} dimensions")
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                raise ArtifactError(
                    f"{key} of {name!r} holds values that are not finite in {array.dtype}",
                    "predict.logits_dtype=float32 keeps what float16 cannot hold; NaN means the network is broken",
                )
        return sorted(arrays)

    def add_array(self, name: str, array: Array) -> None:
        """Write an array that belongs to the whole artifact, such as a histogram."""
        with disk_errors(self.path), _hdf5_errors(self.path):
            self._need_space(array.nbytes)
            self._arrays[name] = self._write(self._open_file().require_group("arrays"), name, array, chunked=False)

    def _write(self, group: h5py.Group, name: str, array: Array, *, chunked: bool) -> str:
        if array.dtype.kind in "UO":
            group.create_dataset(name, data=array.astype(object), dtype=h5py.string_dtype())
            return array_digest(array)
        packed: dict[str, Any] = {"fletcher32": True} if array.size and array.ndim else {}
        if packed and self._compression == "gzip":
            packed.update(compression="gzip", compression_opts=1, shuffle=True)
        if packed and chunked and array.ndim == 3:
            packed["chunks"] = _chunk(array)
        group.create_dataset(name, data=array, **packed)
        return array_digest(array)

    def _finish(self) -> None:
        with disk_errors(self.path), _hdf5_errors(self.path):
            file = self._open_file()
            if self._index:
                index = file.create_group("index")
                for column in self._index[0]:
                    values = [row[column] for row in self._index]
                    text = isinstance(values[0], str)
                    index.create_dataset(column, data=values, dtype=h5py.string_dtype() if text else None)
            self.digest = content_digest(
                self._kind.name, self._meta, [str(row["digest"]) for row in self._index], self._arrays
            )
            file.attrs["content_digest"] = self.digest
            file.attrs["complete"] = True
            self._close()
            sync(self.partial)
            self.partial.replace(self.path)
            sync(self.path.parent)

    def _need_space(self, size: int) -> None:
        """Raise the error of a full disk before HDF5 meets one: it would take the process with it."""
        if shutil.disk_usage(self.path.parent).free < size + _SPARE:
            raise OSError(ENOSPC, strerror(ENOSPC))

    def _open_file(self) -> h5py.File:
        if self._file is None:
            raise ValueError("an ArtifactWriter is used inside its `with` block")
        return self._file

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


@contextmanager
def _hdf5_errors(path: Path) -> Iterator[None]:
    """HDF5 reports a full disk as OSError or RuntimeError without errno; name the file at least."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise CalsegError(f"{path} could not be written: {error}", "is the disk full?") from error


def _chunk(array: Array) -> tuple[int, int, int]:
    """(C,t,t) with the largest t of 128, 64, 32 whose chunk stays under 512 KiB: a crop touches few chunks."""
    planes, height, width = array.shape
    tile = next((t for t in (128, 64, 32) if planes * t * t * array.itemsize <= _CHUNK_BYTES), 32)
    return planes, min(tile, height), min(tile, width)


def _sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def array_digest(array: Array) -> str:
    """sha256 over type, shape and values (little-endian, row-major)."""
    if array.dtype.kind in "UO":
        return _sha(json.dumps([str(value) for value in array.ravel()]) + str(array.shape))
    little = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
    head = f"{little.dtype.str} {little.shape}".encode()
    return hashlib.sha256(head + little.tobytes()).hexdigest()


def content_digest(kind: str, meta: Mapping[str, str], items: Sequence[str], arrays: Mapping[str, str]) -> str:
    """The digest of a whole artifact from the digests of its parts."""
    parts = [kind, meta.get("classes", ""), meta.get("protocol", ""), *items]
    parts += [f"{name}={digest}" for name, digest in sorted(arrays.items())]
    return f"sha256:{_sha(chr(10).join(parts))}"
