"""Owns reading an artifact: checked at opening, lazy in every process, deaf to what a stranger may plant."""

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import h5py
import numpy as np
from numpy.typing import NDArray

from calseg_cli.artifacts.digests import array_digest, content_digest, json_text
from calseg_cli.artifacts.geometry import Geometry
from calseg_cli.artifacts.kinds import IGNORED_CLASS, Kind, class_hash
from calseg_cli.artifacts.listing import check_facts, check_list, check_root, check_tables, check_values, json_table
from calseg_cli.artifacts.policy import RefusedError, check_attributes, check_dataset, links, member, packing
from calseg_cli.artifacts.safe_open import hdf5_reading, open_hdf5, safe_open
from calseg_cli.artifacts.text import attribute, read_text, texts
from calseg_cli.artifacts.unpack import native, read_bounded
from calseg_cli.errors import ArtifactError

Array = NDArray[Any]


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
            "arrays": self.array_shapes(),
        }

    def array_shapes(self) -> dict[str, list[int]]:
        """The shapes of the arrays of the whole by name, without reading one."""
        return {}

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
        self.path, self._proven = path, False
        self._seen: set[tuple[str, str]] = set()
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
        self.kind = check_root(self.path, self.attrs)
        self.digest = str(self.attrs.get("content_digest", ""))
        self.meta = self._read_meta()
        self._index = self._read_index()
        check_tables(self.meta, items=bool(self._index))
        self.ids = [str(name) for name in self._index.get("id", ())]
        if self.attrs["items"] != len(self.ids):
            raise RefusedError(f"it is incomplete: expected {self.attrs['items']} items, found {len(self.ids)}")
        self.positions = dict(zip(self.ids, self._index.get("position", np.zeros(0, int)).tolist(), strict=True))
        self._rows = {name: row for row, name in enumerate(self.ids)}
        self.item_digests = dict(zip(self.ids, map(str, self._index.get("digest", ())), strict=True))
        self.array_names = sorted(links(file["arrays"], "/arrays", most=None)) if "arrays" in file else []
        missing = sorted(self.kind.arrays - set(self.array_names))
        if missing:
            raise ArtifactError(f"{self.path} lacks the array {missing[0]} of kind {self.kind.name}", "write it again")

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
        """One array of one image, proved when first read. Raises ArtifactError: missing, or not what was written."""
        with hdf5_reading(self.path):
            if (
                name,
                key,
            ) in self._seen:  # in the same file; its chunks' checksums still hold
                return native(np.asarray(self._open()[f"{self._place(name)}/{key}"][()]))
            dataset, place = self.check(name, key), f"{self._place(name)}/{key}"
            values = read_bounded(dataset, place, proven=True)
            # HDF5's checksum takes zeros for a run of 0xFF, and two chunks that changed places for whole.
            if self.item_facts(name)["arrays"].get(key) != array_digest(values):
                told = f"{self.path} is damaged: {place} is not what was written"
                raise ArtifactError(told, "copy or write it again")
            check_values(values, place, len(self.class_names), self.kind)
            self._seen.add((name, key))
            return values

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
        """What the item's own group says of it: id, geometry, digests of the image, of each array, of all of it.

        Raises ArtifactError where that is not what the list says too.
        """
        with hdf5_reading(self.path):
            group, place = self._group(name), self._place(name)
            check_attributes(group, place)
            facts = json_table(str(attribute(group, "facts")), f"the facts of {place}")
            listed = {key: column[self._rows[name]].tolist() for key, column in self._index.items()}
            check_facts(facts, listed, place)
            return facts

    def array(self, name: str) -> Array:
        """An array of the whole artifact; text comes back as an array of str. The first call proves all of them."""
        with hdf5_reading(self.path):
            if name not in self.array_names:
                raise ArtifactError(f"{self.path} lacks the array {name}", "write it again")
            if not self._proven:
                self._prove()
            return self._read_array(name)

    def _read_array(self, name: str) -> Array:
        place = f"/arrays/{name}"
        return self._values(self._checked(self._open()["arrays"], name, place), place)

    def _prove(self) -> None:
        """Take the content digest again: the arrays have none each, and HDF5's checksum overlooks exchanged blocks."""
        tables = {name: json_text(table) for name, table in self.meta.items()}
        items = [(self.positions[name], digest) for name, digest in self.item_digests.items()]
        arrays = {name: array_digest(self._read_array(name)) for name in self.array_names}
        if content_digest(self.kind.name, tables, items, arrays) != self.digest:
            told = f"{self.path} is damaged: its arrays are not what was written"
            raise ArtifactError(told, "copy or write it again")
        self._proven = True

    def array_shapes(self) -> dict[str, list[int]]:
        """The shapes of the arrays of the whole by name, without reading one."""
        with hdf5_reading(self.path):
            group = self._open()["arrays"] if self.array_names else {}
            return {name: list(self._checked(group, name, f"/arrays/{name}").shape) for name in self.array_names}

    def _read_meta(self) -> dict[str, Any]:
        file = self._open()
        if "meta" not in file:
            raise ArtifactError(f"{self.path} is damaged: it has no description", "write it again")
        group = file["meta"]
        places = {name: f"/meta/{name}" for name in links(group, "/meta", most=None)}
        return {
            name: json_table(read_text(self._checked(group, name, place), place), place)
            for name, place in places.items()
        }

    def _read_index(self) -> dict[str, Array]:
        file = self._open()
        names = links(file["index"], "/index", most=None) if "index" in file else ()
        places = set(links(file["items"], "/items", most=None)) if "items" in file else set()
        datasets = {name: self._checked(file["index"], name, f"/index/{name}") for name in names}
        if any(len(dataset) != len(places) for dataset in datasets.values()):  # before anything so long is read
            raise RefusedError(f"its list and its items do not fit: {len(places)} items are there")
        columns = {name: self._values(dataset, f"/index/{name}") for name, dataset in datasets.items()}
        check_list(columns, self.kind, places)
        return columns

    def _checked(self, group: h5py.Group, name: str, place: str) -> h5py.Dataset:
        dataset = member(group, name, place.rpartition("/")[0])
        check_dataset(dataset, place)
        return dataset

    def _values(self, dataset: h5py.Dataset, place: str) -> Array:
        return texts(read_bounded(dataset, place, proven=False), place)

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
            # A handle that a fork inherited is let go first: HDF5 would go on with the parent's descriptor.
            self._handle = None
            handle = open_hdf5(self.path)
            if _stamp(self.path) != self._stamp:
                handle.close()
                raise ArtifactError(f"{self.path} was replaced while it was being read", "run the command again")
            self._handle, self._owner = handle, os.getpid()
        return self._handle


def _stamp(path: Path) -> tuple[int, int, int]:
    try:
        stat = path.stat()
    except OSError as error:
        raise ArtifactError(f"{path} is gone", "run the command again") from error
    return stat.st_size, stat.st_mtime_ns, stat.st_ino


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
