"""Owns what a choice among checkpoints leaves: rows with scores and reasons, as arrays, tables, a picture and JSON."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calseg_cli.artifacts.reader import open_artifact
from calseg_cli.errors import ArtifactError
from calseg_cli.metrics.intervals import Interval
from calseg_cli.report.checkpoint_figure import CheckpointScores, Course
from calseg_cli.report.wording import NOT_AVAILABLE, interval_text, is_missing, number, score_label, score_text
from calseg_cli.stages.run_folder import NETWORK

ARTIFACT = "selection.h5"
PICTURE = "checkpoints.png"
ORACLE = "ORACLE: chosen by labels of the target, which nobody has who needs to choose. A bound, not a result"
LABELS = {"neighbourhood": "SND", "value_net": "expected ECE", "entropy": "entropy", "confidence": "confidence"}
BESIDE = {
    "ece": ("miou",),
    "ece_image": ("miou",),
    "nll": ("miou",),
    "miou": ("ece",),
    "entropy": ("confidence",),
    "neighbourhood": ("entropy",),
    "value_net": ("entropy",),
}
"""Which scores stand beside the criterion in tables and in the picture."""
_HIGHER = ("miou", "neighbourhood", "confidence")
_UNKNOWN = (math.nan, math.nan, math.nan)
_Ends = tuple[float, float, float]


@dataclass(frozen=True)
class Row:
    """One checkpoint: `scores` by name as value, low, high; `apart`: the criterion minus that of the chosen one.

    `counts` says "kept" or "measured"; `classes` how many it predicts, -1 where that was not looked at; `refused` why
    it could not win. `step` is -1 where the file could not be read.
    """

    name: str
    file: str
    step: int
    digest: str
    counts: str = ""
    scores: Mapping[str, _Ends] = field(default_factory=dict)
    apart: _Ends = _UNKNOWN
    classes: int = -1
    refused: str | None = None

    def score(self, name: str) -> _Ends:
        """Value, low and high end of a score; NaN where it is not known."""
        return self.scores.get(name, _UNKNOWN)


@dataclass(frozen=True)
class Selected:
    """What the stage leaves: its folder, all rows by step, the place of the chosen one, and how it was chosen."""

    folder: Path
    rows: tuple[Row, ...]
    chosen: int
    protocol: Mapping[str, Any]
    digest: str

    @property
    def network(self) -> Path:
        """The chosen checkpoint's copy."""
        return self.folder / NETWORK

    @property
    def score(self) -> str:
        """The name of the score that decided."""
        return str(self.protocol["score"])

    @property
    def oracle(self) -> bool:
        """Whether labels of the target decided."""
        return "oracle" in str(self.protocol["labels_used_for"])

    @property
    def winner(self) -> Row:
        """The chosen row."""
        return self.rows[self.chosen]

    def tables(self) -> list[tuple[str, list[str], list[list[str]]]]:
        """Title, headers and rows: every checkpoint with what decided, and how far it is from the chosen one."""
        others = BESIDE[self.score]
        looked = any(row.classes >= 0 for row in self.rows)
        headers = ["checkpoint", "step", _label(self.score), "95 % interval", *map(_label, others)]
        headers += [*(["classes"] if looked else []), "minus chosen", "95 % interval", ""]
        rows = [self._cells(place, others, looked=looked) for place in range(len(self.rows))]
        oracle = f"{ORACLE}\n" if self.oracle else ""
        return [(f"{oracle}by {self.protocol['criterion']}: {self.protocol['place']}", headers, rows)]

    def _cells(self, place: int, others: Sequence[str], *, looked: bool) -> list[str]:
        row = self.rows[place]
        value, low, high = row.score(self.score)
        step = str(row.step) if row.step >= 0 else NOT_AVAILABLE
        cells = [row.name, step, _text(self.score, value), interval_text(self.score, low, high)]
        cells += [_text(name, row.score(name)[0]) for name in others]
        cells += [str(row.classes) if row.classes >= 0 else NOT_AVAILABLE] if looked else []
        apart, least, most = row.apart
        between = NOT_AVAILABLE if is_missing(least) else f"{number(least, signed=True)} to {number(most, signed=True)}"
        shown = ["", ""] if place == self.chosen else [number(apart, signed=True), between]
        return [*cells, *shown, self.verdict(place)]

    def verdict(self, place: int) -> str:
        """One word or two on a row: chosen, refused, worse, or not told apart from the chosen one by these images."""
        row = self.rows[place]
        if place == self.chosen:
            return "chosen"
        if row.refused is not None:
            return "refused"
        _, low, high = row.apart
        if is_missing(low):
            return ""
        return "worse" if low > 0 or high < 0 else "may be chance"

    def reasons(self) -> list[str]:
        """A line for each refused checkpoint."""
        return [f"{row.name} is refused: {row.refused}" for row in self.rows if row.refused is not None]

    def explanation(self) -> list[str]:
        """What a reader of the table has to know."""
        protocol, lines = self.protocol, self.reasons()
        if protocol["intervals"]:
            drawn = f"{protocol['intervals']} draws of {protocol['images']} images, seed {protocol['seed']}"
            lines.append(f"95 % intervals of {drawn}; one checkpoint against another on the same draws")
        if any(self.verdict(place) == "may be chance" for place in range(len(self.rows))):
            lines.append("may be chance: the interval of the difference to the chosen one holds 0")
        return lines

    def course(self) -> Course:
        """The same for the picture."""
        names = (self.score, *BESIDE[self.score])
        least = self.protocol.get("least_miou")
        return Course(
            title=f"{'ORACLE: ' if self.oracle else ''}{self.protocol['criterion']}, {self.protocol['place']}",
            names=tuple(row.name for row in self.rows),
            steps=tuple(row.step for row in self.rows),
            chosen=self.chosen,
            refused=tuple(row.refused is not None for row in self.rows),
            scores=tuple(
                CheckpointScores(
                    _label(name),
                    "higher" if name in _HIGHER else "lower",
                    np.array([row.score(name) for row in self.rows], np.float64).reshape(-1, 3),
                    float(least) if name == "miou" and least is not None else None,
                )
                for name in names
            ),
        )

    def document(self) -> dict[str, Any]:
        """The same as plain values for JSON."""
        return {
            "network": self.network,
            "selection": self.folder / ARTIFACT,
            "picture": self.folder / PICTURE,
            "digest": self.digest,
            **self.protocol,
            "checkpoints": [self._entry(place) for place in range(len(self.rows))],
        }

    def _entry(self, place: int) -> dict[str, Any]:
        row = self.rows[place]
        return {
            "name": row.name,
            "file": row.file,
            "step": row.step if row.step >= 0 else None,
            "counts": row.counts or None,
            "scores": {name: _ends(ends) for name, ends in row.scores.items()},
            "classes": row.classes if row.classes >= 0 else None,
            "minus_chosen": _ends(row.apart),
            "chosen": place == self.chosen,
            "refused": row.refused,
        }

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """All rows as arrays by name, one value or more a checkpoint."""
        named = sorted({name for row in self.rows for name in row.scores})
        texts = {name: [getattr(row, name) for row in self.rows] for name in ("name", "file", "digest", "counts")}
        texts["refused"] = [row.refused or "" for row in self.rows]
        return {
            "scores": np.array([row.score(self.score)[0] for row in self.rows], np.float64),
            "step": np.array([row.step for row in self.rows], np.int64),
            "classes": np.array([row.classes for row in self.rows], np.int64),
            "apart": np.array([row.apart for row in self.rows], np.float64).reshape(-1, 3),
            "chosen": np.array([self.chosen], np.int64),
            **{name: np.array(values, np.str_) for name, values in texts.items()},
            **{f"score_{name}": np.array([row.score(name) for row in self.rows], np.float64) for name in named},
        }


