"""Owns reading an artifact: checked at opening, lazy in every process, deaf to what a stranger may plant."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import h5py
import numpy as np
from numpy.typing import NDArray

from calseg_cli.artifacts.geometry import Geometry
from calseg_cli.artifacts.kinds import FORMAT, IGNORED_CLASS, LARGEST_SIDE, SCHEMA, Kind, class_hash, find_kind
from calseg_cli.artifacts.policy import check_attributes, check_dataset, links, member, packing
from calseg_cli.artifacts.safe_open import hdf5_reading, open_hdf5, safe_open
from calseg_cli.artifacts.text import attribute, texts
from calseg_cli.errors import ArtifactError

Array = NDArray[Any]
_GEOMETRY = {  # a column of the list, and the least and the largest value it may hold
    "in_hw": (1, LARGEST_SIDE),
    "out_hw": (1, LARGEST_SIDE),
    "pad": (0, LARGEST_SIDE),
    "stride": (1, LARGEST_SIDE),
    "align_corners": (0, 1),
}


class Artifact:
    """What a consumer sees of an artifact, be it one file or several shards; `open_artifact` makes one.

    `ids` are the items in their order, `positions` their places in it, `item_digests` their digests by id; `meta` holds
    the JSON tables. Holds no open file when pickled, and opens its own in each process that reads.
    """

    path: Path
    kind: Kind
    digest: str
    attrs: dict[str, Any]
    meta: dict[str, Any]
    ids: list[str]
    positions: dict[str, int]
    item_digests: dict[str, str]
    array_names: list[str]

    def __len__(self) -> int:
        return len(self.ids)

    def __contains__(self, name: object) -> bool:
        return name in self.positions

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def class_names(self) -> list[str]:
        """The class list that the artifact was written with; empty where it has none."""
        return [str(name) for name in self.meta.get("classes", {}).get("names", [])]

    @property
    def class_hash(self) -> str:
        """The digest of the class list and the ignored index."""
        return class_hash(self.class_names, int(self.meta.get("classes", {}).get("ignore", IGNORED_CLASS)))

    @property
    def files(self) -> list[Path]:
        """The HDF5 files behind it."""
        return [self.path]

    def items(self, key: str) -> Iterator[tuple[str, Array]]:
        """(id, array) of every image in the artifact's order."""
        for name in self.ids:
            yield name, self.item(name, key)

    def arrays(self) -> dict[str, Array]:
        """All arrays of the whole artifact by name."""
        return {name: self.array(name) for name in self.array_names}

    def sizes(self) -> list[tuple[int, int]]:
        """The distinct sizes (H,W) of the images, smallest first."""
        return sorted({self.geometry(name).out_hw for name in self.ids}) if self.kind.has_geometry else []

    def facts(self) -> dict[str, Any]:
        """What `calseg inspect` shows: plain values, no arrays of images."""
        return {
            "file": str(self.path),
            "bytes": sum(path.stat().st_size for path in self.files),
            **self.attrs,
            "images": len(self),
            "image_sizes": [f"{height}x{width}" for height, width in self.sizes()],
            "class_hash": self.class_hash,
            **self.meta,
            "arrays": {name: list(self.array(name).shape) for name in self.array_names},
        }

    def missing(self, name: str) -> ArtifactError:
        """The error for an image that is not there."""
        return ArtifactError(f"{self.path} has no image {name!r}", f"it holds {len(self)}; is it another split?")

    def close(self) -> None:
        """Close this process's files; the next read opens them again."""
        raise NotImplementedError

    def geometry(self, name: str) -> Geometry:
        """Where the item's grid lies on its image."""
        raise NotImplementedError

    def image_digest(self, name: str) -> str:
        """The digest of the image file that the item was made from; empty where it was not recorded."""
        raise NotImplementedError

    def keys(self, name: str) -> list[str]:
        """The names of the item's arrays."""
        raise NotImplementedError

    def item(self, name: str, key: str) -> Array:
        """One array of one image. Raises ArtifactError where it is missing or damaged."""
        raise NotImplementedError

    def form(self, name: str, key: str) -> tuple[tuple[int, ...], str, str]:
        """Shape, type and packing of one array of one image, without reading it."""
        raise NotImplementedError

    def item_facts(self, name: str) -> dict[str, Any]:
        """What the item's own group says of it: id, geometry, digests of the image, of each array, of all of it."""
        raise NotImplementedError

    def array(self, name: str) -> Array:
        """An array of the whole artifact; text comes back as an array of str."""
        raise NotImplementedError

    def has(self, name: str, key: str) -> bool:
        """Whether the item has that array."""
        return key in self.keys(name)


