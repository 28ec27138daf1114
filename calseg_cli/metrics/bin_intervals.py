"""Owns how far the bins of a reliability diagram would move with other images."""

import numpy as np
from numpy.typing import NDArray

from calseg_cli.metrics.fine_histogram import check_bins
from calseg_cli.metrics.image_rows import COARSE_BINS, ImageRows
from calseg_cli.metrics.intervals import LEVEL, Draws, check_level, interval

Float64 = NDArray[np.float64]


def accuracy_intervals(images: ImageRows, draws: Draws, *, bins: int = 15, level: float = LEVEL) -> Float64:
    """Between which values the accuracy of each bin may lie: (bins,2) low and high in [0,1], percentiles of the draws.

    Every draw takes whole images, so the pixels of one stay together, as they do in the intervals of scores. A draw
    without a pixel in a bin is left out of that bin. NaN where a bin is empty, or fewer than two groups were drawn
    from. A bin that a single image fills has an interval of no width: other images might have filled it otherwise, and
    no resample of these can tell. Raises ConfigError unless `bins` divides 300 and 0 < level < 1.
    """
    check_bins(bins, COARSE_BINS)
    check_level(level)
    if not images.ids:
        return np.full((bins, 2), np.nan)
    count, correct = (images.coarse[:, place].reshape(len(images.ids), bins, -1).sum(axis=2) for place in (0, 1))
    drawn = np.concatenate([_accuracy(weights.astype(np.float64), count, correct) for weights in draws])
    value = _accuracy(np.ones((1, len(images.ids))), count, correct)[0]
    found = [interval(float(value[place]), drawn[:, place], draws, level=level) for place in range(bins)]
    return np.array([(one.low, one.high) for one in found])


def _accuracy(weights: Float64, count: NDArray[np.int64], correct: NDArray[np.int64]) -> Float64:
    """Right pixels over pixels (b,bins), NaN where empty; whole numbers below 2**53, so the products are exact."""
    pixels, right = weights @ count.astype(np.float64), weights @ correct.astype(np.float64)
    accuracy: Float64 = np.divide(right, pixels, out=np.full(pixels.shape, np.nan), where=pixels > 0)
    return accuracy
