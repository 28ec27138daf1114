"""Owns how far a score would move with other images: resamples of whole images, intervals, paired differences."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from calseg_cli.errors import ConfigError
from calseg_cli.metrics.bias import class_bias, over_classes, spread_scores
from calseg_cli.metrics.calibration import ece_of, sum_bins
from calseg_cli.metrics.fine_histogram import ONE, check_bins
from calseg_cli.metrics.image_rows import COARSE_BINS, ImageRows
from calseg_cli.metrics.scores import MCE_MIN_COUNT

Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]
METHODS = ("percentile", "basic")
"""Percentile: quantiles of the draws; basic: the same mirrored at the measured value, which undoes a bias of draws."""

LEVEL = 0.95
MIN_RESAMPLES, MAX_RESAMPLES = 100, 100_000
_AT_ONCE = 256  # resamples held in memory together


@dataclass(frozen=True)
class Draws:
    """Resamples of whole groups of images with replacement: a weight for each image, the same on every iteration.

    `groups` names the group of each image, in the order of the rows: its own id to resample images, its sequence where
    neighbouring frames are nearly one. Every draw takes as many groups as there are. Iterating gives int64 (b,I)
    weights, b at most 256, in all `resamples` rows; they depend on groups, resamples and seed alone, so two tables with
    the same images are resampled alike. Raises ConfigError for a number of resamples outside [100, 100000].
    """

    groups: tuple[str, ...]
    resamples: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        check_resamples(self.resamples)

    @property
    def num_groups(self) -> int:
        """How many groups are drawn from."""
        return len(set(self.groups))

    def __iter__(self) -> Iterator[Int64]:
        if not self.groups:
            return
        rng = np.random.default_rng(self.seed)
        names, of_image = np.unique(np.array(self.groups, dtype=object).astype(np.str_), return_inverse=True)
        for start in range(0, self.resamples, _AT_ONCE):
            number = min(_AT_ONCE, self.resamples - start)
            drawn = rng.integers(0, len(names), size=(number, len(names)))
            cells = drawn + np.arange(number)[:, None] * len(names)
            counts = np.bincount(cells.ravel(), minlength=number * len(names)).reshape(number, -1)
            yield counts[:, of_image.ravel()]


@dataclass(frozen=True)
class ScoreDraws:
    """Scores of B resamples: `scores` by name (B,), `classes` by name (B,C); NaN where there was nothing to measure."""

    scores: dict[str, Float64]
    classes: dict[str, Float64]


@dataclass(frozen=True)
class Interval:
    """A score and between which values it may lie; `undefined` draws were n/a and are left out.

    All but `value` are NaN (n/a) where fewer than two groups were drawn from or the score itself is n/a.
    """

    value: float
    low: float
    high: float
    median: float
    undefined: int


@dataclass(frozen=True)
class Difference(Interval):
    """B minus A on the same draws. `share` is small where few draws have a difference of the other sign or none.

    It is twice the smaller share of draws at or beyond 0 on either side, each side with one draw more so that it is
    never 0, and at most 1: it reads like a two-sided p-value, and is one only as far as images are independent.
    """

    share: float

    @property
    def excludes_zero(self) -> bool:
        """Whether 0 lies outside the interval."""
        return self.low > 0 or self.high < 0


def score_draws(
    images: ImageRows, draws: Draws | Sequence[Int64], *, bins: int = 15, classes: Sequence[int] | None = None
) -> ScoreDraws:
    """The scores of each resample, as `read_scores` would give them of its images, bit for bit.

    Sums of whole numbers below 2**53 are exact in float64, so one matrix product makes the counts of all resamples.
    Scores: all that need rows of images only. KS, the noise floor and the ECE of a class need finer counts than a row
    has and are not among them; nor are means over the classes that are predicted too often, which are others in every
    draw. `classes` are those that means over classes look at. A class without ground truth in a draw is left out of the
    mean of that draw. Raises ConfigError unless `bins` divides 300.
    """
    check_bins(bins, COARSE_BINS)
    table = _Columns(images, bins)
    parts = [_scores(table, weights, bins, classes) for weights in draws]
    if not parts:
        return ScoreDraws({}, {})
    return ScoreDraws(
        *({name: np.concatenate([part[place][name] for part in parts]) for name in parts[0][place]} for place in (0, 1))
    )


def measured(images: ImageRows, *, bins: int = 15, classes: Sequence[int] | None = None) -> ScoreDraws:
    """The scores of the images as they are: the one draw that takes each image once."""
    return score_draws(images, [np.ones((1, len(images.ids)), np.int64)], bins=bins, classes=classes)


def interval(
    value: float, drawn: Float64, draws: Draws, *, level: float = LEVEL, method: str = "percentile"
) -> Interval:
    """The interval of a score around its measured `value` from its draws (B,). Raises ConfigError: level, method."""
    check_level(level, method)
    value, known = float(value), drawn[~np.isnan(drawn)]
    undefined = len(drawn) - len(known)
    if draws.num_groups < 2 or not known.size or math.isnan(value):
        return Interval(value, math.nan, math.nan, math.nan, undefined)
    tail = (1 - level) / 2
    low, median, high = (float(number) for number in np.quantile(known, (tail, 0.5, 1 - tail)))
    if method == "basic":
        low, high = 2 * value - high, 2 * value - low
    return Interval(value, low, high, median, undefined)


def difference(
    first: tuple[float, Float64],
    second: tuple[float, Float64],
    draws: Draws,
    *,
    level: float = LEVEL,
    method: str = "percentile",
) -> Difference:
    """Second minus first, each given by its measured value and its draws (B,) under the same weights."""
    apart = second[1] - first[1]
    found = interval(second[0] - first[0], apart, draws, level=level, method=method)
    known = apart[~np.isnan(apart)]
    fewer = min(int((known <= 0).sum()), int((known >= 0).sum()))
    share = math.nan if math.isnan(found.low) else min(1.0, 2 * (fewer + 1) / (len(known) + 1))
    return Difference(**vars(found), share=share)


def check_level(level: float, method: str = "percentile") -> None:
    """Raise ConfigError unless 0 < level < 1 and the method is known."""
    if not 0 < level < 1:
        raise ConfigError(f"a level of {level:g} is not a share between 0 and 1", "0.95 is usual")
    if method not in METHODS:
        raise ConfigError(f"unknown interval {method!r}", f"choose {' or '.join(METHODS)}")


def check_resamples(resamples: int) -> None:
    """Raise ConfigError for a number of resamples that gives no interval, or takes for ever."""
    if not MIN_RESAMPLES <= resamples <= MAX_RESAMPLES:
        raise ConfigError(
            f"{resamples} resamples are too few or too many", f"choose {MIN_RESAMPLES} to {MAX_RESAMPLES}"
        )


class _Columns:
    """The rows of images as columns of whole numbers in float64, side by side for one product; and the rest of them."""

    def __init__(self, images: ImageRows, bins: int) -> None:
        count, correct, confidence = (images.coarse[:, place] for place in range(3))
        # Whole units of confidence and the fraction apart, as in `sum_bins`: together they would not fit into 53 bits.
        columns = {
            "confusion": images.confusion.reshape(len(images.ids), images.num_classes**2),
            "count": count,
            "correct": correct,
            "whole": confidence // ONE,
            "part": confidence % ONE,
        }
        self._matrix = np.concatenate(list(columns.values()), axis=1).astype(np.float64)
        self._names = list(columns)
        self._ends = np.cumsum([array.shape[1] for array in columns.values()])[:-1]
        self.real = {"nll": images.nll, "brier": images.brier, "brier_top": images.brier_top}
        self.eces = np.array([_own_ece(row, bins) for row in images.coarse])

    def sums(self, weights: Int64) -> dict[str, Float64]:
        """Each block of columns summed with the weights (b,I): whole numbers (b,columns)."""
        total = weights.astype(np.float64) @ self._matrix
        return dict(zip(self._names, np.split(total, self._ends, axis=1), strict=True))


def _scores(
    table: _Columns, weights: Int64, bins: int, classes: Sequence[int] | None
) -> tuple[dict[str, Float64], dict[str, Float64]]:
    sums = _with_classes(table.sums(weights))
    by_class = _class_scores(sums)
    pixels = sums["true"].sum(axis=1)
    scores = {
        "miou": over_classes(by_class["iou"], classes),
        "macc": over_classes(by_class["accuracy"], classes),
        **spread_scores(by_class["iou"], by_class["accuracy"], by_class["bias"], classes),
        "accuracy": _ratio(sums["hits"].sum(axis=1), pixels),
        **_trust(sums, pixels, bins),
        **_of_images(table.eces, weights),
        **{name: _ratio(_sum_exactly(values, weights), pixels) for name, values in table.real.items()},
    }
    return scores, by_class


def _with_classes(sums: Mapping[str, Float64]) -> dict[str, Float64]:
    """Besides, the confusion matrices as `pairs` (b,C,C), and their `hits`, `true` and `predicted` pixels (b,C)."""
    side = math.isqrt(sums["confusion"].shape[1])
    pairs = sums["confusion"].reshape(-1, side, side)
    hits = np.ascontiguousarray(np.diagonal(pairs, axis1=1, axis2=2))
    return {**sums, "pairs": pairs, "hits": hits, "true": pairs.sum(axis=2), "predicted": pairs.sum(axis=1)}


def _class_scores(sums: Mapping[str, Float64]) -> dict[str, Float64]:
    hits, true, predicted = sums["hits"], sums["true"], sums["predicted"]
    return {
        "iou": _ratio(hits, np.where(true > 0, true + predicted - hits, 0)),
        "accuracy": _ratio(hits, true),
        "precision": _ratio(hits, predicted),
        "bias": class_bias(sums["pairs"]),
    }


def _trust(sums: Mapping[str, Float64], pixels: Float64, bins: int) -> dict[str, Float64]:
    """The scores of the histogram of confidence, from its residual by bin."""
    count, excess = _merge_bins(sums["count"], bins), _excess(sums, bins)
    gaps, some = np.abs(excess), np.maximum(count, 1)
    trusted = count >= MCE_MIN_COUNT
    worst = np.where(trusted, gaps / some, -1.0).max(axis=1)
    whole, part = sums["whole"].sum(axis=1), sums["part"].sum(axis=1)
    return {
        "mean_confidence": _ratio(whole + part / ONE, pixels),
        "signed_gap": _ratio(_excess(sums, 1)[:, 0], pixels),
        "ece": _ratio(gaps.sum(axis=1), pixels),
        "ece_10": _ratio(np.abs(_excess(sums, 10)).sum(axis=1), pixels),
        "ece_15": _ratio(np.abs(_excess(sums, 15)).sum(axis=1), pixels),
        "over_confidence": _ratio(np.maximum(excess, 0).sum(axis=1), pixels),
        "under_confidence": _ratio(np.maximum(-excess, 0).sum(axis=1), pixels),
        "mce": np.where(trusted.any(axis=1), worst, np.nan),
        "rmsce": np.sqrt(_ratio((excess * excess / some).sum(axis=1), pixels)),
    }


def _excess(sums: Mapping[str, Float64], bins: int) -> Float64:
    """The sum of confidence minus the right pixels by bin (b,bins), rounded once."""
    whole, right, part = (_merge_bins(sums[name], bins) for name in ("whole", "correct", "part"))
    return (whole - right) + part / ONE


def _merge_bins(sums: Float64, bins: int) -> Float64:
    merged: Float64 = sums.reshape(len(sums), bins, -1).sum(axis=2)
    return merged


def _of_images(eces: Float64, weights: Int64) -> dict[str, Float64]:
    """Mean and median of the images' own ECE; images without a pixel are left out."""
    filled = ~np.isnan(eces)
    taken = [np.repeat(eces[filled], row) for row in weights[:, filled]]
    return {
        "ece_image": np.array([row.mean() if row.size else math.nan for row in taken]),
        "ece_image_median": np.array([np.median(row) if row.size else math.nan for row in taken]),
    }


def _own_ece(row: Int64, bins: int) -> float:
    count, correct, confidence = row
    return ece_of(sum_bins(count, correct, confidence, bins))


def _sum_exactly(values: Float64, weights: Int64) -> Float64:
    """Weighted sums (b,) of reals, each rounded once, so that no order of images changes them."""
    return np.array([math.fsum(np.repeat(values, row).tolist()) for row in weights])


def _ratio(parts: Float64, wholes: Float64) -> Float64:
    ratio: Float64 = np.divide(parts, wholes, out=np.full(wholes.shape, np.nan), where=wholes > 0)
    return ratio
