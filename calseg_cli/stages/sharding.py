"""Owns writing one artifact by several processes: a shard each, no talk between them, and the manifest at the end.

An image belongs to rank `place % ranks`. A shard's name carries a tag of its recipe, so that the shards of another
attempt are never mixed in, and an older result stays whole until the manifest names the new shards.
"""

import logging
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from calseg_cli.artifacts.digests import CONTENT_TABLES, json_text, text_sha256
from calseg_cli.artifacts.lock import sole_holder
from calseg_cli.artifacts.reader import Artifact, open_artifact
from calseg_cli.artifacts.safe_open import PARTIAL, examine
from calseg_cli.artifacts.shards import read_manifest, write_manifest
from calseg_cli.artifacts.writer import ArtifactWriter
from calseg_cli.errors import ArtifactError, ConfigError

_PATIENCE = 600.0  # seconds to wait for another rank that finishes a shard or writes the manifest
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Shard:
    """Which of how many processes this one is, counted from 0."""

    rank: int
    ranks: int


def find_shard(asked: str | None) -> Shard | None:
    """The shard of `--shard RANK/RANKS`, or of torchrun's RANK and WORLD_SIZE; None where one process does it all.

    Raises ConfigError for what is no such pair.
    """
    text = asked or _from_environment()
    if text is None:
        return None
    rank, slash, ranks = text.partition("/")
    if not (slash and rank.isdecimal() and ranks.isdecimal() and int(rank) < int(ranks) <= 100_000):
        raise ConfigError(f"--shard {text} is no RANK/RANKS", "0/8 is the first of eight, 7/8 the last")
    return Shard(int(rank), int(ranks))


def _from_environment() -> str | None:
    rank, ranks = os.environ.get("RANK"), os.environ.get("WORLD_SIZE")
    return f"{rank}/{ranks}" if rank and ranks and ranks != "1" else None


class ShardedWork:
    """The shards of one result `target` (NAME.h5, which itself is not written), and what of it is this rank's."""

    def __init__(
        self,
        target: Path,
        kind: str,
        shard: Shard,
        *,
        meta: Mapping[str, Any],
        ids: Sequence[str],
        compression: str = "gzip",
        estimate: int = 0,
    ) -> None:
        self.manifest = target.with_name(f"{target.stem}.manifest.json")
        self._target, self._kind, self._shard = target, kind, shard
        self._compression, self._estimate = compression, estimate
        self._meta, self._ids = meta, list(ids)
        tables = [json_text(meta.get(name, {})) for name in (*CONTENT_TABLES, "recipe")]
        self._tag = text_sha256("\n".join(tables))[:8]

    def prepare(self, *, resume: bool, force: bool) -> None:
        """Refuse to overwrite, and give what ranks of another number left a whole form. Raises ArtifactError."""
        if self.manifest.exists() and not (resume or force):
            raise ArtifactError(f"{self.manifest} exists already", "--force makes it anew, -o names another")
        others = [path for path in self._found("*") if not self._is_own_number(path)]
        if others and not (resume or force):
            raise ArtifactError(
                f"{others[0]} was begun with another number of ranks", "--resume goes on with it, --force starts anew"
            )
        for path in others:
            if force:
                path.unlink(missing_ok=True)
            elif path.name.endswith(PARTIAL):
                self._adopt(path)

    @contextmanager
    def writer(self, *, resume: bool, force: bool) -> Iterator[ArtifactWriter | None]:
        """The writer of this rank's images that no shard holds yet; None where nothing is left to do."""
        done = set() if force else self._written()
        own = range(self._shard.rank, len(self._ids), self._shard.ranks)
        places = [place for place in own if self._ids[place] not in done]
        if not places:
            yield None
            return
        with ArtifactWriter(
            self._path(force=force),
            self._kind,
            meta=self._meta,
            ids=[self._ids[place] for place in places],
            positions=places,
            resume=resume,
            force=force,
            compression=self._compression,
            estimate=self._estimate,
        ) as writer:
            yield writer

    def finish(self) -> Artifact | None:
        """Write the manifest if all shards are there, and remove those of an older one; None where some are missing."""
        with _waiting(self.manifest):
            shards = [open_artifact(path, self._kind) for path in self._found("*.h5")]
            try:
                held = {name for shard in shards for name in shard.ids}
                if held != set(self._ids):
                    return None
                older = self._listed()
                write_manifest(self.manifest, shards)
                for name in older - {shard.path.name for shard in shards}:
                    self.manifest.with_name(name).unlink(missing_ok=True)
            finally:
                for shard in shards:
                    shard.close()
        return open_artifact(self.manifest, self._kind)

    @property
    def newest(self) -> Path:
        """The last file of this rank that is whole; the manifest where other shards hold all of its images."""
        mine = [path for path in self._found("*.h5") if f".rank{self._shard.rank:02d}-of-" in path.name]
        return mine[-1] if mine else self.manifest

    def _path(self, *, force: bool) -> Path:
        stem = f"{self._target.stem}.{self._tag}.rank{self._shard.rank:02d}-of-{self._shard.ranks:02d}"
        path, number = self._target.with_name(f"{stem}.h5"), 1
        while path.exists() and not force:
            number += 1
            path = self._target.with_name(f"{stem}-{number}.h5")
        return path

    def _found(self, ending: str) -> list[Path]:
        pattern = f"{_literal(self._target.stem)}.{self._tag}.rank*-of-{ending}"
        return sorted(path for path in self._target.parent.glob(pattern) if path.name.endswith((".h5", PARTIAL)))

    def _is_own_number(self, path: Path) -> bool:
        return path.name.partition("-of-")[2].startswith((f"{self._shard.ranks:02d}.", f"{self._shard.ranks:02d}-"))

    def _written(self) -> set[str]:
        done: set[str] = set()
        for path in self._found("*.h5"):
            with open_artifact(path, self._kind) as shard:
                done.update(shard.ids)
        return done

    def _listed(self) -> set[str]:
        try:
            return {str(entry["file"]) for entry in read_manifest(self.manifest)["shards"]}
        except ArtifactError:
            return set()

    def _adopt(self, partial: Path) -> None:
        """Finish an unfinished shard of ranks that are no more with the images that it has."""
        whole = partial.with_name(partial.name.removesuffix(PARTIAL))
        with _waiting(partial):
            if not partial.exists():
                return  # another rank was quicker
            found = examine(partial, items=True, seconds=3600)["items"] or {}
            if not found:
                _log.warning("%s holds nothing that can be used", partial)
                partial.unlink()
                return
            places = sorted(map(int, found))
            ids = [found[str(place)]["id"] for place in places]
            with ArtifactWriter(whole, self._kind, meta=self._meta, ids=ids, positions=places, resume=True):
                pass  # nothing is left to write


@contextmanager
def _waiting(path: Path) -> Iterator[None]:
    """Hold `path`, waiting for other ranks that hold it."""
    lock = path.with_name(path.name + ".lock")
    until = time.monotonic() + _PATIENCE
    while True:
        holder = sole_holder(path, lock)
        try:
            holder.__enter__()
            break
        except ArtifactError:
            if time.monotonic() > until:
                raise
            time.sleep(0.2)
    try:
        yield
    finally:
        holder.__exit__(None, None, None)


def _literal(text: str) -> str:
    """Text as a glob pattern that means itself."""
    return "".join(f"[{sign}]" if sign in "*?[" else sign for sign in text)
