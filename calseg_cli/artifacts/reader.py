"""Owns reading an artifact: checked at opening, lazy in every process, deaf to what a stranger may plant."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import h5py
import numpy as np
from numpy.typing import NDArray

from calseg_cli.artifacts.geometry import Geometry
from calseg_cli.artifacts.kinds import FORMAT, SCHEMA, Kind, find_kind
from calseg_cli.artifacts.writer import array_digest
from calseg_cli.errors import ArtifactError

Array = NDArray[Any]
_LARGEST_ITEM = 4 * 1024**3  # bytes; no logits of a legal image are larger, and a zero-filled bomb is


class Artifact:
    """An artifact opened for reading; `open_artifact` makes one.

    Holds no open file when pickled, and opens its own in each process that reads.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._handle: h5py.File | None = None
        self._owner = -1
        attrs = self._quick_check()
        self.kind: Kind = find_kind(str(attrs["kind"]))
        self.digest = str(attrs["content_digest"])
        self.attrs = attrs
        self.meta = self._read_meta()
        self._index = self._read_index()
        self.ids: list[str] = [str(name) for name in self._index.get("id", [])]
        self._place = {name: number for number, name in enumerate(self.ids)}

    def __len__(self) -> int:
        return len(self.ids)

    def __contains__(self, name: str) -> bool:
        return name in self._place

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_handle": None, "_owner": -1}

    def close(self) -> None:
        """Close this process's file; the next read opens it again."""
        if self._handle is not None and self._owner == os.getpid():
            self._handle.close()
        self._handle = None

    @property
    def class_names(self) -> list[str]:
        """The class list that the artifact was written with."""
        return [str(name) for name in self.meta["classes"]["names"]]

    def geometry(self, name: str) -> Geometry:
        """Where the item's grid lies on its image."""
        number = self._number(name)
        return Geometry.from_attrs({key: column[number] for key, column in self._index.items()})

    def image_digest(self, name: str) -> str:
        """The digest of the image file that the item was made from; empty where it was not recorded."""
        column = self._index.get("image_digest")
        return str(column[self._number(name)]) if column is not None else ""

    def item(self, name: str, key: str) -> Array:
        """One array of one image. Raises ArtifactError where it is missing or damaged."""
        return self._read(f"items/{self._number(name):06d}/{key}")

    def array(self, name: str) -> Array:
        """An array of the whole artifact; text comes back as an array of str."""
        array = self._read(f"arrays/{name}")
        return np.array([_text(value) for value in array]) if array.dtype.kind == "O" else array

    def arrays(self) -> dict[str, Array]:
        """All arrays of the whole artifact by name."""
        names = sorted(self._open()["arrays"]) if "arrays" in self._open() else []
        return {name: self.array(name) for name in names}

    def items(self, key: str) -> Iterator[tuple[str, Array]]:
        """(id, array) of every image in the order written."""
        for name in self.ids:
            yield name, self.item(name, key)

    def facts(self) -> dict[str, Any]:
        """What `calseg inspect` shows: plain values, no arrays."""
        sizes = [tuple(size) for size in self._index["out_hw"].tolist()] if "out_hw" in self._index else []
        return {
            "file": str(self.path),
            "bytes": self.path.stat().st_size,
            **{name: _plain(value) for name, value in self.attrs.items()},
            "images": len(self),
            "image_sizes": [f"{h}x{w}" for h, w in sorted(set(sizes))],
            **self.meta,
            "arrays": {name: list(array.shape) for name, array in self.arrays().items()},
        }

    def _number(self, name: str) -> int:
        if name not in self._place:
            raise ArtifactError(f"{self.path} has no image {name!r}", f"it holds {len(self)}; is it another split?")
        return self._place[name]

    def _open(self) -> h5py.File:
        if self._handle is None or self._owner != os.getpid():
            # Never close a handle that a fork inherited: it is the parent's.
            self._handle, self._owner = _open_file(self.path), os.getpid()
        return self._handle

    def _quick_check(self) -> dict[str, Any]:
        attrs = dict(self._open().attrs)
        if attrs.get("format") != FORMAT:
            raise ArtifactError(f"{self.path} is an HDF5 file, but no calseg artifact", "name a file that calseg wrote")
        if int(str(attrs.get("schema", "0")).split(".")[0]) > SCHEMA[0]:
            raise ArtifactError(f"{self.path} has format {attrs['schema']} of a newer calseg", "upgrade calseg")
        if not attrs.get("complete", False):
            raise ArtifactError(f"{self.path} is unfinished: its writer was stopped", "run the stage again")
        return attrs

    def _read_meta(self) -> dict[str, Any]:
        group = self._group("meta")
        texts = {name: _text(value) for name, value in group.attrs.items()}
        texts |= {name: _text(self._read(f"meta/{name}")[()]) for name in group}
        try:
            return {name: json.loads(text) for name, text in texts.items()}
        except ValueError as error:
            raise ArtifactError(f"{self.path}: its description is damaged ({error})", "write it again") from error

    def _read_index(self) -> dict[str, Array]:
        if "index" not in self._open():
            return {}
        columns = {name: self._read(f"index/{name}") for name in self._group("index")}
        return {
            name: np.array([_text(v) for v in column]) if column.dtype.kind == "O" else column
            for name, column in columns.items()
        }

    def _group(self, path: str) -> h5py.Group:
        return _walk(self._open(), self.path, path)

    def _read(self, path: str) -> Array:
        dataset = _walk(self._open(), self.path, path)
        _check_dataset(dataset, self.path, path)
        try:
            return np.asarray(dataset[()])
        except OSError as error:
            raise ArtifactError(f"{self.path}: {path} is damaged ({error})", "copy or write the file again") from error


