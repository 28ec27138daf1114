"""Owns scores of selective prediction: the risk that is left where only the surest pixels are answered."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from calseg_cli.errors import ConfigError
from calseg_cli.metrics.fine_histogram import FINE_BINS, CalibrationCounts

Float64 = NDArray[np.float64]

_DIRECT = 32  # terms of a harmonic sum that are added one by one; from there on its series has all digits of float64


@dataclass(frozen=True)
class Ranked:
    """A score of a ranking: the mean over all orders of pixels within a fine bin, and the least and most of them."""

    value: float
    lowest: float
    highest: float


@dataclass(frozen=True)
class RiskCoverage:
    """The risk-coverage curve, arrays (n,) from the surest pixels to all: one point an occupied fine bin.

    `coverage` is the share of pixels with a confidence above `threshold`, `risk` the share of wrong ones among them.
    """

    coverage: Float64
    risk: Float64
    threshold: Float64


@dataclass(frozen=True)
class _Descending:
    """Occupied fine bins from the surest down, arrays (n,) float64 of whole numbers: pixels and wrong ones.

    `above` and `errors_above` count the pixels that are surer than the bin's.
    """

    pixels: Float64
    errors: Float64
    above: Float64
    errors_above: Float64
    lower: Float64

    @classmethod
    def of(cls, counts: CalibrationCounts) -> "_Descending":
        pixels = counts.count.sum(axis=0)[::-1]
        errors = pixels - counts.correct.sum(axis=0)[::-1]
        lower = np.arange(FINE_BINS - 1, -1, -1) / FINE_BINS
        filled = pixels > 0
        pixels, errors = pixels[filled], errors[filled]
        whole = (pixels, errors, np.cumsum(pixels) - pixels, np.cumsum(errors) - errors, lower[filled])
        return cls(*(array.astype(np.float64) for array in whole))

    @property
    def total(self) -> float:
        return float(self.pixels.sum())


def aurc(counts: CalibrationCounts) -> Ranked:
    """The area under the risk-coverage curve: the mean over k of the risk of the k surest, in [0,1]; NaN if empty.

    Geifman and El-Yaniv 2017. Pixels of equal confidence have no order: the value is the mean over all their orders,
    and a fine bin is taken for such equals. `lowest` and `highest` have all errors of a bin last and first in it.
    It says how well confidence ranks right before wrong, and nothing of whether its size is true; and it falls with
    the number of errors alone, so it compares rankings only at equal accuracy.
    """
    bins = _Descending.of(counts)
    if not bins.total:
        return Ranked(math.nan, math.nan, math.nan)
    n, e, s, above = bins.pixels, bins.errors, bins.above, bins.errors_above
    right = n - e
    mean = _area(s, n, above, e / n)
    last = _area(s, right, above, np.zeros_like(n)) + _area(s + right, e, above, np.ones_like(n))
    first = _area(s, e, above, np.ones_like(n)) + _area(s + e, right, above + e, np.zeros_like(n))
    return Ranked(*(math.fsum(area) / bins.total for area in (mean, last, first)))


def augrc(counts: CalibrationCounts) -> Ranked:
    """The area under the generalised risk-coverage curve in [0,1/2]; NaN if empty (Traub et al. 2024).

    The mean over k of the errors among the k surest pixels over all pixels: how often a wrong pixel is taken for the
    surer one of two, so that single sure errors do not decide it as they do in the AURC. Bounds as there.
    """
    bins = _Descending.of(counts)
    if not bins.total:
        return Ranked(math.nan, math.nan, math.nan)
    n, e, above = bins.pixels, bins.errors, bins.errors_above
    area = n * above + e * (n + 1) / 2
    last = n * above + e * (e + 1) / 2
    areas = (area, last, last + (n - e) * e)
    return Ranked(*(math.fsum(area) / bins.total**2 for area in areas))


def _area(start: Float64, length: Float64, errors: Float64, slope: Float64) -> Float64:
    """The sum over k = 1..length of (errors + slope k) / (start + k)."""
    harmonic = harmonic_difference(start, length)
    area: Float64 = errors * harmonic + slope * (length - start * harmonic)
    return area


def harmonic_difference(start: Float64, length: Float64) -> Float64:
    """The sum over k = 1..length of 1 / (start + k), which is psi(start + length + 1) - psi(start + 1).

    As a difference of two digammas of 1e9 it would lose half of its digits. Here the first terms are added one by one,
    and the rest is log1p plus the series of psi at half-integers, whose error is below 1e-16 of it.
    """
    start, length = np.broadcast_arrays(np.asarray(start, np.float64), np.asarray(length, np.float64))
    direct = np.minimum(length, np.clip(_DIRECT - start, 0, _DIRECT))
    steps = np.arange(1, _DIRECT + 1)[:, None]
    terms = np.where(steps <= direct.ravel(), 1 / (start.ravel() + steps), 0.0)
    begun = start + direct
    low, high = begun + 0.5, start + length + 0.5
    rest = np.log1p((length - direct) / low) + _tail(high) - _tail(low)
    total: Float64 = terms.sum(axis=0).reshape(start.shape) + np.where(length > direct, rest, 0.0)
    return total


def _tail(x: Float64) -> Float64:
    """psi(x + 1/2) - log(x) for x above 30."""
    square = 1 / (x * x)
    tail: Float64 = square * (1 / 24 - square * (7 / 960 - square * (31 / 8064 - square * 127 / 30720)))
    return tail


def risk_coverage(counts: CalibrationCounts) -> RiskCoverage:
    """The risk of answering only above a confidence, for every fine edge; empty arrays without a pixel."""
    bins = _Descending.of(counts)
    pixels, errors = bins.above + bins.pixels, bins.errors_above + bins.errors
    return RiskCoverage(pixels / max(bins.total, 1), errors / pixels, bins.lower)


def risk_at_coverage(counts: CalibrationCounts, coverage: float) -> float:
    """The share of wrong pixels among the surest share `coverage` of all, in [0,1]; NaN if empty.

    Within a fine bin errors are spread evenly. Raises ConfigError for a coverage outside (0,1].
    """
    if not 0 < coverage <= 1:
        raise ConfigError(f"a coverage of {coverage:g} is no share of the pixels", "choose one above 0 and at most 1")
    bins = _Descending.of(counts)
    if not bins.total:
        return math.nan
    wanted = coverage * bins.total
    ends = np.concatenate([[0.0], bins.above + bins.pixels])
    errors = np.concatenate([[0.0], bins.errors_above + bins.errors])
    return float(np.interp(wanted, ends, errors) / wanted)


def coverage_at_risk(counts: CalibrationCounts, risk: float) -> float:
    """The largest share of pixels, the surest ones, among which at most `risk` are wrong, in [0,1]; NaN if empty.

    0 where even the surest are wrong more often. Raises ConfigError for a risk outside [0,1].
    """
    if not 0 <= risk <= 1:
        raise ConfigError(f"a risk of {risk:g} is no share of the pixels", "choose one from 0 to 1")
    bins = _Descending.of(counts)
    if not bins.total:
        return math.nan
    ends, errors = bins.above + bins.pixels, bins.errors_above + bins.errors
    within = np.flatnonzero(errors <= risk * ends * (1 + 1e-12))  # a risk such as 0.29 is rounded, 29 of 100 are not
    reached = int(within[-1]) if within.size else -1
    if reached + 1 == len(ends):
        return 1.0
    done, wrong = (float(ends[reached]), float(errors[reached])) if within.size else (0.0, 0.0)
    rate = float(bins.errors[reached + 1] / bins.pixels[reached + 1])
    return (done + max(risk * done - wrong, 0.0) / (rate - risk)) / bins.total
