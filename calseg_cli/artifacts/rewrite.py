"""Owns artifacts made of artifacts: merged without packing anything again, or the same content packed otherwise."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from calseg_cli.artifacts.digests import content_digest, json_text
from calseg_cli.artifacts.disk import need_space
from calseg_cli.artifacts.hdf5_file import create_file, finish_file, name_file, write_index
from calseg_cli.artifacts.lock import sole_holder
from calseg_cli.artifacts.reader import Artifact, FileArtifact, check_classes, check_kind
from calseg_cli.artifacts.recipe import changes
from calseg_cli.artifacts.safe_open import PARTIAL, hdf5_reading, open_hdf5
from calseg_cli.artifacts.shards import ShardedArtifact
from calseg_cli.artifacts.writer import ArtifactWriter
from calseg_cli.errors import ArtifactError, disk_errors

Told = Callable[[], None]


def merge(sources: Sequence[Artifact], path: Path, *, force: bool, told: Told) -> str:
    """Write the images of several artifacts into one file by copying their chunks as they are; its content digest.

    Each image is read and proved first: a seal on the result must not stand for damage that was in a source.
    Shards of one recipe keep their places, so that the result equals the unsharded file. Artifacts of different
    recipes, such as two splits, follow each other in the order given; kind, class list and protocol must agree, but
    for what says where the images are from. Raises ArtifactError for the same image twice or arrays of the whole.
    """
    if path.exists() and not force:
        raise ArtifactError(f"{path} exists already", "--force replaces it, -o names another")
    tables = _merged_tables(sources)
    places = _places(sources)
    partial = path.with_name(path.name + PARTIAL)
    with sole_holder(path), disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        need_space(partial, sum(file.stat().st_size for source in sources for file in source.files))
        try:
            digest = _copy(sources, partial, tables, places, told)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
        name_file(partial, path)
    return digest


def _copy(
    sources: Sequence[Artifact],
    partial: Path,
    tables: Mapping[str, str],
    places: Mapping[str, int],
    told: Told,
) -> str:
    facts: dict[int, dict[str, Any]] = {}
    kind = sources[0].kind
    file = create_file(partial, kind, tables, len(places))
    try:
        items = file.create_group("items")
        for part in (part for source in sources for part in _parts(source)):
            with hdf5_reading(part.path), open_hdf5(part.path) as origin:
                for name in part.ids:
                    place = places[name]
                    facts[place] = part.item_facts(name)  # which checks the way there
                    for key in part.keys(name):
                        part.item(name, key)
                    origin.copy(f"items/{part.positions[name]:06d}", items, name=f"{place:06d}")
                    told()
        write_index(file, facts)
        digest = content_digest(kind.name, tables, [(place, f["digest"]) for place, f in facts.items()], {})
        finish_file(file, digest, len(facts))
    except BaseException:
        file.close()
        raise
    return digest


def _parts(source: Artifact) -> Iterator[FileArtifact]:
    if isinstance(source, ShardedArtifact):
        yield from source.shards
    elif isinstance(source, FileArtifact):
        yield source


def _places(sources: Sequence[Artifact]) -> dict[str, int]:
    names = [name for source in sources for name in source.ids]
    twice = [name for number, name in enumerate(names) if name in set(names[:number])] if _repeats(names) else []
    if twice:
        raise ArtifactError(f"{twice[0]!r} is in more than one of the files", "leave one of them out")
    positions = {name: source.positions[name] for source in sources for name in source.ids}
    if _one_recipe(sources) and len(set(positions.values())) == len(positions):
        return positions
    return {name: place for place, name in enumerate(names)}


def _repeats(names: Sequence[str]) -> bool:
    return len(set(names)) != len(names)


def _one_recipe(sources: Sequence[Artifact]) -> bool:
    return all(source.meta.get("recipe") == sources[0].meta.get("recipe") for source in sources)


_ORIGIN = ("domain", "split", "folder")  # what of a protocol says where images are from, not how they were treated


def _merged_tables(sources: Sequence[Artifact]) -> dict[str, str]:
    first = sources[0]
    for source in sources:
        check_kind(source, first.kind.name)
        check_classes(source, first.class_names, int(first.meta["classes"].get("ignore", 255)))
        differs = changes(_treatment(first), _treatment(source))
        if differs:
            raise ArtifactError(
                f"{source.path} was made differently from {first.path}: {'; '.join(differs)}",
                "merge what was made alike",
            )
        if source.array_names:
            raise ArtifactError(
                f"{source.path} holds arrays of the whole ({', '.join(source.array_names)}), which only their own "
                "stage can add up",
                "run the stage on the merged input",
            )
    tables = dict(first.meta)
    if not _one_recipe(sources):
        origins = {key: sorted({str(source.meta["protocol"].get(key)) for source in sources}) for key in _ORIGIN}
        own = {key: values[0] if len(values) == 1 else "+".join(values) for key, values in origins.items()}
        kept = {key: value for key, value in own.items() if key in first.meta.get("protocol", {})}
        tables["protocol"] = {**first.meta.get("protocol", {}), **kept}
        tables["recipe"] = {"stage": "merge", "parents": {f"part{n}": s.digest for n, s in enumerate(sources)}}
    return {name: json_text(table) for name, table in tables.items()}


def _treatment(artifact: Artifact) -> dict[str, Any]:
    return {key: value for key, value in artifact.meta.get("protocol", {}).items() if key not in _ORIGIN}


def convert(
    source: Artifact, path: Path, *, compression: str, dtype: str | None, force: bool, resume: bool, told: Told
) -> str:
    """Write the same artifact packed otherwise, and with `dtype` its floating-point items in another type.

    The content digest stays, unless `dtype` changes values' type. Raises ArtifactError for values that do not fit it.
    """
    meta = dict(source.meta)
    if dtype is not None and source.kind.name == "logits":
        meta["protocol"] = {**meta["protocol"], "stored_as": dtype}
    writer = ArtifactWriter(
        path,
        source.kind.name,
        meta=meta,
        ids=source.ids,
        positions=[source.positions[name] for name in source.ids],
        compression=compression,
        force=force,
        resume=resume,
    )
    with writer:
        for name in writer.todo:
            arrays = {key: source.item(name, key) for key in source.keys(name)}
            if dtype is not None:
                with np.errstate(over="ignore"):  # what does not fit becomes infinite, and is refused by name
                    arrays = {k: a.astype(dtype) if a.dtype.kind == "f" else a for k, a in arrays.items()}
            geometry = source.geometry(name) if source.kind.has_geometry else None
            writer.add_item(name, arrays, geometry, image_digest=source.image_digest(name))
            told()
        if not writer.finished:
            for name in source.array_names:
                writer.add_array(name, source.array(name))
    return writer.digest
