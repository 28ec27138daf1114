"""Owns sums by bin: fixed-point counts added up to the bins of a score, rounded once."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from calseg_cli.metrics.fine_histogram import ONE, CalibrationCounts, check_bins

Float64 = NDArray[np.float64]
Counts = NDArray[np.int64]


@dataclass(frozen=True)
class BinSums:
    """Sums over the groups by bin, arrays (bins,): pixels, right ones, and in float64 the sum of confidence.

    `excess` is the sum of confidence minus the right pixels, rounded once: the residual all scores are made of.
    """

    count: Counts
    correct: Counts
    confidence: Float64
    excess: Float64

    @property
    def num_pixels(self) -> int:
        """All pixels counted."""
        return int(self.count.sum())


def sum_bins(count: Counts, correct: Counts, confidence: Counts, bins: int) -> BinSums:
    """The (..., H) fixed-point counts of one image or dataset, added up to `bins` bins over all leading axes.

    Whole units and the fraction of confidence are added apart: their sums fit int64 and float64 exactly where the
    sum of both might not. Raises ConfigError unless `bins` divides H.
    """
    check_bins(bins, count.shape[-1])
    pixels, right, whole, part = (
        _merge_bins(array, bins) for array in (count, correct, confidence // ONE, confidence % ONE)
    )
    fraction = part / ONE
    return BinSums(pixels, right, whole + fraction, (whole - right) + fraction)


def _merge_bins(array: Counts, bins: int) -> Counts:
    fine = array.reshape(-1, array.shape[-1]).sum(axis=0)
    merged: Counts = fine.reshape(bins, -1).sum(axis=1)
    return merged


def sums_of(counts: CalibrationCounts, bins: int) -> BinSums:
    """The sums by bin of counts, over all groups."""
    return sum_bins(*counts.arrays(), bins)


def ece_of(sums: BinSums) -> float:
    """The expected calibration error from sums by bin, such as those of one image; NaN without a pixel."""
    return per_pixel(np.abs(sums.excess), sums)


def per_pixel(values: Float64, sums: BinSums) -> float:
    """The sum of `values` by bin over all pixels of `sums`; NaN without a pixel."""
    return float(values.sum() / sums.num_pixels) if sums.num_pixels else float("nan")


def square_over(values: Float64, count: Counts) -> Float64:
    """Squares of `values` over the pixels of their bin, 0 for an empty bin."""
    squares: Float64 = values * values / np.maximum(count, 1)
    return squares


def ratio(parts: Float64 | Counts, count: Counts) -> Float64:
    """Sums over pixels by bin, NaN where empty."""
    ratio: Float64 = np.divide(parts, count, out=np.full(count.shape, np.nan), where=count > 0)
    return ratio
