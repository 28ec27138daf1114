"""Owns telling two artifacts apart by content: compression, time and place make no difference."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from calseg_cli.artifacts.digests import CONTENT_TABLES, array_digest
from calseg_cli.artifacts.reader import Array, Artifact
from calseg_cli.artifacts.recipe import changes


@dataclass(frozen=True)
class ChangedItem:
    """An image whose arrays differ: `how` says where, `largest` is the largest absolute difference, if comparable."""

    id: str
    how: str
    differing: int
    values: int
    largest: float | None


@dataclass(frozen=True)
class Difference:
    """What tells two artifacts apart; all empty where their contents are equal."""

    tables: list[str]
    only_first: list[str]
    only_second: list[str]
    changed: list[ChangedItem]
    arrays: list[str]
    order: bool

    @property
    def equal(self) -> bool:
        """Whether the contents are the same, whatever the files look like."""
        return not (self.tables or self.only_first or self.only_second or self.changed or self.arrays or self.order)


def diff(first: Artifact, second: Artifact, *, quick: bool = False) -> Difference:
    """Compare by digests, after each was proved on the values in both files.

    `quick` takes the digests as they are written: an image is read only where they differ. Raises ArtifactError for a
    value that is not what was written.
    """
    shared = [name for name in first.ids if name in second]
    for artifact in () if quick else (first, second):
        for name in artifact.ids:
            for key in artifact.keys(name):
                artifact.item(name, key)
    return Difference(
        tables=_tables(first, second),
        only_first=[name for name in first.ids if name not in second],
        only_second=[name for name in second.ids if name not in first],
        changed=[
            _changed(first, second, name) for name in shared if first.item_digests[name] != second.item_digests[name]
        ],
        arrays=_arrays(first, second),
        order=shared != [name for name in second.ids if name in first],
    )


def _tables(first: Artifact, second: Artifact) -> list[str]:
    differs = [] if first.kind == second.kind else [f"kind was {first.kind.name}, is {second.kind.name}"]
    for name in CONTENT_TABLES:
        differs += changes({name: first.meta.get(name, {})}, {name: second.meta.get(name, {})})
    return differs


def _arrays(first: Artifact, second: Artifact) -> list[str]:
    names = sorted({*first.array_names, *second.array_names})
    return [name for name in names if _array_digest(first, name) != _array_digest(second, name)]


def _array_digest(artifact: Artifact, name: str) -> str | None:
    return array_digest(artifact.array(name)) if name in artifact.array_names else None


def _changed(first: Artifact, second: Artifact, name: str) -> ChangedItem:
    before, after = first.item_facts(name), second.item_facts(name)
    keys = sorted(
        key for key in {*before["arrays"], *after["arrays"]} if before["arrays"].get(key) != after["arrays"].get(key)
    )
    facts = changes(_rest(before), _rest(after))
    both = [key for key in keys if key in before["arrays"] and key in after["arrays"]]
    compared = [_compare(first.item(name, key), second.item(name, key)) for key in both]
    largest = [value for _, _, value in compared if value is not None]
    return ChangedItem(
        name,
        "; ".join([*keys, *facts]),
        differing=sum(differing for differing, _, _ in compared),
        values=sum(values for _, values, _ in compared),
        largest=max(largest) if largest else None,
    )


def _rest(facts: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in facts.items() if name not in ("arrays", "digest")}


def _compare(first: Array, second: Array) -> tuple[int, int, float | None]:
    """Differing values, all values, and the largest difference; sizes that differ cannot be compared."""
    if first.shape != second.shape:
        return max(first.size, second.size), max(first.size, second.size), None
    gap = np.abs(first.astype(np.float64) - second.astype(np.float64))
    return int(np.count_nonzero(gap)), gap.size, float(gap.max())
