"""Owns artifacts in several files: one a rank, and a JSON manifest that stands wherever a single file may."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from calseg_cli.artifacts.digests import CONTENT_TABLES, content_digest, json_text
from calseg_cli.artifacts.geometry import Geometry
from calseg_cli.artifacts.kinds import SCHEMA
from calseg_cli.artifacts.reader import Array, Artifact, FileArtifact
from calseg_cli.artifacts.recipe import changes
from calseg_cli.artifacts.whole_file import write_whole
from calseg_cli.errors import ArtifactError

MANIFEST_FORMAT = "calseg-manifest"
_LARGEST_MANIFEST = 16 * 1024**2


class ShardedArtifact(Artifact):
    """Several shards of one artifact, read as if they were merged."""

    def __init__(self, path: Path) -> None:
        self.path = path
        manifest = read_manifest(path)
        self.shards = [open_shard(path, entry["file"]) for entry in manifest["shards"]]
        for shard, entry in zip(self.shards, manifest["shards"], strict=True):
            if shard.digest != entry["content_digest"]:
                raise ArtifactError(
                    f"{shard.path} is not the shard that {path.name} lists",
                    "was it written again? Run the stage with --resume to write the manifest anew",
                )
        check_alike(self.shards)
        first = self.shards[0]
        self.kind, self.meta, self.array_names = first.kind, first.meta, []
        self._owner = {name: shard for shard in self.shards for name in shard.ids}
        self.positions = {name: shard.positions[name] for name, shard in self._owner.items()}
        self.ids = sorted(self._owner, key=self.positions.__getitem__)
        self.item_digests = {name: self._owner[name].item_digests[name] for name in self.ids}
        self.digest = joint_digest(self.shards)
        self.attrs = {**first.attrs, "content_digest": self.digest, "items": len(self.ids)}
        if self.digest != manifest["content_digest"]:
            raise ArtifactError(f"{path} does not fit its shards", "run the stage with --resume to write it anew")

    @property
    def files(self) -> list[Path]:
        """The HDF5 files behind it."""
        return [shard.path for shard in self.shards]

    def close(self) -> None:
        """Close this process's files; the next read opens them again."""
        for shard in self.shards:
            shard.close()

    def _shard(self, name: str) -> FileArtifact:
        if name not in self._owner:
            raise self.missing(name)
        return self._owner[name]

    def geometry(self, name: str) -> Geometry:
        """Where the item's grid lies on its image."""
        return self._shard(name).geometry(name)

    def image_digest(self, name: str) -> str:
        """The digest of the image file that the item was made from; empty where it was not recorded."""
        return self._shard(name).image_digest(name)

    def keys(self, name: str) -> list[str]:
        """The names of the item's arrays."""
        return self._shard(name).keys(name)

    def item(self, name: str, key: str) -> Array:
        """One array of one image. Raises ArtifactError where it is missing or damaged."""
        return self._shard(name).item(name, key)

    def form(self, name: str, key: str) -> tuple[tuple[int, ...], str, str]:
        """Shape, type and packing of one array of one image, without reading it."""
        return self._shard(name).form(name, key)

    def item_facts(self, name: str) -> dict[str, Any]:
        """What the item's own group says of it."""
        return self._shard(name).item_facts(name)

    def array(self, name: str) -> Array:
        """Shards have arrays of images only: sums of several ranks are added, not listed."""
        raise ArtifactError(f"{self.path} has no array {name}", "merge the shards into one file")

    def facts(self) -> dict[str, Any]:
        """What `calseg inspect` shows."""
        shards = [{"file": shard.path.name, "items": len(shard), "digest": shard.digest} for shard in self.shards]
        return {**super().facts(), "shards": shards}


def open_shard(manifest: Path, name: str) -> FileArtifact:
    """A shard that a manifest lists. Raises ArtifactError that says so where it is not there."""
    path = manifest.with_name(name)
    if not path.exists():
        raise ArtifactError(
            f"{manifest} lists the shard {name}, which is not there",
            "bring it back beside the manifest, or run its --shard again with --resume",
        )
    return FileArtifact(path)


def check_alike(artifacts: Sequence[Artifact]) -> None:
    """Raise ArtifactError unless all are of one kind, class list, protocol and recipe, and share no image."""
    first = artifacts[0]
    seen: dict[str, Path] = {}
    places: dict[int, Path] = {}
    for artifact in artifacts:
        differs = [] if artifact.kind == first.kind else [f"kind is {artifact.kind.name}"]
        for table in (*CONTENT_TABLES, "recipe"):
            differs += changes({table: first.meta.get(table, {})}, {table: artifact.meta.get(table, {})})
        if differs:
            raise ArtifactError(
                f"{artifact.path} does not belong to {first.path}: {'; '.join(differs)}", "give shards of one run"
            )
        for name in artifact.ids:
            if name in seen:
                raise ArtifactError(f"{name!r} is in {seen[name]} and in {artifact.path}", "leave one of them out")
            seen[name] = artifact.path
            place = artifact.positions[name]
            if place in places:
                raise ArtifactError(
                    f"the place {place} is taken in {places[place]} and in {artifact.path}", "give shards of one run"
                )
            places[place] = artifact.path


def joint_digest(artifacts: Sequence[Artifact]) -> str:
    """The content digest that the shards will have as one file; nothing but their lists is read."""
    items = [(a.positions[name], digest) for a in artifacts for name, digest in a.item_digests.items()]
    tables = {name: json_text(table) for name, table in artifacts[0].meta.items()}
    return content_digest(artifacts[0].kind.name, tables, items, {})


def write_manifest(path: Path, shards: Sequence[Artifact]) -> str:
    """Write the manifest of shards that lie beside it, once they are all there; their common content digest."""
    check_alike(shards)
    digest = joint_digest(shards)
    entries = [{"file": s.path.name, "items": len(s), "content_digest": s.digest} for s in shards]
    document = {
        "format": MANIFEST_FORMAT,
        "schema": f"{SCHEMA[0]}.{SCHEMA[1]}",
        "kind": shards[0].kind.name,
        "items": sum(len(shard) for shard in shards),
        "content_digest": digest,
        "shards": entries,
    }
    write_whole(path, json.dumps(document, indent=2, ensure_ascii=False) + "\n")
    return digest


def read_manifest(path: Path) -> dict[str, Any]:
    """A manifest, checked: file names beside it only. Raises ArtifactError."""
    try:
        if path.stat().st_size > _LARGEST_MANIFEST:
            raise ValueError("it is too large")
        document = json.loads(path.read_text(encoding="utf-8"))
        if document["format"] != MANIFEST_FORMAT:
            raise ValueError("its format is another one")
        newer = int(str(document["schema"]).split(".")[0]) > SCHEMA[0]
        names = [entry["file"] for entry in document["shards"] if entry["content_digest"]]
        if not names or not all(isinstance(name, str) for name in (*names, document["content_digest"])):
            raise ValueError("it lists no shards")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ArtifactError(f"{path} is no manifest of calseg's shards ({error})", "name an .h5 artifact") from error
    if newer:
        raise ArtifactError(f"{path} has format {document['schema']} of a newer calseg", "upgrade calseg")
    for name in names:
        if Path(name).name != name or name in ("", ".", "..") or "\\" in name:
            raise ArtifactError(
                f"{path} is refused: the shard {name!r} does not lie beside it", "do not trust this file"
            )
    return dict(document)
