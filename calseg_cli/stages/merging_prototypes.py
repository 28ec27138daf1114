"""Owns `calseg artifact merge` of prototypes: sums of different images, counted alike, are added up exactly."""

from collections.abc import Mapping, Sequence
from functools import reduce
from operator import add
from pathlib import Path
from typing import Any

import numpy as np

from calseg_cli.artifacts.provenance import provenance
from calseg_cli.artifacts.reader import Artifact, check_classes, check_kind
from calseg_cli.artifacts.recipe import changes
from calseg_cli.artifacts.writer import ArtifactWriter
from calseg_cli.errors import ArtifactError
from calseg_cli.methods.prototype_rows import Rows
from calseg_cli.methods.prototypes import Prototypes
from calseg_cli.stages.corrections import FACTS

_ORIGIN = ("domain", "split", "folder")  # where images are from may differ, how their logits were made may not


def merge_prototypes(sources: Sequence[Artifact], target: Path, *, command: Sequence[str], force: bool) -> str:
    """Write the prototypes of all images of the sources; the content digest.

    Raises ArtifactError for other classes, options or ways to make logits, and for prototypes that depend on all images
    at once (`top_frac`, `iterations`); DataError for the same image twice, or prototypes that are of no use.
    """
    parts = [_read(source) for source in sources]
    for source, part in zip(sources, parts, strict=True):
        check_classes(source, sources[0].class_names)
        _check_alike(sources[0], parts[0], source, part)
    state = reduce(add, (part.state for part in parts))
    first = parts[0]
    whole = Prototypes(
        state,
        first.options,
        source_rows=first.source_rows,
        prior_rows=first.prior_rows,
        names=first.names,
        fitted_on={**_common([part.fitted_on for part in parts]), "images": len(state.images)},
    )
    protocol = _common([source.meta["protocol"] for source in sources])
    meta = {
        "classes": sources[0].meta["classes"],
        "protocol": {**protocol, FACTS: whole.facts()},
        "provenance": provenance(command, parents=_parents(sources, whole)),
    }
    writer = ArtifactWriter(target, "prototypes", meta=meta, force=force)
    with writer:
        for name, array in whole.to_arrays().items():
            writer.add_array(name, array)
    return writer.digest


def _parents(sources: Sequence[Artifact], whole: Prototypes) -> dict[str, str]:
    """The parts, and the source's prototypes that all of them begin with."""
    prior = whole.fitted_on.get("prior")
    parts = {f"part{number}": source.digest for number, source in enumerate(sources)}
    return {**parts, **({} if prior is None else {"prior": prior})}


def _read(source: Artifact) -> Prototypes:
    check_kind(source, "prototypes")
    try:
        return Prototypes.from_artifact(source.arrays(), source.meta["protocol"][FACTS])
    except ArtifactError as error:
        raise ArtifactError(f"{source.path}: {error.message}", error.hint) from error
    except (KeyError, TypeError) as error:
        raise ArtifactError(f"{source.path} does not say how it was counted", "make it again") from error


def _check_alike(first: Artifact, one: Prototypes, source: Artifact, other: Prototypes) -> None:
    if other.options.top_frac is not None or other.options.iterations > 1:
        raise ArtifactError(
            f"{source.path} was counted with {'top_frac' if other.options.top_frac is not None else 'iterations'}, "
            "which depends on all images at once",
            "count all images in one run",
        )
    differs = changes(_way(first), _way(source))
    if differs:
        raise ArtifactError(
            f"{source.path} was counted differently from {first.path}: {'; '.join(differs)}",
            "merge what was counted alike",
        )
    rows = ((one.source_rows, other.source_rows), (one.prior_rows, other.prior_rows))
    if not all(_same(mine, theirs) for mine, theirs in rows):
        raise ArtifactError(
            f"{source.path} was counted with other prototypes of the source than {first.path}",
            "merge what was counted alike",
        )


def _same(mine: Rows | None, theirs: Rows | None) -> bool:
    if mine is None or theirs is None:
        return mine is theirs
    return np.array_equal(mine, theirs, equal_nan=True)


def _way(source: Artifact) -> dict[str, Any]:
    """What must agree: the options, what was masked and begun with, and how the logits were made."""
    protocol = source.meta["protocol"]
    made = {key: value for key, value in protocol.items() if key not in (FACTS, *_ORIGIN)}
    options, fitted_on = (protocol[FACTS].get(name, {}) for name in ("options", "fitted_on"))
    return {**made, "options": options, **{name: fitted_on.get(name) for name in ("mask", "prior")}}


def _common(tables: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What all tables say alike."""
    first = tables[0]
    return {key: value for key, value in first.items() if all(table.get(key) == value for table in tables)}
