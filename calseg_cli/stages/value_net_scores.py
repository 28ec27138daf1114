"""Owns how a value net is measured: on held-out labelled images, as they are and made worse, against plain predictors.

The same image is shown once as it is and once under each fixed change, so every row of numbers repeats.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from calseg_cli.artifacts.writer import ArtifactWriter
from calseg_cli.data.dataset import SegmentationDataset
from calseg_cli.data.loader import evaluation_samples
from calseg_cli.engine.distributed import ALONE, Ranks
from calseg_cli.engine.progress import Progress
from calseg_cli.methods.corruption import KINDS, corrupt
from calseg_cli.methods.value_net import ValueNet
from calseg_cli.methods.value_net_training import PLAIN, Recipe, look
from calseg_cli.metrics.agreement import Agreement, agreement
from calseg_cli.report.drawing import save_png
from calseg_cli.report.value_figure import Group, value_figure
from calseg_cli.report.wording import number
from calseg_cli.stages.value_nets import TOGETHER

CLEAN, ALL = "as they are", TOGETHER
VALUE_NET = "value net"
PREDICTORS = {
    VALUE_NET: "value net",
    "mean": "mean error",
    "entropy": "from mean entropy",
    "doubt": "from 1 - mean confidence",
}
_MEASURED = 2  # apart from the streams of training: what a random stream is for
Lines = Mapping[str, tuple[float, float]]


@dataclass(frozen=True)
class Measured:
    """One row an image and change: its id, the change, the true error, and what each predictor expects."""

    ids: tuple[str, ...]
    changes: tuple[str, ...]
    true: NDArray[np.float64]
    expected: Mapping[str, NDArray[np.float64]]

    def of(self, change: str) -> NDArray[np.bool_]:
        """Which rows are of that change; CLEAN and ALL are changes too."""
        return np.array([change in (ALL, one) for one in self.changes], bool)

    def agreement(self, change: str, predictor: str) -> Agreement:
        """How well a predictor agrees with the truth on the rows of a change."""
        rows = self.of(change)
        return agreement(self.expected[predictor][rows], self.true[rows])

    @property
    def shown(self) -> list[str]:
        """The groups of rows that are told apart."""
        return [*dict.fromkeys(self.changes), ALL] if self.ids else []

    def document(self) -> dict[str, dict[str, dict[str, float]]]:
        """Change to predictor to score."""
        return {
            change: {name: dict(vars(self.agreement(change, name))) for name in PREDICTORS} for change in self.shown
        }

    def tables(self) -> list[tuple[str, list[str], list[list[str]]]]:
        """Title, headers and rows: every predictor on clean and on all rows, then the value net by change."""
        headers = ["", "Pearson", "Spearman", "R2", "MSE", "expected - true"]
        main = [
            (f"{len(set(self.ids))} held-out images {change}: mean error {number(self._mean(change))}", headers, rows)
            for change in (CLEAN, ALL)
            if (rows := [[PREDICTORS[name], *_cells(self.agreement(change, name))] for name in PREDICTORS])
        ]
        rows = [
            [change, number(self._mean(change)), *_cells(self.agreement(change, VALUE_NET))]
            for change in self.shown
            if change != ALL
        ]
        return [*main, ("the value net by change", ["change", "mean error", *headers[1:]], rows)]

    def beaten_by(self) -> dict[str, list[str]]:
        """Where the value net is not the best by squared error: the plain predictors that are as good, by change."""
        found = {}
        for change in (CLEAN, ALL):
            own = self.agreement(change, VALUE_NET).mse
            better = [name for name in PREDICTORS if name != VALUE_NET and self.agreement(change, name).mse <= own]
            if better:
                found[change] = [PREDICTORS[name] for name in better]
        return found

    def _mean(self, change: str) -> float:
        rows = self.of(change)
        return float(self.true[rows].mean()) if rows.any() else float("nan")


def measure_value_net(
    frozen: nn.Module,
    net: ValueNet,
    dataset: SegmentationDataset,
    lines: Lines,
    recipe: Recipe,
    *,
    strength: float,
    workers: int,
    device: torch.device,
    progress: Progress,
    ranks: Ranks = ALONE,
) -> Measured:
    """Both networks in evaluation mode over labelled images, each clean and under every kind of change.

    Several `ranks` measure some of the images each; all of them get the rows of all, in the images' order.
    """
    net.eval()
    frozen.eval()
    places = ranks.places(len(dataset))
    rows: list[_Row] = []
    progress.start("measuring the value net", len(places))
    samples = evaluation_samples(dataset, workers, places)
    for place, (name, image, label, _) in zip(places, samples, strict=True):
        assert label is not None
        labels = torch.from_numpy(label)[None].long().to(device)
        for change, changed in _views(image[0].to(device), strength, (recipe.seed, _MEASURED, place)):
            seen = look(
                frozen,
                changed[None],
                labels,
                target=recipe.target,
                bins=recipe.bins,
                size=(label.shape[0], label.shape[1]),
            )
            if bool(seen.labelled[0]):
                with torch.no_grad():
                    expected = float(net(seen.features)[0])
                rows.append(_Row(place, name, change, float(seen.errors[0]), expected, seen.plain[0].tolist()))
        progress.advance()
    progress.finish()
    everyones = [row for own in ranks.gather(rows) for row in own]
    return _collected(sorted(everyones, key=lambda row: row.place), lines)


def write_measured(folder: Path, measured: Measured, meta: Mapping[str, Any], error: str) -> tuple[Path, Path]:
    """The rows as an artifact of kind `value_scores`, and a picture of them; the two paths."""
    artifact, picture = folder / "held-out.h5", folder / "held-out.png"
    with ArtifactWriter(artifact, "value_scores", meta=meta, force=True) as writer:
        writer.add_array("images", np.array(measured.ids, dtype=str))
        writer.add_array("changes", np.array(measured.changes, dtype=str))
        writer.add_array("true", measured.true)
        writer.add_array("expected", measured.expected[VALUE_NET])
        for name in ("mean", *PLAIN):
            writer.add_array(f"expected_by_{name}", measured.expected[name])
    groups = [
        Group(change, measured.expected[VALUE_NET][rows], measured.true[rows])
        for change in measured.shown
        if change != ALL and (rows := measured.of(change)).any()
    ]
    best = measured.agreement(ALL, VALUE_NET)
    told = f"all together: Spearman {number(best.spearman, decimals=2)}, R² {number(best.r2, decimals=2)}"
    save_png(value_figure(groups, told, error), picture)
    return artifact, picture


def _views(image: Tensor, strength: float, seed: Sequence[int]) -> Iterator[tuple[str, Tensor]]:
    yield CLEAN, image
    if strength > 0:
        for place, kind in enumerate(KINDS):
            yield kind, corrupt(image, kind, strength, np.random.default_rng((*seed, place)))


@dataclass(frozen=True)
class _Row:
    """An image at its place in the dataset, a change of it, and what is true and expected there."""

    place: int
    id: str
    change: str
    error: float
    expected: float
    plain: list[float]


def _collected(rows: Sequence[_Row], lines: Lines) -> Measured:
    true = np.array([row.error for row in rows], np.float64)
    plain = np.array([row.plain for row in rows], np.float64).reshape(len(rows), len(PLAIN))
    expected = {VALUE_NET: np.array([row.expected for row in rows], np.float64)}
    expected["mean"] = np.full(len(rows), lines["mean"][0])
    for column, name in enumerate(PLAIN):
        offset, slope = lines[name]
        expected[name] = np.clip(offset + slope * plain[:, column], 0, 1)
    return Measured(tuple(row.id for row in rows), tuple(row.change for row in rows), true, expected)


def _cells(scores: Agreement) -> list[str]:
    return [
        number(scores.pearson, decimals=3),
        number(scores.spearman, decimals=3),
        number(scores.r2, decimals=3),
        number(scores.mse, decimals=6),
        number(scores.bias, decimals=4, signed=True),
    ]