def open_artifact(path: Path, kind: str | None = None) -> Artifact:
    """Open an artifact after the quick check. Raises ArtifactError: missing, no HDF5, unfinished, newer, other kind."""
    try:
        artifact = Artifact(path)
    except (KeyError, RuntimeError, OSError, ValueError, TypeError) as error:
        raise ArtifactError(
            f"{path} is damaged: its tables cannot be read ({error})", "copy or write it again"
        ) from error
    if kind is not None and artifact.kind.name != kind:
        raise ArtifactError(f"{path} holds {artifact.kind.name}, not {kind}", f"name an artifact of kind {kind}")
    return artifact


def item_digests(artifact: Artifact, key: str) -> dict[str, str]:
    """The digest of one array of every image, read from the data themselves."""
    return {name: array_digest(array) for name, array in artifact.items(key)}


def _open_file(path: Path) -> h5py.File:
    if not path.exists():
        partial = path.with_name(path.name + ".partial")
        hint = f"{partial.name} is there, unfinished" if partial.exists() else "check the path, or run the stage first"
        raise ArtifactError(f"there is no file {path}", hint)
    if path.is_dir():
        raise ArtifactError(f"{path} is a folder, not an artifact", "name the .h5 file in it")
    try:
        return h5py.File(path, "r")
    except OSError as error:
        raise ArtifactError(
            f"{path} cannot be read as HDF5: it is cut short or another kind of file", "write or copy it again"
        ) from error


def _walk(file: h5py.File, path: Path, name: str) -> Any:
    """The object of that name, refusing links out of the file at every step on the way."""
    node: Any = file
    for part in name.split("/"):
        link = node.get(part, getlink=True) if isinstance(node, h5py.Group) else None
        if link is None:
            raise ArtifactError(f"{path} lacks {name}", "write it again")
        if not isinstance(link, h5py.HardLink):
            raise ArtifactError(f"{path}: {name} points elsewhere, which calseg never writes", "do not trust this file")
        node = node[part]
    return node


def _check_dataset(dataset: Any, path: Path, name: str) -> None:
    if not isinstance(dataset, h5py.Dataset):
        raise ArtifactError(f"{path}: {name} is no dataset", "write it again")
    if dataset.external or dataset.is_virtual:
        raise ArtifactError(f"{path}: {name} keeps its data in other files", "do not trust this file")
    stored = max(dataset.id.get_storage_size(), 1)
    size = dataset.size * dataset.dtype.itemsize if dataset.size is not None else 0
    if size > _LARGEST_ITEM or (size > 1024**2 and size > 2000 * stored):
        raise ArtifactError(f"{path}: {name} claims {size} bytes and stores {stored}", "do not trust this file")


def _text(value: Any) -> str:
    return value.decode("utf-8") if isinstance(value, bytes) else str(value)


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value
