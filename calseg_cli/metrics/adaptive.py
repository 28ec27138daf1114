"""Owns calibration scores that need the order of pixels, read off the fine histogram with an error that is proven."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from calseg_cli.errors import ConfigError
from calseg_cli.metrics.fine_histogram import FINE_BINS, ONE, CalibrationCounts

Float64 = NDArray[np.float64]
Counts = NDArray[np.int64]


@dataclass(frozen=True)
class Bounded:
    """A score read off the histogram, and how far at most it lies from the score of the sorted pixels."""

    value: float
    bound: float


@dataclass(frozen=True)
class _Ordered:
    """The fine bins of all groups in rising order, arrays (4800,): pixels, right ones, units of confidence."""

    count: Counts
    correct: Counts
    whole: Counts
    part: Counts

    @classmethod
    def of(cls, counts: CalibrationCounts) -> "_Ordered":
        count, correct, confidence = counts.arrays()
        arrays = (count, correct, confidence // ONE, confidence % ONE)  # apart, since their sum may leave int64
        return cls(*(array.sum(axis=0) for array in arrays))

    @property
    def excess(self) -> Float64:
        """Confidence minus right pixels of each bin, rounded once."""
        excess: Float64 = (self.whole - self.correct) + self.part / ONE
        return excess

    @property
    def excess_below(self) -> Float64:
        """Confidence minus right pixels of all pixels below each edge, (4801,), rounded once."""
        below: Float64 = np.cumsum(self.whole - self.correct) + np.cumsum(self.part) / ONE
        return np.concatenate([[0.0], below])

    @property
    def saturated(self) -> NDArray[np.bool_]:
        """Bins whose pixels all have confidence 1: equals, so no order among them can be wrong."""
        saturated: NDArray[np.bool_] = (self.count > 0) & (self.whole == self.count)
        return saturated


def adaptive_ece(counts: CalibrationCounts, bins: int = 15) -> Bounded:
    """The ECE with bins of equally many pixels, in [0,1]; NaN if empty (Nixon et al. 2019, for the top label).

    The N pixels in rising order of confidence are cut as `numpy.array_split` does: N mod `bins` bins hold one more.
    Pixels of equal confidence have no order; a cut through them splits right and wrong ones in proportion, which is
    the mean over all their orders. So it is within a fine bin here, and `bound` says how far the true order can be
    from that: at a cut with m of a bin's n pixels below it, of which T are right and which is d wide, the right ones
    below lie between max(0, m - n + T) and min(m, T), and the sum of their confidence is at most m (n - m) d / n
    below its share; a cut concerns two bins. Raises ConfigError for fewer bins than 1.
    """
    if bins < 1:
        raise ConfigError(f"{bins} bins of equally many pixels cannot be made", "choose 1 or more")
    ordered = _Ordered.of(counts)
    total = int(ordered.count.sum())
    if not total:
        return Bounded(math.nan, math.nan)
    ends = np.cumsum(ordered.count)
    ranks = _cuts(total, bins)
    place = np.minimum(np.searchsorted(ends, ranks, side="right"), FINE_BINS - 1)
    below = ranks - (ends[place] - ordered.count[place])
    share = below / np.maximum(ordered.count[place], 1)
    edges = ordered.excess_below
    inner = edges[place] + share * ordered.excess[place]
    prefix = np.concatenate([[0.0], inner, edges[-1:]])
    return Bounded(
        float(np.abs(np.diff(prefix)).sum() / total), float(2 * _cut_errors(ordered, place, below).sum() / total)
    )


def _cuts(total: int, bins: int) -> Counts:
    """Pixels below each of the cuts between `bins` bins, (bins - 1,)."""
    index = np.arange(1, bins, dtype=np.int64)
    return index * (total // bins) + np.minimum(index, total % bins)


def _cut_errors(ordered: _Ordered, place: Counts, below: Counts) -> Float64:
    """How far each prefix sum can be from its split in proportion, (cuts,)."""
    pixels, right = ordered.count[place], ordered.correct[place]
    some = np.maximum(pixels, 1)
    expected = right * (below / some)
    fewest, most = np.maximum(0, below - (pixels - right)), np.minimum(below, right)
    errors = np.maximum(expected - fewest, most - expected) + below * ((pixels - below) / some) / FINE_BINS
    return np.where(ordered.saturated[place], 0.0, errors)


def ks_error(counts: CalibrationCounts) -> Bounded:
    """The KS calibration error of Gupta et al. 2021 without bins, in [0,1]; NaN if empty.

    The largest |sum of confidence - right pixels| of the pixels up to any confidence, over all pixels. `value` looks
    at the 4800 fine edges, as `calibration.ks` does; the score of the sorted pixels lies in [value, value + bound]:
    within a bin the sum can rise by its wrong pixels alone and fall by its right ones alone.
    """
    ordered = _Ordered.of(counts)
    total = int(ordered.count.sum())
    if not total:
        return Bounded(math.nan, math.nan)
    edges = ordered.excess_below
    high = np.arange(1, FINE_BINS + 1) / FINE_BINS
    rise = (ordered.count - ordered.correct) * high
    fall = ordered.correct * (1 - high + 1 / FINE_BINS)
    start, end = edges[:-1], edges[1:]
    highest, lowest = np.minimum(start + rise, end + fall), np.maximum(start - fall, end - rise)
    known = np.abs(edges).max()
    inside = np.maximum(highest, -lowest)[(ordered.count > 0) & ~ordered.saturated]
    return Bounded(float(known / total), float(max(inside.max(initial=0.0) - known, 0.0) / total))
