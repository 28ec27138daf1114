"""Owns `calseg artifact merge` of logit statistics: counts of different images, made alike, are added up exactly."""

from collections.abc import Mapping, Sequence
from functools import reduce
from operator import add
from pathlib import Path
from typing import Any

from calseg_cli.artifacts.provenance import provenance
from calseg_cli.artifacts.reader import Artifact, check_classes, check_kind
from calseg_cli.artifacts.recipe import changes
from calseg_cli.errors import ArtifactError
from calseg_cli.stages.logit_anchors import read_statistics
from calseg_cli.stages.logit_statistics import KIND, write_statistics

_MAY_DIFFER = ("split", "network_input")  # of one domain all images count, whatever their size


def merge_statistics(sources: Sequence[Artifact], target: Path, *, command: Sequence[str], force: bool) -> str:
    """Write the statistics of all images of the sources; the content digest.

    Raises ArtifactError for other classes, another domain or kind of labels, and logits of another network or way to
    make them; DataError for the same image twice.
    """
    for source in sources:
        check_kind(source, KIND)
        check_classes(source, sources[0].class_names)
        _check_alike(sources[0], source)
    whole = reduce(add, (read_statistics(source) for source in sources))
    tables = [source.meta["protocol"] for source in sources]
    meta = {
        "classes": sources[0].meta["classes"],
        "protocol": {key: one for key, one in tables[0].items() if all(table.get(key) == one for table in tables)},
        "provenance": provenance(command, parents={f"part{n}": source.digest for n, source in enumerate(sources)}),
    }
    return write_statistics(target, whole, meta, force=force)


def _check_alike(first: Artifact, source: Artifact) -> None:
    differs = changes(_way(first.meta), _way(source.meta))
    if differs:
        raise ArtifactError(
            f"{source.path} was counted differently from {first.path}: {'; '.join(differs)}",
            "merge what was counted alike",
        )


def _way(meta: Mapping[str, Any]) -> dict[str, Any]:
    """What must agree: whose logits, how they were made, and by which labels they are sorted."""
    return {key: value for key, value in meta.get("protocol", {}).items() if key not in _MAY_DIFFER}
