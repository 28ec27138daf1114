"""Owns the calibration scores: what a fine confidence histogram says about trust, each defined once."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from calseg_cli.metrics.bin_sums import BinSums, ece_of, per_pixel, ratio, square_over, sum_bins, sums_of
from calseg_cli.metrics.fine_histogram import (
    FINE_BINS,
    CalibrationCounts,
    Edges,
    calibration_counts,
    check_bins,
    check_edges,
)
from calseg_cli.metrics.noise_floor import noise_floor

__all__ = [
    "FINE_BINS",
    "BinSums",
    "CalibrationCounts",
    "Convention",
    "Edges",
    "Reliability",
    "ace_bins",
    "calibration_counts",
    "ece",
    "ece_by_group",
    "ece_of",
    "ece_over_groups",
    "ks",
    "mce",
    "mean_confidence",
    "noise_floor",
    "over_confidence",
    "reliability",
    "rmsce",
    "signed_gap",
    "sum_bins",
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


def reliability(counts: CalibrationCounts, bins: int = 15) -> Reliability:
    """Mean confidence and accuracy of the pixels of each of `bins` equal bins; over all groups."""
    sums = sums_of(counts, bins)
    edges = np.arange(bins + 1) / bins
    return Reliability(
        edges[:-1], edges[1:], sums.count, ratio(sums.confidence, sums.count), ratio(sums.correct, sums.count)
    )


def ece(counts: CalibrationCounts, bins: int = 15) -> float:
    """Expected calibration error in [0,1]: the mean over pixels of |confidence - accuracy| of their bin; NaN if empty.

    Naeini et al. 2015; Guo et al. 2017, Eq. 3, with the pixels at confidence 0 kept in the first bin.

    >>> import torch
    >>> pixels = torch.tensor([0.95, 1.0]), torch.tensor([True, False]), torch.tensor([0, 0])
    >>> round(ece(calibration_counts(*pixels, 1), bins=10), 6)
    0.475
    """
    return ece_of(sums_of(counts, bins))


def ece_by_group(counts: CalibrationCounts, bins: int = 15) -> Float64:
    """The ECE within each group, (G,) in [0,1]; NaN for a group without a pixel."""
    groups = zip(*counts.arrays(), strict=True)
    return np.array([ece_of(sum_bins(*group, bins)) for group in groups])


def ece_over_groups(counts: CalibrationCounts, bins: int = 15) -> float:
    """The ECE with a histogram for each group, summed over groups: the mean over pixels of the gap of their own cell.

    By predicted class it is what Local Temperature Scaling (Ding et al. 2021) calls SCE: a sum, not a mean over
    classes. Never below the `ece`, where classes that are too sure and too unsure cancel. NaN if empty.
    """
    sums = [sum_bins(*group, bins) for group in zip(*counts.arrays(), strict=True)]
    pixels = sum(group.num_pixels for group in sums)
    return float(sum(np.abs(group.excess).sum() for group in sums) / pixels) if pixels else float("nan")


def ace_bins(counts: CalibrationCounts, bins: int = 15) -> float:
    """The mean over occupied bins of |confidence - accuracy|, each bin alike, in [0,1]; NaN if empty.

    Called ACE by netcal, MbLS and MONAI; the ACE with bins of equally many pixels is another score, `adaptive_ece`.
    """
    sums = sums_of(counts, bins)
    filled = sums.count > 0
    return float(np.mean(np.abs(sums.excess[filled]) / sums.count[filled])) if filled.any() else float("nan")


def mce(counts: CalibrationCounts, bins: int = 15, min_count: int = 1) -> float:
    """The largest |confidence - accuracy| among the bins with `min_count` pixels or more, in [0,1]; NaN if none has.

    A bin with a handful of pixels has any gap by chance; `min_count` keeps it from deciding the score.
    """
    sums = sums_of(counts, bins)
    trusted = sums.count >= max(min_count, 1)
    return float(np.max(np.abs(sums.excess[trusted]) / sums.count[trusted])) if trusted.any() else float("nan")


def rmsce(counts: CalibrationCounts, bins: int = 15) -> float:
    """The root of the mean over pixels of (confidence - accuracy)**2 of their bin, in [0,1]; NaN if empty."""
    sums = sums_of(counts, bins)
    return float(np.sqrt(per_pixel(square_over(sums.excess, sums.count), sums)))


def signed_gap(counts: CalibrationCounts) -> float:
    """Mean confidence minus accuracy, in [-1,1]: above 0 the network claims too much; NaN if empty."""
    sums = sums_of(counts, 1)
    return per_pixel(sums.excess, sums)


def mean_confidence(counts: CalibrationCounts) -> float:
    """The mean confidence over all pixels, in [0,1]; NaN if empty."""
    sums = sums_of(counts, 1)
    return per_pixel(sums.confidence, sums)


def over_confidence(counts: CalibrationCounts, bins: int = 15) -> float:
    """The share of the ECE from bins whose confidence is above their accuracy; the rest is `under_confidence`."""
    sums = sums_of(counts, bins)
    return per_pixel(np.maximum(sums.excess, 0), sums)


def under_confidence(counts: CalibrationCounts, bins: int = 15) -> float:
    """The share of the ECE from bins whose confidence is below their accuracy."""
    sums = sums_of(counts, bins)
    return per_pixel(np.maximum(-sums.excess, 0), sums)


def ks(counts: CalibrationCounts) -> float:
    """The largest |sum of confidence - right pixels| below any confidence, over all pixels; in [0,1]; NaN if empty.

    The Kolmogorov-Smirnov distance of Gupta et al. 2021, read at the 4800 fine edges; it needs no choice of bins.
    """
    sums = sums_of(counts, FINE_BINS)
    return float(np.max(np.abs(np.cumsum(sums.excess))) / sums.num_pixels) if sums.num_pixels else float("nan")
