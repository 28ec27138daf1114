"""Owns writing an artifact: whole under its own name, or visibly unfinished as NAME.partial, never between."""

import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import h5py
from numpy.typing import NDArray

from calseg_cli.artifacts.background import Background
from calseg_cli.artifacts.codec import array_options, item_options
from calseg_cli.artifacts.digests import CONTENT_TABLES, array_digest, content_digest, item_digest, json_text
from calseg_cli.artifacts.disk import check_estimate, need_space
from calseg_cli.artifacts.geometry import Geometry
from calseg_cli.artifacts.hdf5_file import create_file, finish_file, name_file, write_index
from calseg_cli.artifacts.kinds import check_item, find_kind
from calseg_cli.artifacts.listing import check_values, is_plain_id
from calseg_cli.artifacts.lock import sole_holder
from calseg_cli.artifacts.policy import RefusedError
from calseg_cli.artifacts.reader import open_artifact
from calseg_cli.artifacts.recipe import changes
from calseg_cli.artifacts.safe_open import DAMAGE, PARTIAL, examine
from calseg_cli.artifacts.text import attribute, text_array, write_attribute
from calseg_cli.errors import ArtifactError, CalsegError, disk_errors

Array = NDArray[Any]
_WAITING = 8  # items between the caller and the disk
_EXAMINE_SECONDS = 3600.0  # reading all of an unfinished file again takes as long as it is large
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Job:
    position: int
    facts: dict[str, Any]
    arrays: Mapping[str, Array]