class FileArtifact(Artifact):
    """An artifact in one HDF5 file."""

    def __init__(
        self, path: Path, *, sealed: bool = True, explain: bool = True, handle: h5py.File | None = None
    ) -> None:
        self.path = path
        self._handle: h5py.File | None = handle or safe_open(path, sealed=sealed, explain=explain)
        self._owner, self._stamp = os.getpid(), _stamp(path)
        try:
            with hdf5_reading(path):
                self._load()
        except BaseException:
            self.close()
            raise

    def _load(self) -> None:
        file = self._open()
        self.attrs = {name: attribute(file, name) for name in file.attrs}
        self._quick_check()
        self.kind = find_kind(str(self.attrs["kind"]))
        self.digest = str(self.attrs.get("content_digest", ""))
        self.meta = self._read_meta()
        self._index = self._read_index()
        self.ids = [str(name) for name in self._index.get("id", ())]
        self._check_index()
        self._check_description()
        self.positions = dict(zip(self.ids, self._index.get("position", np.zeros(0, int)).tolist(), strict=True))
        self._rows = {name: row for row, name in enumerate(self.ids)}
        self.item_digests = dict(zip(self.ids, map(str, self._index.get("digest", ())), strict=True))
        self.array_names = sorted(links(file["arrays"], "/arrays", most=None)) if "arrays" in file else []
        missing = sorted(self.kind.arrays - set(self.array_names))
        if missing:
            raise ArtifactError(f"{self.path} lacks the array {missing[0]} of kind {self.kind.name}", "write it again")

    def _quick_check(self) -> None:
        attrs = self.attrs
        if attrs.get("format") != FORMAT:
            raise ArtifactError(f"{self.path} is an HDF5 file, but no calseg artifact", "name a file that calseg wrote")
        if int(str(attrs.get("schema", "0")).split(".")[0]) > SCHEMA[0]:
            raise ArtifactError(f"{self.path} has format {attrs['schema']} of a newer calseg", "upgrade calseg")
        if not attrs.get("complete"):
            raise ArtifactError(f"{self.path} is unfinished: its writer was stopped", "run the stage with --resume")

    def _check_index(self) -> None:
        file = self._open()
        grouped = file["items"].id.get_num_objs() if "items" in file else 0
        rows = {len(column) for column in self._index.values()}
        if rows - {len(self.ids)} or grouped != len(self.ids) or len(set(self.ids)) != len(self.ids):
            raise ArtifactError(
                f"{self.path} is damaged: its list names {len(self.ids)} items and {grouped} are there",
                "write it again",
            )
        wanted = {"position", "digest", *(_GEOMETRY if self.kind.has_geometry else ())} if self.ids else set()
        if wanted - set(self._index):
            lacking = ", ".join(sorted(wanted - set(self._index)))
            raise ArtifactError(f"{self.path} is damaged: its list lacks {lacking}", "write it again")
        for name, (least, most) in _GEOMETRY.items() if self.kind.has_geometry and self.ids else ():
            column = self._index[name]
            if column.dtype.kind not in "iub" or column.min() < least or column.max() > most:
                raise ArtifactError(f"{self.path}: {name} of an image is not {least} to {most}", "write it again")

    def _check_description(self) -> None:
        classes = self.meta.get("classes")
        if classes is not None and not _is_class_table(classes):
            raise ArtifactError(f"{self.path} is damaged: its class list cannot be read", "write it again")
        if self.ids and classes is None:
            raise ArtifactError(f"{self.path} is damaged: it has no class list", "write it again")

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_handle": None, "_owner": -1}

    def close(self) -> None:
        """Close this process's file; the next read opens it again."""
        if self._handle is not None and self._owner == os.getpid():
            self._handle.close()
        self._handle = None

    def geometry(self, name: str) -> Geometry:
        """Where the item's grid lies on its image."""
        row = self._row(name)
        with hdf5_reading(self.path):
            return Geometry.from_attrs({key: column[row] for key, column in self._index.items()})

    def image_digest(self, name: str) -> str:
        """The digest of the image file that the item was made from; empty where it was not recorded."""
        row, column = self._row(name), self._index.get("image_digest")
        return str(column[row]) if column is not None else ""

    def keys(self, name: str) -> list[str]:
        """The names of the item's arrays."""
        with hdf5_reading(self.path):
            return sorted(links(self._group(name), self._place(name), most=16))

    def item(self, name: str, key: str) -> Array:
        """One array of one image. Raises ArtifactError where it is missing or damaged."""
        with hdf5_reading(self.path):
            return np.asarray(self.check(name, key)[()])

    def check(self, name: str, key: str) -> Any:
        """The dataset of one array of one image, held against the rules and its kind. Raises ArtifactError."""
        with hdf5_reading(self.path):
            group, place = self._group(name), self._place(name)
            dataset = member(group, key, place)
            check_dataset(dataset, f"{place}/{key}")
            wanted = self.kind.item.get(key)
            if wanted is not None and (dataset.dtype.name not in wanted.types or dataset.ndim != wanted.dimensions):
                raise ArtifactError(
                    f"{self.path}: {place}/{key} is no {key} of kind {self.kind.name}", "write it again"
                )
            return dataset

    def form(self, name: str, key: str) -> tuple[tuple[int, ...], str, str]:
        """Shape, type and packing of one array of one image, without reading it."""
        dataset = self.check(name, key)
        return tuple(dataset.shape), dataset.dtype.name, packing(dataset)

    def item_facts(self, name: str) -> dict[str, Any]:
        """What the item's own group says of it: id, geometry, digests of the image, of each array, of all of it."""
        with hdf5_reading(self.path):
            group = self._group(name)
            check_attributes(group, self._place(name))
            facts = json.loads(str(attribute(group, "facts")))
            if not isinstance(facts, dict) or not isinstance(facts.get("arrays"), dict):
                raise ValueError(f"the facts of {self._place(name)} are no table")
            return facts

    def array(self, name: str) -> Array:
        """An array of the whole artifact; text comes back as an array of str."""
        with hdf5_reading(self.path):
            file = self._open()
            if name not in self.array_names:
                raise ArtifactError(f"{self.path} lacks the array {name}", "write it again")
            return self._values(file["arrays"], name, f"/arrays/{name}")

    def _read_meta(self) -> dict[str, Any]:
        file = self._open()
        if "meta" not in file:
            raise ArtifactError(f"{self.path} is damaged: it has no description", "write it again")
        group = file["meta"]
        tables = {
            name: json.loads(str(self._values(group, name, f"/meta/{name}")))
            for name in links(group, "/meta", most=None)
        }
        wrong = [name for name, table in tables.items() if not isinstance(table, dict)]
        if wrong:
            raise ArtifactError(f"{self.path} is damaged: /meta/{wrong[0]} is no table", "write it again")
        return tables

    def _read_index(self) -> dict[str, Array]:
        file = self._open()
        if "index" not in file:
            return {}
        group = file["index"]
        return {name: self._values(group, name, f"/index/{name}") for name in links(group, "/index", most=None)}

    def _values(self, group: h5py.Group, name: str, place: str) -> Array:
        dataset = member(group, name, place.rpartition("/")[0])
        check_dataset(dataset, place)
        return texts(np.asarray(dataset[()]), place)

    def _row(self, name: str) -> int:
        if name not in self._rows:
            raise self.missing(name)
        return self._rows[name]

    def _place(self, name: str) -> str:
        return f"/items/{self.positions[name]:06d}"

    def _group(self, name: str) -> Any:
        self._row(name)
        group = member(self._open()["items"], f"{self.positions[name]:06d}", "/items")
        if not isinstance(group, h5py.Group):
            raise ArtifactError(f"{self.path}: {self._place(name)} is no group", "write it again")
        return group

    def _open(self) -> h5py.File:
        if self._handle is None or self._owner != os.getpid():
            # Never close a handle that a fork inherited: it is the parent's.
            if _stamp(self.path) != self._stamp:
                raise ArtifactError(f"{self.path} was replaced while it was being read", "run the command again")
            self._handle, self._owner = open_hdf5(self.path), os.getpid()
        return self._handle


