"""Owns the calibration scores: what a fine confidence histogram says about trust, each defined once."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from calseg_cli.metrics.fine_histogram import (
    FINE_BINS,
    ONE,
    CalibrationCounts,
    Edges,
    calibration_counts,
    check_bins,
    check_edges,
)

__all__ = [
    "FINE_BINS",
    "CalibrationCounts",
    "Convention",
    "Edges",
    "Reliability",
    "calibration_counts",
    "ece",
    "ece_by_group",
    "ks",
    "mce",
    "mean_confidence",
    "noise_floor",
    "over_confidence",
    "reliability",
    "rmsce",
    "signed_gap",
    "under_confidence",
]

Float64 = NDArray[np.float64]
Counts = NDArray[np.int64]


@dataclass(frozen=True)
class Convention:
    """What an ECE leaves open and two papers rarely share; printed with every number.

    >>> Convention().describe()
    'ECE: top-label, 15 equal-width bins (lo,hi], every labelled pixel of the dataset once'
    """

    bins: int = 15
    edges: Edges = "right"

    def __post_init__(self) -> None:
        check_bins(self.bins)
        check_edges(self.edges)

    def describe(self) -> str:
        """The convention in one line."""
        interval = "(lo,hi]" if self.edges == "right" else "[lo,hi), the last one closed"
        return f"ECE: top-label, {self.bins} equal-width bins {interval}, every labelled pixel of the dataset once"


@dataclass(frozen=True)
class Reliability:
    """A reliability diagram's bins, arrays (bins,): edges, pixels, mean confidence and accuracy (NaN where empty)."""

    lower: Float64
    upper: Float64
    count: Counts
    confidence: Float64
    accuracy: Float64


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


def _sums(counts: CalibrationCounts, bins: int) -> BinSums:
    return sum_bins(*counts.arrays(), bins)


def reliability(counts: CalibrationCounts, bins: int = 15) -> Reliability:
    """Mean confidence and accuracy of the pixels of each of `bins` equal bins; over all groups."""
    sums = _sums(counts, bins)
    edges = np.arange(bins + 1) / bins
    return Reliability(
        edges[:-1], edges[1:], sums.count, _ratio(sums.confidence, sums.count), _ratio(sums.correct, sums.count)
    )


def ece(counts: CalibrationCounts, bins: int = 15) -> float:
    """Expected calibration error in [0,1]: the mean over pixels of |confidence - accuracy| of their bin; NaN if empty.

    Naeini et al. 2015; Guo et al. 2017, Eq. 3, with the pixels at confidence 0 kept in the first bin.

    >>> import torch
    >>> pixels = torch.tensor([0.95, 1.0]), torch.tensor([True, False]), torch.tensor([0, 0])
    >>> round(ece(calibration_counts(*pixels, 1), bins=10), 6)
    0.475
    """
    return ece_of(_sums(counts, bins))


def ece_of(sums: BinSums) -> float:
    """The same from sums by bin, such as those of one image."""
    return _per_pixel(np.abs(sums.excess), sums)


def ece_by_group(counts: CalibrationCounts, bins: int = 15) -> Float64:
    """The ECE within each group, (G,) in [0,1]; NaN for a group without a pixel."""
    groups = zip(*counts.arrays(), strict=True)
    return np.array([ece_of(sum_bins(*group, bins)) for group in groups])


def mce(counts: CalibrationCounts, bins: int = 15, min_count: int = 1) -> float:
    """The largest |confidence - accuracy| among the bins with `min_count` pixels or more, in [0,1]; NaN if none has.

    A bin with a handful of pixels has any gap by chance; `min_count` keeps it from deciding the score.
    """
    sums = _sums(counts, bins)
    trusted = sums.count >= max(min_count, 1)
    return float(np.max(np.abs(sums.excess[trusted]) / sums.count[trusted])) if trusted.any() else float("nan")


def rmsce(counts: CalibrationCounts, bins: int = 15) -> float:
    """The root of the mean over pixels of (confidence - accuracy)**2 of their bin, in [0,1]; NaN if empty."""
    sums = _sums(counts, bins)
    return float(np.sqrt(_per_pixel(_square_over(sums.excess, sums.count), sums)))


def signed_gap(counts: CalibrationCounts) -> float:
    """Mean confidence minus accuracy, in [-1,1]: above 0 the network claims too much; NaN if empty."""
    sums = _sums(counts, 1)
    return _per_pixel(sums.excess, sums)


def mean_confidence(counts: CalibrationCounts) -> float:
    """The mean confidence over all pixels, in [0,1]; NaN if empty."""
    sums = _sums(counts, 1)
    return _per_pixel(sums.confidence, sums)


def over_confidence(counts: CalibrationCounts, bins: int = 15) -> float:
    """The share of the ECE from bins whose confidence is above their accuracy; the rest is `under_confidence`."""
    sums = _sums(counts, bins)
    return _per_pixel(np.maximum(sums.excess, 0), sums)


def under_confidence(counts: CalibrationCounts, bins: int = 15) -> float:
    """The share of the ECE from bins whose confidence is below their accuracy."""
    sums = _sums(counts, bins)
    return _per_pixel(np.maximum(-sums.excess, 0), sums)


def ks(counts: CalibrationCounts) -> float:
    """The largest |sum of confidence - right pixels| below any confidence, over all pixels; in [0,1]; NaN if empty.

    The Kolmogorov-Smirnov distance of Gupta et al. 2021, read at the 4800 fine edges; it needs no choice of bins.
    """
    sums = _sums(counts, FINE_BINS)
    return float(np.max(np.abs(np.cumsum(sums.excess))) / sums.num_pixels) if sums.num_pixels else float("nan")


def noise_floor(counts: CalibrationCounts, bins: int = 15, repeats: int = 100, seed: int = 0) -> float:
    """The ECE that these confidences would show if they were all true: the mean over `repeats` draws; NaN if empty.

    Right pixels are drawn from Binomial(pixels, mean confidence) in each fine bin, each pixel on its own. Pixels of an
    image are not independent, so the true floor is higher; an ECE near this number cannot be told from zero.
    """
    check_bins(bins)
    sums = _sums(counts, FINE_BINS)
    if not sums.num_pixels:
        return float("nan")
    chance = np.clip(_ratio(sums.confidence, np.maximum(sums.count, 1)), 0, 1)
    drawn = np.random.default_rng(seed).binomial(sums.count, chance, size=(repeats, FINE_BINS))
    excess = (sums.confidence - drawn).reshape(repeats, bins, -1).sum(axis=2)
    return float(np.abs(excess).sum(axis=1).mean() / sums.num_pixels)


def _per_pixel(values: Float64, sums: BinSums) -> float:
    return float(values.sum() / sums.num_pixels) if sums.num_pixels else float("nan")


def _square_over(values: Float64, count: Counts) -> Float64:
    squares: Float64 = values * values / np.maximum(count, 1)
    return squares


def _ratio(parts: Float64 | Counts, count: Counts) -> Float64:
    ratio: Float64 = np.divide(parts, count, out=np.full(count.shape, np.nan), where=count > 0)
    return ratio
