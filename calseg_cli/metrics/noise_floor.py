"""Owns the noise floor: the ECE that confidences would show by chance alone if every one of them were true."""

import math

import numpy as np
from numpy.typing import NDArray

from calseg_cli.metrics.bin_sums import ratio, sums_of
from calseg_cli.metrics.fine_histogram import FINE_BINS, ONE, CalibrationCounts, check_bins

Float64 = NDArray[np.float64]
Counts = NDArray[np.int64]


def noise_floor(counts: CalibrationCounts, bins: int = 15, repeats: int = 100, seed: int = 0) -> float:
    """The ECE that these confidences would show if they were all true: the mean over `repeats` draws; NaN if empty.

    Right pixels are drawn from Binomial(pixels, mean confidence) in each fine bin, each pixel on its own. Pixels of an
    image are not independent, so the true floor is higher; an ECE near this number cannot be told from zero.
    """
    draws = floor_draws(counts, bins, repeats, seed)
    return float(draws.mean()) if draws.size else math.nan


def floor_draws(counts: CalibrationCounts, bins: int = 15, repeats: int = 100, seed: int = 0) -> Float64:
    """The ECE of each draw behind `noise_floor`, (repeats,), for its spread; empty without a pixel.

    Raises ConfigError unless `bins` divides 4800.
    """
    check_bins(bins)
    sums = sums_of(counts, FINE_BINS)
    if not sums.num_pixels:
        return np.zeros(0)
    rng = np.random.default_rng(seed)
    return _draw(rng, sums.count, sums.confidence, bins, repeats)


def expected_floor(counts: CalibrationCounts, bins: int = 15) -> float:
    """The same in closed form, without drawing: the sum over bins of sqrt(2 / pi) times the deviation; NaN if empty.

    It takes the number of right pixels of a bin for normally distributed. Where fewer than about one wrong pixel is
    expected in a bin that is off by a tenth and more, and `noise_floor` is to be believed. Raises ConfigError unless
    `bins` divides 4800.
    """
    check_bins(bins)
    sums = sums_of(counts, FINE_BINS)
    if not sums.num_pixels:
        return math.nan
    chance = _chance(sums.count, sums.confidence)
    variance = (sums.count * chance * (1 - chance)).reshape(bins, -1).sum(axis=1)
    return float(np.sqrt(variance * 2 / math.pi).sum() / sums.num_pixels)


def image_noise_floor(coarse: Counts, bins: int = 15, draws: int = 200, seed: int = 0) -> float:
    """The mean over images of the ECE that their confidences would show if true; NaN without a pixel.

    `coarse` (I,3,B) int64 holds pixels, right ones and fixed-point confidence of each image in B fine bins, as
    `ImageRows.coarse` does. At least `draws` images are drawn in all, so many images need few draws each. Images
    without a pixel are left out, as in `ece_image`. Raises ConfigError unless `bins` divides B.
    """
    check_bins(bins, coarse.shape[-1])
    filled = coarse[coarse[:, 0].sum(axis=1) > 0]
    if not len(filled):
        return math.nan
    rng = np.random.default_rng(seed)
    repeats = max(1, math.ceil(draws / len(filled)))
    floors = [_draw(rng, row[0], row[2] / ONE, bins, repeats).mean() for row in filled]
    return math.fsum(floors) / len(floors)


def _draw(rng: np.random.Generator, count: Counts, confidence: Float64, bins: int, repeats: int) -> Float64:
    drawn = rng.binomial(count, _chance(count, confidence), size=(repeats, len(count)))
    excess = (confidence - drawn).reshape(repeats, bins, -1).sum(axis=2)
    eces: Float64 = np.abs(excess).sum(axis=1) / count.sum()
    return eces


def _chance(count: Counts, confidence: Float64) -> Float64:
    """The mean confidence of each fine bin, 0 where it is empty."""
    chance: Float64 = np.clip(ratio(confidence, np.maximum(count, 1)), 0, 1)
    return chance
