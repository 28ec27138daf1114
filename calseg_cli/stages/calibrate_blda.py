"""Owns how corrections that balance classes are fed: logits counted by class in each domain, and the search for tau."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from calseg_cli.config import Resolved
from calseg_cli.data.catalog import IGNORE
from calseg_cli.data.dataset import SegmentationDataset
from calseg_cli.engine.infer import Prediction
from calseg_cli.engine.progress import Progress
from calseg_cli.errors import ConfigError, DataError
from calseg_cli.methods.aligned_quantiles import pooled_anchors, quantile_table
from calseg_cli.methods.balanced_prediction import BalancedPrediction
from calseg_cli.methods.logit_adjustment import LogitAdjustment
from calseg_cli.methods.tau_sweep import TAUS, Deciding, count_changed, count_expected, count_labelled, read_curve
from calseg_cli.metrics.confusion import check_labels
from calseg_cli.metrics.logit_histograms import LogitHistograms, count_logits
from calseg_cli.stages.cells import cell_labels
from calseg_cli.stages.domains import DomainData, open_domain
from calseg_cli.stages.networks import LoadedNetwork
from calseg_cli.stages.roads import NetworkRoad, Road

CELLS = "cells of the logits' own grid, each with the prediction there, or with the label of the pixel at its centre"
"""On what it is fitted."""
TABLES = ("min_pixels", "nodes", "tail", "tail_quantile")
"""What of adapt.blda says how tables are made."""
_LOOKED_AT = 128
"""The images of the target, at most, on which strengths are tried."""

Balancing = BalancedPrediction | LogitAdjustment
Held = Callable[[], Iterable[Prediction]]
Counted = Callable[[], LogitHistograms]


@dataclass(frozen=True)
class BalancingFit:
    """Unlabelled logits of the target by `road`; where it is asked for the source's labels, and its logits by `loaded`.

    Raises ConfigError where the source's logits are needed and there is no network, or no source.
    """

    resolved: Resolved
    road: Road
    split: str
    loaded: LoadedNetwork | None
    device: torch.device
    progress: Progress

    def __post_init__(self) -> None:
        options = self.resolved.config.calibrate
        if self._needs_source_logits and self.loaded is None:
            ways = "--tau-by expected, or a number as --tau"
            ways += ", with calibrate.anchors=target and calibrate.cells=target" if options.method == "blda" else ""
            raise ConfigError(
                f"{options.method} with these options needs the network's logits of the source",
                f"give --checkpoint in place of --logits; or {ways}",
            )
        if self.labels == "source":
            for images in [self._training, *([self._judging] if self.loaded else [])]:
                if not len(images):
                    raise DataError("there are no source images to learn from", "check the source's root and splits")
        self._tell_of_training()

    @property
    def labels(self) -> str:
        """Whose labels are opened: "source" or "none"."""
        by_labels = self._needs_source_logits or (self._adjusts and self.resolved.config.calibrate.prior == "source")
        return "source" if by_labels else "none"

    @property
    def measured(self) -> Road | None:
        """To logits of labelled source images; None where no label is opened, or there is no network."""
        return self._source_road(self._judging) if self.labels == "source" and self.loaded else None

    def told(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """What the artifact tells of the images; `options` are those of the command's own section."""
        section = self.resolved.config.adapt.blda
        images = len(self.road.dataset)
        place = f"target {self.split}, {images} images"
        tables = {} if self._adjusts else {name: getattr(section, name) for name in TABLES}
        told = {
            "fitted_on": place,
            "images": images,
            "labels": self.labels,
            "grid": CELLS,
            "options": {**options, **tables},
        }
        if self.labels == "source":
            by = " and val" if self._judged_by_source else ""
            told["fitted_on"] = f"{place}, labels of source train{by}"
        return {**told, "measured_on": self._measured_on}

    @property
    def _measured_on(self) -> str:
        if self.measured is None:
            return "nothing: no label was opened, or there is no network"
        return f"source val, {len(self._judging)} images, " + (
            "whose labels chose tau" if self._judged_by_source else "held out"
        )

    def fit(self, told: Mapping[str, Any], held: Held) -> Balancing:
        """Count, and find the strength; `held` gives what is `measured`, `told` is for the artifact."""
        made = self._prior if self._adjusts else self._table
        found = made(self._of_target)
        tau, outcome = self.resolved.config.calibrate.tau, {"unchanged_classes": self._unchanged(found)}
        if tau != "auto":
            return found.make(float(tau), {**told, "fit": {"status": "tau given", **outcome}})
        judge = made(self._own_of(held)).make(0.0, None) if self._judged_by_source else None
        chosen, rows = self._sweep(found.make(0.0, None).classes, judge, held)
        return found.make(chosen, {**told, "fit": {"status": "tau chosen", **outcome, "sweep": rows}})

    # What is fitted

    def _table(self, own: Counted) -> "_Found":
        """BLDA's offsets, of classes that have enough cells; `own` is of the images to be corrected."""
        config = self.resolved.config
        options, section = config.calibrate, config.adapt.blda
        cells = self._of_source if options.cells == "source" else own()
        anchors = pooled_anchors(self._of_source if options.anchors == "source" else own(), options.anchor_weights)
        levels = [float(np.interp(0.5, np.cumsum(row), anchors.edges[1:])) for row in anchors.shares]
        if not levels[0] > levels[1]:
            raise DataError(
                "pixels' own logits are no higher than the others: the network tells no class from another",
                "train it first; calseg evaluate --report bias shows both",
            )
        seen = _pixels(cells) >= section.min_pixels
        shape = {name: getattr(section, name) for name in TABLES[1:]}
        return _Found(seen, partial(BalancedPrediction, quantile_table(cells, anchors, seen, **shape)))

    def _prior(self, own: Counted) -> "_Found":
        """How often each class occurs."""
        pixels = self._training_pixels if self.resolved.config.calibrate.prior == "source" else _pixels(own())
        if not pixels.any():
            raise DataError("no pixel has a class, so no class has a frequency", "check the source's labels")
        return _Found(pixels > 0, partial(LogitAdjustment, pixels / pixels.sum()))

    def _unchanged(self, found: "_Found") -> str:
        """The classes that have no offset, by name."""
        names = [name for name, known in zip(self.road.class_names, found.known, strict=True) if not known]
        return ", ".join(names) or "none"

    # The strength

    def _sweep(self, decide: Deciding, judge: Balancing | None, held: Held) -> tuple[float, list[dict[str, float]]]:
        """The strength, and a row of the table for each that was tried."""
        size = len(self.road.class_names)
        confusions, changed, looked = np.zeros((len(TAUS), size, size)), np.zeros(len(TAUS), np.int64), 0
        for logits, _ in self._cells(self.road.stream(self._spread), "trying strengths", len(self._spread)):
            changed += count_changed(decide, logits)
            looked += logits.shape[1]
            if judge is None:
                confusions += count_expected(decide, logits)
        if judge is not None:
            for logits, labels in self._cells(held(), "judging strengths", len(self._judging), by_labels=True):
                confusions += count_labelled(judge.classes, logits, labels)
        curve = read_curve(confusions)
        columns = {"tau": np.array(TAUS), **vars(curve), "changed_on_target": changed / max(looked, 1)}
        rows = [{name: float(column[place]) for name, column in columns.items()} for place in range(len(TAUS))]
        return curve.best(self.resolved.config.calibrate.tau_for), rows

    @property
    def _spread(self) -> list[int]:
        """The images of the target that strengths are tried on, as evenly as can be."""
        count = len(self.road.dataset)
        return sorted({int(place) for place in np.linspace(0, count - 1, min(count, _LOOKED_AT)).round()})

    # What is counted

    @cached_property
    def _of_target(self) -> Counted:
        return _once(lambda: self._count(self.road.stream(), "looking at the target", len(self.road.dataset)))

    def _own_of(self, held: Held) -> Counted:
        return _once(lambda: self._count(held(), "looking at source val", len(self._judging)))

    @cached_property
    def _of_source(self) -> LogitHistograms:
        road = self._source_road(self._training)
        return self._count(road.stream(), "looking at source train", len(self._training), by_labels=True)

    @cached_property
    def _training_pixels(self) -> NDArray[np.int64]:
        return self._training.count_pixels()

    def _count(
        self, stream: Iterable[Prediction], title: str, total: int, *, by_labels: bool = False
    ) -> LogitHistograms:
        """The histograms of cells by their labels, or by the network's own classes."""
        counted = LogitHistograms.zeros(len(self.road.class_names))
        for logits, labels in self._cells(stream, title, total, by_labels=by_labels):
            counted += count_logits(logits, labels if by_labels else logits.argmax(dim=0))
        return counted

    def _cells(
        self, stream: Iterable[Prediction], title: str, total: int, *, by_labels: bool = False
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Logits (C,P) and labels (P,) of the cells of each image: those with a label, or all but padding."""
        self.progress.start(title, total)
        for one in stream:
            yield _cells_of(one, by_labels=by_labels)
            self.progress.advance()
        self.progress.finish()

    # What is needed

    @property
    def _adjusts(self) -> bool:
        return self.resolved.config.calibrate.method == LogitAdjustment.method

    @property
    def _judged_by_source(self) -> bool:
        options = self.resolved.config.calibrate
        return options.tau == "auto" and options.tau_by == "source"

    @property
    def _needs_source_logits(self) -> bool:
        options = self.resolved.config.calibrate
        return self._judged_by_source or (not self._adjusts and "source" in (options.anchors, options.cells))

    @cached_property
    def _training(self) -> SegmentationDataset:
        return self._labelled("train")

    @cached_property
    def _judging(self) -> SegmentationDataset:
        return self._labelled("val")

    def _labelled(self, split: str) -> SegmentationDataset:
        most = self.resolved.config.calibrate.max_items
        return self._source.dataset(split, with_labels=True, max_items=most)

    @property
    def _source(self) -> DomainData:
        return open_domain(self.resolved, "source", self.road.class_names)

    def _source_road(self, dataset: SegmentationDataset) -> NetworkRoad:
        config = self.resolved.config
        assert self.loaded is not None
        return NetworkRoad(self.loaded, dataset, config.predict, device=self.device, workers=config.workers)

    def _tell_of_training(self) -> None:
        stage = str(self.road.protocol.get("network", ""))
        if "blda" in stage:
            self.progress.note(f"warning: {stage} was trained with blda, so its own logits are balanced already")


@dataclass(frozen=True, eq=False)
class _Found:
    """What was fitted but for the strength, which makes a calibrator of it; `known` (C,) says which classes change."""

    known: NDArray[np.bool_]
    make: Callable[[float, Mapping[str, Any] | None], Balancing]


def _cells_of(one: Prediction, *, by_labels: bool) -> tuple[Tensor, Tensor]:
    """Raises DataError for a label that is no class."""
    size = int(one.logits.shape[1]), int(one.logits.shape[2])
    label = one.label if by_labels else np.zeros(one.geometry.out_hw, np.uint8)
    assert label is not None
    labels = cell_labels(label, one.geometry, size).flatten()
    check_labels(labels, one.logits.shape[0], ignore=IGNORE, where=one.id)
    counts = labels != IGNORE
    return one.logits.float().flatten(1)[:, counts], labels[counts]


def _pixels(counted: LogitHistograms) -> NDArray[np.int64]:
    """Cells of each class (C,)."""
    cells: NDArray[np.int64] = counted.counts[:, 0].sum(axis=1)
    return cells


def _once(count: Callable[[], LogitHistograms]) -> Counted:
    """The same, counted when first asked for."""
    found: list[LogitHistograms] = []

    def counted() -> LogitHistograms:
        if not found:
            found.append(count())
        return found[0]

    return counted
