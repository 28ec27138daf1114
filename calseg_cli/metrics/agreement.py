"""Owns how well numbers that were expected agree with those that came: correlations, R2 and the squared error."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Agreement:
    """Scores of expected against true values; NaN where they are not defined.

    `pearson` and `spearman` in [-1, 1]: straight and rank correlation, NaN where either side is constant. `r2` at most
    1: the share of the true values' variance that is explained; 0 for their own mean, negative for worse. `mse`: mean
    squared error. `bias`: mean of expected minus true.
    """

    count: int
    pearson: float
    spearman: float
    r2: float
    mse: float
    bias: float


def agreement(expected: Floats, true: Floats) -> Agreement:
    """The scores of values (N,) against values (N,), in float64. Raises ValueError for shapes that differ."""
    x, y = np.asarray(expected, np.float64), np.asarray(true, np.float64)
    if x.shape != y.shape or x.ndim != 1:
        raise ValueError(f"{x.shape} values against {y.shape}")
    if not x.size:
        return Agreement(0, *([math.nan] * 5))
    squared = float(np.mean((x - y) ** 2))
    variance = float(np.var(y))
    r2 = 1 - squared / variance if not _constant(y) else math.nan
    return Agreement(
        x.size, _correlation(x, y), _correlation(ranks(x), ranks(y)), r2, squared, float(np.mean(x) - np.mean(y))
    )


def ranks(values: Floats) -> Floats:
    """Ranks from 1; equal values share the mean of theirs.

    >>> ranks(np.array([3.0, 1.0, 3.0, 2.0])).tolist()
    [3.5, 1.0, 3.5, 2.0]
    """
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(count)
    middle: Floats = (last - (count - 1) / 2)[place]
    return middle


def _correlation(x: Floats, y: Floats) -> float:
    if _constant(x) or _constant(y):
        return math.nan
    a, b = x - x.mean(), y - y.mean()
    value = float(np.sum(a * b) / math.sqrt(float(np.sum(a * a)) * float(np.sum(b * b))))
    return min(1.0, max(-1.0, value))


def _constant(values: Floats) -> bool:
    """Equal up to rounding."""
    return float(np.ptp(values)) <= 1e-12 * max(1.0, float(np.abs(values).max()))