def _is_class_table(table: Mapping[str, Any]) -> bool:
    names, palette = table.get("names"), table.get("palette")
    return (
        isinstance(names, list)
        and isinstance(palette, list)
        and len(names) == len(palette)
        and all(isinstance(name, str) for name in names)
        and all(isinstance(c, list) and len(c) == 3 and all(isinstance(v, int) for v in c) for c in palette)
        and isinstance(table.get("ignore", IGNORED_CLASS), int)
    )


def _stamp(path: Path) -> tuple[int, int]:
    try:
        stat = path.stat()
    except OSError as error:
        raise ArtifactError(f"{path} is gone", "run the command again") from error
    return stat.st_size, stat.st_mtime_ns


def open_artifact(
    path: Path,
    kind: str | None = None,
    *,
    classes: Mapping[str, Any] | None = None,
    sealed: bool = True,
    explain: bool = True,
) -> Artifact:
    """Open an artifact, or the manifest (.json) of its shards, after the quick check.

    Raises ArtifactError: missing, no HDF5, damaged, unfinished, newer, against a rule, of another `kind`, or with a
    class list other than that of the table `classes`. `sealed` and `explain` are those of `safe_open`.
    """
    if path.suffix == ".json" and path.is_file():
        from calseg_cli.artifacts.shards import ShardedArtifact

        artifact: Artifact = ShardedArtifact(path)
    else:
        artifact = FileArtifact(path, sealed=sealed, explain=explain)
    try:
        check_kind(artifact, kind)
        if classes is not None:
            check_classes(artifact, classes["names"], int(classes.get("ignore", IGNORED_CLASS)))
    except ArtifactError:
        artifact.close()
        raise
    return artifact


def check_kind(artifact: Artifact, kind: str | None) -> None:
    """Raise ArtifactError for an artifact of another kind."""
    if kind is not None and artifact.kind.name != kind:
        raise ArtifactError(
            f"{artifact.path} holds {artifact.kind.name}, not {kind}", f"give an artifact of kind {kind}"
        )


def check_classes(artifact: Artifact, names: Sequence[str], ignore: int = IGNORED_CLASS) -> None:
    """Raise ArtifactError where the class list is another one, saying at which class the two part."""
    if artifact.class_hash == class_hash(names, ignore):
        return
    found = artifact.class_names
    part = next((n for n, (a, b) in enumerate(zip(found, names, strict=False)) if a != b), None)
    if part is not None:
        where = f"class {part} is {found[part]!r} there and {names[part]!r} here"
    elif len(found) != len(names):
        where = f"it has {len(found)} classes and not {len(names)}"
    else:
        where = f"the ignored index is not {ignore}"
    raise ArtifactError(
        f"{artifact.path} was written for another class list: {where}",
        "use the configuration it was written with, or make it again with this one",
    )
