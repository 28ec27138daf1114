"""Owns `calseg compare`: evaluations of the same images side by side, and how far chance alone would part them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from calseg_cli.errors import ConfigError
from calseg_cli.metrics.calibration import Convention, sum_bins
from calseg_cli.metrics.fine_histogram import check_bins
from calseg_cli.metrics.image_rows import COARSE_BINS, ImageRows
from calseg_cli.metrics.intervals import (
    LEVEL,
    Difference,
    Draws,
    Interval,
    ScoreDraws,
    check_level,
    difference,
    interval,
    measured,
    score_draws,
)
from calseg_cli.report.data import Compared, Reliability
from calseg_cli.report.drawing import save_png
from calseg_cli.report.overlay_figure import overlay_figure
from calseg_cli.stages.compared_files import (
    Source,
    evaluated_classes,
    groups_of,
    notes,
    open_sources,
    shared_images,
)

_FEW_GROUPS = 10
ByClass = tuple[Mapping[str, Interval], ...]


@dataclass(frozen=True)
class CompareOptions:
    """How to compare: level in (0,1); what is resampled, how often, with which seed; bins of the ECE."""

    level: float = LEVEL
    resamples: int = 1000
    seed: int = 0
    by: str = "image"
    sequence_pattern: str | None = None
    method: str = "percentile"
    bins: int = 15
    eval_classes: int | None = None

    @property
    def unit(self) -> str:
        """What is drawn: "image" or "sequence"."""
        return "sequence" if self.sequence_pattern is not None else self.by


@dataclass(frozen=True)
class Result:
    """One evaluation on the shared images: scores by name, and of each class by name."""

    source: Source
    scores: Mapping[str, Interval]
    classes: ByClass


@dataclass(frozen=True)
class Against:
    """One evaluation against the first: `second` minus `first`, by score, and by class and score."""

    first: Result
    second: Result
    scores: Mapping[str, Difference]
    classes: tuple[Mapping[str, Difference], ...]


@dataclass(frozen=True)
class Comparison:
    """Everything that was found; `evaluated` are the names of the classes that means are over, in their order."""

    options: CompareOptions
    convention: str
    num_images: int
    num_groups: int
    class_names: tuple[str, ...]
    evaluated: tuple[str, ...]
    results: tuple[Result, ...]
    against: tuple[Against, ...]
    curves: tuple[Compared, ...]
    notes: tuple[str, ...]

    def draw(self, path: Path) -> None:
        """Write the reliability curves of all results, one over the other, as a PNG."""
        save_png(overlay_figure(self.curves, f"{self.convention}; {self.num_images} images"), path)


def compare(paths: Sequence[Path], options: CompareOptions) -> Comparison:
    """Compare metrics artifacts on the images they share; each later one with the first.

    Raises ConfigError for options that cannot be used, ArtifactError for evaluations that do not fit.
    """
    check_bins(options.bins, COARSE_BINS)
    check_level(options.level, options.method)
    if len(paths) < 2:
        raise ConfigError(
            "a comparison needs two evaluations or more", "name another, such as `compare pretrain adapt`"
        )
    sources = open_sources(paths)
    tables = shared_images(sources)
    classes = evaluated_classes(sources, options.eval_classes)
    draws = Draws(groups_of(tables[0].ids, options.by, options.sequence_pattern), options.resamples, options.seed)
    series = [_Series.of(table, draws, options, classes) for table in tables]
    results = tuple(_result(source, one, draws, options) for source, one in zip(sources, series, strict=True))
    names = sources[0].class_names
    evaluated = tuple(names if classes is None else (names[index] for index in classes))
    return Comparison(
        options=options,
        convention=Convention(options.bins, sources[0].tally.edges).describe(),
        num_images=len(tables[0].ids),
        num_groups=draws.num_groups,
        class_names=names,
        evaluated=evaluated,
        results=results,
        against=tuple(
            _against(results[0], series[0], result, own, draws, options)
            for result, own in zip(results[1:], series[1:], strict=True)
        ),
        curves=tuple(_curve(result, table, options.bins) for result, table in zip(results, tables, strict=True)),
        notes=(*notes(sources, len(tables[0].ids)), *_about_draws(draws, options.unit, results[0], names)),
    )


Measured = tuple[float, NDArray[np.float64]]
"""A score of the images as they are, and its draws (B,)."""


@dataclass(frozen=True)
class _Series:
    """The scores of one evaluation by name, and of each class by name."""

    scores: Mapping[str, Measured]
    classes: tuple[Mapping[str, Measured], ...]

    @classmethod
    def of(cls, images: ImageRows, draws: Draws, options: CompareOptions, classes: list[int] | None) -> "_Series":
        value: ScoreDraws = measured(images, bins=options.bins, classes=classes)
        drawn = score_draws(images, draws, bins=options.bins, classes=classes)
        return cls(
            {name: (float(number[0]), drawn.scores[name]) for name, number in value.scores.items()},
            tuple(
                {name: (float(row[0, index]), drawn.classes[name][:, index]) for name, row in value.classes.items()}
                for index in range(images.num_classes)
            ),
        )


def _result(source: Source, series: _Series, draws: Draws, options: CompareOptions) -> Result:
    def intervals(measured: Mapping[str, Measured]) -> dict[str, Interval]:
        return {
            name: interval(*pair, draws, level=options.level, method=options.method) for name, pair in measured.items()
        }

    return Result(source, intervals(series.scores), tuple(intervals(row) for row in series.classes))


def _against(
    first: Result, one: _Series, second: Result, two: _Series, draws: Draws, options: CompareOptions
) -> Against:
    def apart(a: Mapping[str, Measured], b: Mapping[str, Measured]) -> dict[str, Difference]:
        return {name: difference(a[name], b[name], draws, level=options.level, method=options.method) for name in a}

    rows = zip(one.classes, two.classes, strict=True)
    return Against(first, second, apart(one.scores, two.scores), tuple(apart(*pair) for pair in rows))


def _curve(result: Result, images: ImageRows, bins: int) -> Compared:
    """The reliability curve of the shared images."""
    count, correct, fixed = (images.coarse[:, place] for place in range(3))
    sums = sum_bins(count, correct, fixed, bins)
    edges, some = np.arange(bins + 1) / bins, np.maximum(sums.count, 1)
    confidence, accuracy = (
        np.where(sums.count > 0, values / some, np.nan) for values in (sums.confidence, sums.correct)
    )
    scores = {name: found.value for name, found in result.scores.items()}
    return Compared(result.source.name, scores, Reliability(edges[:-1], edges[1:], sums.count, confidence, accuracy))


def _about_draws(draws: Draws, unit: str, first: Result, names: Sequence[str]) -> list[str]:
    found = []
    if draws.num_groups < 2:
        found.append(f"all images are of one {unit}: intervals are n/a")
    elif draws.num_groups < _FEW_GROUPS:
        found.append(f"only {draws.num_groups} {unit}s: intervals are rough, and mostly too narrow")
    rare = {name: row["accuracy"].undefined for name, row in zip(names, first.classes, strict=True)}
    scarce = [f"{name} {count}" for name, count in rare.items() if 0 < count < draws.resamples]
    if scarce:
        found.append(f"draws without a pixel of a class, of {draws.resamples}: {', '.join(scarce)}; left out for it")
    return found
