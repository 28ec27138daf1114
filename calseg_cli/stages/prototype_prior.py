"""Owns the source's prototypes where those of the target are made: read, held against the target, and compared."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from calseg_cli.artifacts.reader import check_classes, open_artifact
from calseg_cli.artifacts.recipe import changes
from calseg_cli.errors import ArtifactError
from calseg_cli.methods.prototype_rows import Rows, shifts
from calseg_cli.methods.prototypes import PrototypeOptions, Prototypes
from calseg_cli.report.wording import NOT_AVAILABLE, number
from calseg_cli.stages.corrections import Loaded, load_correction
from calseg_cli.stages.prototype_input import Input

RULE = ("weight_power", "temperature", "min_confidence", "top_frac", "iterations")
"""Options that say which pixels count and how much: prototypes of other ones differ without any shift."""
MADE = ("network", "weights", "grid", "values", "scales", "flip", "temperature")
"""What of the logits must agree; the size of the images that a domain has need not."""


@dataclass(frozen=True)
class SourcePrototypes:
    """Rows (C,C) of another artifact, NaN where it has none, and the role by which provenance names that."""

    path: Path
    digest: str
    rows: Rows
    role: str


@dataclass(frozen=True)
class Shift:
    """C_target - C_source, both as counted: how sure each domain's mean soft label is of its own class."""

    names: Sequence[str]
    source: Rows
    target: Rows

    def rows(self) -> list[dict[str, Any]]:
        """A class each, as plain values; NaN and None where a domain has not seen it."""
        return [
            {
                "name": name,
                "source": one.source,
                "target": one.target,
                "difference": one.difference,
                "most_to": None if one.taker is None else self.names[one.taker],
                "taken": one.taken,
            }
            for name, one in zip(self.names, shifts(self.source, self.target), strict=True)
        ]

    def table(self) -> tuple[str, list[str], list[list[str]]]:
        """Title, headers and rows: a class each."""
        headers = ["class", "source", "target", "difference", "most to", "taken"]
        rows = [
            [
                row["name"],
                number(row["source"]),
                number(row["target"]),
                number(row["difference"], signed=True),
                row["most_to"] or NOT_AVAILABLE,
                number(row["taken"]),
            ]
            for row in self.rows()
        ]
        return "shift: own mass of prototypes as counted, target less source", headers, rows


def read_stand_ins(path: Path, class_names: Sequence[str]) -> SourcePrototypes:
    """The prototypes that `--source` names, as they label. Raises ArtifactError."""
    loaded, found = _read(path, class_names)
    rows = np.where(found.valid[:, None], found.rows, np.nan)
    return SourcePrototypes(path, loaded.digest, rows, "source_prototypes")


def read_prior(path: Path, given: Input, options: PrototypeOptions) -> SourcePrototypes:
    """The prototypes that `prototypes.prior_from` names, as counted: without a prior or shrinking of their own.

    Raises ArtifactError for other classes, another rule of which pixels count, and logits of another grid, way to make
    them, or network.
    """
    loaded, found = _read(path, given.class_names)
    _check_rule(path, found.options, options)
    _check_logits(path, _made(loaded.protocol), _made(given.protocol))
    networks = (found.fitted_on.get("network") or loaded.network_digest, given.network_digest)
    if all(networks) and networks[0] != networks[1]:
        raise ArtifactError(
            f"{path} was counted from the logits of another network than these",
            "count the source's prototypes with the network at hand",
        )
    return SourcePrototypes(path, loaded.digest, found.counted_rows(), "prior")


def _read(path: Path, class_names: Sequence[str]) -> tuple[Loaded, Prototypes]:
    loaded = load_correction(path, "prototypes")
    with open_artifact(path, "prototypes") as artifact:
        check_classes(artifact, class_names)
    if not isinstance(loaded.correction, Prototypes):
        raise ArtifactError(f"{path} holds no prototypes", "name prototypes of the source")
    return loaded, loaded.correction


def _check_rule(path: Path, theirs: PrototypeOptions, ours: PrototypeOptions) -> None:
    before, now = ({name: getattr(options, name) for name in RULE} for options in (theirs, ours))
    if differs := changes(before, now):
        raise ArtifactError(
            f"{path} was counted by another rule: {'; '.join(differs)}",
            "count the source's prototypes with the same options",
        )


def _check_logits(path: Path, theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> None:
    known = theirs.keys() & ours.keys()
    if differs := changes({key: theirs[key] for key in known}, {key: ours[key] for key in known}):
        raise ArtifactError(
            f"{path} was counted from logits that were made differently: {'; '.join(differs)}",
            "count the source's prototypes from logits made like these",
        )


def _made(protocol: Mapping[str, Any]) -> dict[str, Any]:
    """How logits were made, as far as is told; whether they were corrected is told by silence too."""
    told = {key: protocol[key] for key in MADE if key in protocol}
    return {**told, "corrected_by": protocol.get("corrected_by")}