class ArtifactWriter:
    """A context manager that writes one artifact; leaving it without an exception gives the file its name.

    `meta` holds JSON tables: classes and protocol, which are part of the content; recipe, which says what the content
    depends on; provenance and config. `ids` are the items in their final order, `positions` their places in it where
    the file is one shard of several.

    Inside the block `todo` lists the ids still to be written: all of them, or with `resume` those that an unfinished
    file lacks. `finished` is True where `resume` found the result there and up to date: then nothing is to be written.
    Leaving with an exception keeps an unfinished file that holds at least one item.

    Raises ArtifactError where a result or an unfinished file would be lost without `force` or `resume`, where it was
    made by another recipe, and where another process writes it; DiskFullError where `estimate` raw bytes cannot fit.
    """

    def __init__(
        self,
        path: Path,
        kind: str,
        *,
        meta: Mapping[str, Any],
        ids: Sequence[str] = (),
        positions: Sequence[int] | None = None,
        compression: str = "gzip",
        force: bool = False,
        resume: bool = False,
        estimate: int = 0,
    ) -> None:
        self.path = path
        self.partial = path.with_name(path.name + PARTIAL)
        self.finished = False
        self.digest = ""
        self._kind = find_kind(kind)
        # A command line may hold a file name that is not UTF-8, which no file can.
        self._meta = {name: json_text(table).encode(errors="replace").decode() for name, table in meta.items()}
        self._classes = len(meta.get("classes", {}).get("names", ()))
        self._places = dict(zip(ids, positions if positions is not None else range(len(ids)), strict=True))
        if len(self._places) != len(ids):
            raise ArtifactError(f"{path.name}: an id is given twice", "give images distinct ids")
        self._check_ids(ids)
        self._planned = bool(ids)
        self._compression = compression
        self._force, self._resume, self._estimate = force, resume, estimate
        self._facts: dict[int, dict[str, Any]] = {}
        self._handed: set[int] = set()
        self._arrays: dict[str, str] = {}
        self._file: h5py.File | None = None
        self._background: Background[_Job] | None = None
        self._held = ExitStack()
        if path.exists() and not force and not resume:
            raise self._in_the_way()

    @property
    def todo(self) -> list[str]:
        """The ids that are not in the file yet, in their order."""
        return [name for name, position in self._places.items() if position not in self._handed]

    @property
    def done(self) -> int:
        """How many items are in the file, or on their way there."""
        return len(self._handed)

    def __enter__(self) -> Self:
        self._held.enter_context(sole_holder(self.path))
        try:
            self._begin()
        except BaseException:
            self._close()
            self._held.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._held:
            if self.finished:
                return
            try:
                if kind is None:
                    self._finish()
            except BaseException:
                self._leave()
                raise
            if kind is not None:
                self._leave()

    def add_item(
        self, name: str, arrays: Mapping[str, Array], geometry: Geometry | None = None, *, image_digest: str = ""
    ) -> None:
        """Hand over one image's arrays, which must not change afterwards, and the digest of the image's file.

        Raises ArtifactError for a second item of that name; and, for this or an earlier item, ArtifactError for values
        that are not finite, DiskFullError before the disk is full.
        """
        if self._kind.has_geometry and geometry is None:
            raise ValueError(f"an item of kind {self._kind.name} needs its geometry")
        if not self._planned:
            self._check_ids([name])
            self._places.setdefault(name, len(self._places))
        position = self._places[name]
        if position in self._handed:
            raise ArtifactError(f"{self.path.name}: the item {name!r} is there already", "give images distinct ids")
        self._handed.add(position)
        facts = {"id": name, "image_digest": image_digest, **(geometry.to_attrs() if geometry else {})}
        self._open_background().put(_Job(position, facts, dict(arrays)))

    def add_array(self, name: str, array: Array) -> None:
        """Write an array that belongs to the whole artifact, such as a histogram."""
        if array.dtype.kind not in "biufUO" or (array.dtype.itemsize > 8 and array.dtype.kind == "f"):
            raise ValueError(f"an array of {array.dtype} could not be read again")
        self._drain()
        with disk_errors(self.path), _hdf5_errors(self.path):
            need_space(self.partial, array.nbytes)
            group = self._open_file().require_group("arrays")
            stored = text_array(array.ravel().tolist()).reshape(array.shape) if array.dtype.kind in "UO" else array
            group.create_dataset(name, data=stored, **array_options(stored, self._compression))
            self._arrays[name] = array_digest(array)

    def _check_ids(self, ids: Iterable[str]) -> None:
        for name in ids:
            if not is_plain_id(name):
                raise ArtifactError(
                    f"{self.path.name}: the id {name[:100]!a} does not name a file below a folder",
                    "rename the image",
                )

    def _begin(self) -> None:
        if self.path.exists() and not self._force and not self.partial.exists():
            self._check_finished()
            return
        with disk_errors(self.path), _hdf5_errors(self.path):
            if self.partial.exists():
                self._reopen()
            if self._file is None:
                check_estimate(self.path, self._estimate, packed=self._compression != "none")
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._create()

    def _check_finished(self) -> None:
        """With `resume` and a result in place: it is up to date, or the user has to decide."""
        if not self._resume:
            raise self._in_the_way()
        differs = self._differences()
        if differs:
            raise ArtifactError(
                f"{self.path} is stale: {'; '.join(differs)}", "--force makes it anew, -o names another file"
            )
        with open_artifact(self.path) as artifact:
            self.finished, self.digest = True, artifact.digest
        self._handed = set(self._places.values())

    def _differences(self) -> list[str]:
        with open_artifact(self.path, self._kind.name) as artifact:
            before = {name: artifact.meta.get(name, {}) for name in ("recipe", *CONTENT_TABLES)}
        return _table_changes(before, self._meta)

    def _in_the_way(self) -> ArtifactError:
        try:
            differs = self._differences()
            state = f"is stale: {'; '.join(differs)}" if differs else "is up to date"
        except ArtifactError:
            state = "is no artifact of this kind that can be read"
        return ArtifactError(
            f"{self.path} exists already and {state}",
            "--force makes it anew, --resume passes over it if it is up to date, -o names another file",
        )

    def _reopen(self) -> None:
        """Go on with an unfinished file, without the items that were not whole when its writer was killed."""
        if not self._resume:
            if not self._force:
                raise ArtifactError(
                    f"{self.path} was begun and is unfinished", "--resume goes on with it, --force starts anew"
                )
            return
        found = examine(self.partial, items=True, seconds=_EXAMINE_SECONDS)
        if found["items"] is None:
            _log.warning("%s cannot be read (%s); starting from the first image", self.partial, found["refused"])
            return
        try:
            self._take_up({int(position): facts for position, facts in found["items"].items()})
        except DAMAGE as error:  # in what the other process did not look at, such as free space
            if isinstance(error, OSError) and error.errno is not None:  # a full disk
                raise
            self._abandon(error)

    def _take_up(self, whole: Mapping[int, dict[str, Any]]) -> None:
        self._file = h5py.File(self.partial, "r+", locking=False)
        differs = _table_changes(_tables(self._file), self._meta)
        if attribute(self._file, "kind") != self._kind.name:
            differs.insert(0, f"it is of kind {attribute(self._file, 'kind')}")
        if differs:
            raise ArtifactError(
                f"{self.partial} was begun differently: {'; '.join(differs)}",
                "take the change back, or start anew with --force or another -o",
            )
        self._keep(whole)

    def _abandon(self, error: BaseException) -> None:
        _log.warning("%s cannot be read (%s); starting from the first image", self.partial, error)
        if self._file is not None:
            with suppress(*DAMAGE):
                self._file.close()
        self._file, self._facts, self._handed = None, {}, set()

    def _keep(self, whole: Mapping[int, dict[str, Any]]) -> None:
        file = self._open_file()
        write_attribute(file, "complete", 0)
        for name in ("index", "arrays"):
            if name in file:
                del file[name]
        wanted = {position: name for name, position in self._places.items()}
        for key in list(file["items"]) if "items" in file else []:
            facts = whole.get(int(key))
            if facts is None or (self._planned and wanted.get(int(key)) != facts["id"]):
                del file["items"][key]
            else:
                self._facts[int(key)] = facts
                self._places[facts["id"]] = int(key)
        file.flush()
        self._handed = set(self._facts)

    def _create(self) -> None:
        need_space(self.partial, 0)
        self._file = create_file(self.partial, self._kind, self._meta, len(self._places))

    def _write_item(self, job: _Job) -> None:
        check_item(self._kind, job.facts["id"], job.arrays)
        self._check_classes(job)
        with disk_errors(self.path), _hdf5_errors(self.path):
            need_space(self.partial, sum(array.nbytes for array in job.arrays.values()))
            file = self._open_file()
            group = file.create_group(f"items/{job.position:06d}")
            facts = {**job.facts, "arrays": {key: array_digest(job.arrays[key]) for key in sorted(job.arrays)}}
            for key, array in job.arrays.items():
                group.create_dataset(key, data=array, **item_options(array, self._compression))
            facts["digest"] = item_digest(facts)
            write_attribute(group, "facts", json_text(facts))
            # What was flushed survives a kill; without it the whole file would be lost.
            file.flush()
        self._facts[job.position] = facts

    def _check_classes(self, job: _Job) -> None:
        try:
            for key, array in job.arrays.items():
                check_values(array, f"{job.facts['id']}/{key}", self._classes, self._kind)
        except RefusedError as error:
            raise ArtifactError(f"{self.path}: {error}", "give the class list that it was made with") from error

    def _finish(self) -> None:
        self._drain()
        if len(self._facts) != len(self._places):
            raise ValueError(f"{self.path.name}: {len(self._facts)} of {len(self._places)} items were written")
        with disk_errors(self.path), _hdf5_errors(self.path):
            file = self._open_file()
            need_space(self.partial, 1000 * len(self._facts))
            write_index(file, self._facts)
            self.digest = content_digest(
                self._kind.name, self._meta, [(n, f["digest"]) for n, f in self._facts.items()], self._arrays
            )
            finish_file(file, self.digest, len(self._facts))
            self._file = None
            name_file(self.partial, self.path)

    def _leave(self) -> None:
        """Keep what was begun for --resume; a file without a single item is worth nothing."""
        self._close()
        if not self._facts:
            self.partial.unlink(missing_ok=True)

    def _drain(self) -> None:
        if self._background is not None:
            background, self._background = self._background, None
            background.close()

    def _open_background(self) -> Background[_Job]:
        if self._background is None:
            self._open_file()
            self._background = Background(self._write_item, _WAITING)
        return self._background

    def _open_file(self) -> h5py.File:
        if self._file is None:
            raise ValueError("an ArtifactWriter is used inside its `with` block, and not where it is finished")
        return self._file

    def _close(self) -> None:
        try:
            self._drain()
        except Exception as error:
            _log.debug("while leaving: %s", error)
        if self._file is not None:
            self._file.close()
            self._file = None


def _tables(file: h5py.File) -> dict[str, Any]:
    return {name: json.loads(file["meta"][name][()].decode()) for name in file["meta"]}


def _table_changes(before: Mapping[str, Any], now: Mapping[str, str]) -> list[str]:
    """What differs in the tables that decide the content; a recipe names it best, so it speaks first."""
    recipe = changes(before.get("recipe", {}), json.loads(now.get("recipe", "{}")))
    rest = [
        change
        for name in CONTENT_TABLES
        for change in changes({name: before.get(name, {})}, {name: json.loads(now.get(name, "{}"))})
    ]
    return recipe or rest


@contextmanager
def _hdf5_errors(path: Path) -> Iterator[None]:
    """HDF5 reports a full disk as OSError or RuntimeError without errno; name the file at least."""
    try:
        yield
    except (OSError, RuntimeError, KeyError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise CalsegError(f"{path} could not be written: {error}", "is the disk full?") from error