def read_selected(folder: Path) -> Selected:
    """What an earlier choice left. Raises ArtifactError where it is not there or cannot be read."""
    path = folder / ARTIFACT
    with open_artifact(path, "selection") as artifact:
        arrays, protocol, digest = artifact.arrays(), artifact.meta["protocol"], artifact.digest
    try:
        rows = tuple(_row(arrays, place) for place in range(len(arrays["scores"])))
        return Selected(folder, rows, int(arrays["chosen"][0]), protocol, digest)
    except (KeyError, IndexError, ValueError, TypeError) as error:
        raise ArtifactError(f"{path} holds no choice of a checkpoint: {error}", "choose again with --force") from error


def _row(arrays: Mapping[str, NDArray[Any]], place: int) -> Row:
    name, file, digest, counts, refused = (
        str(arrays[key][place]) for key in ("name", "file", "digest", "counts", "refused")
    )
    columns = {key.removeprefix("score_"): array[place] for key, array in arrays.items() if key.startswith("score_")}
    scores = {key: _triple(values) for key, values in columns.items() if not np.isnan(values).all()}
    step, classes = int(arrays["step"][place]), int(arrays["classes"][place])
    return Row(name, file, step, digest, counts, scores, _triple(arrays["apart"][place]), classes, refused or None)


def ends_of(found: Interval) -> _Ends:
    """Value, low, high."""
    return found.value, found.low, found.high


def _triple(values: NDArray[Any]) -> _Ends:
    value, low, high = (float(number) for number in values)
    return value, low, high


def _ends(ends: _Ends) -> dict[str, float]:
    return dict(zip(("value", "low", "high"), ends, strict=True))


def _label(name: str) -> str:
    return LABELS.get(name) or score_label(name)


def _text(name: str, value: float) -> str:
    return score_text(name, value)
