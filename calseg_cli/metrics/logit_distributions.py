"""Owns what the histograms of logits say: positive and negative logits of each class, anchors, and the bias they imply.

BLDA (Li et al., ICML 2025). A class's positive logits are its own channel on its own pixels; its negative ones are its
channel on the pixels of other classes, of which each class counts alike. The anchors are all positive and all negative
logits of all classes, pixel by pixel.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from calseg_cli.metrics.logit_histograms import LogitHistograms

Float64 = NDArray[np.float64]
_MOST_NODES = 24


@dataclass(frozen=True)
class LogitDistributions:
    """Shares of logits by bin, with `edges` (G+1,): each row adds up to 1, or is NaN where there is no such logit.

    `positive` and `negative` (C,G) are of the classes, `anchors` (2,G) the positive and the negative one.
    `positive_distance` (C,) is how far the cell of a class's positive logits is from the positive anchor, in logits;
    `negative_distance` (C,) the mean of that over its negative cells, from the negative anchor; see `distance`.
    `shares` (C,C) is the P(predicted | true) that the distributions alone imply; see `implied_shares`.
    """

    edges: Float64
    positive: Float64
    negative: Float64
    anchors: Float64
    positive_distance: Float64
    negative_distance: Float64
    shares: Float64


def read_distributions(histograms: LogitHistograms) -> LogitDistributions:
    """Everything that the histograms say. Bins that no logit is in are left out at both ends."""
    counts, edges = trimmed(histograms)
    own = np.eye(len(counts), dtype=bool)
    cells = _normalised(counts)
    anchors = np.stack([_normalised(counts[where].sum(axis=0)) for where in (own, ~own)])
    distances = distance(cells, np.where(own[..., None], anchors[0], anchors[1]), edges)
    return LogitDistributions(
        edges=edges,
        positive=cells[own],
        negative=_column_means(np.where(own[..., None], np.nan, cells)),
        anchors=anchors,
        positive_distance=distances[own],
        negative_distance=_column_means(np.where(own, np.nan, distances)),
        shares=implied_shares(cells),
    )


def trimmed(histograms: LogitHistograms) -> tuple[NDArray[np.int64], Float64]:
    """The counts (C,C,G) and edges (G+1,) of the bins from the first to the last with a logit; one bin at least."""
    filled = np.flatnonzero(histograms.counts.any(axis=(0, 1)))
    first, last = (int(filled[0]), int(filled[-1])) if filled.size else (0, 0)
    return histograms.counts[..., first : last + 1], histograms.edges[first : last + 2]


def _normalised(counts: NDArray[np.int64]) -> Float64:
    total = counts.sum(axis=-1, keepdims=True)
    return np.where(total > 0, counts / np.maximum(total, 1), np.nan)


def _column_means(values: Float64) -> Float64:
    """Means over the first axis without NaN; NaN where there is nothing else."""
    known = ~np.isnan(values)
    number = known.sum(axis=0)
    return np.where(number > 0, np.where(known, values, 0.0).sum(axis=0) / np.maximum(number, 1), np.nan)


def mean_logit(shares: Float64, edges: Float64) -> Float64:
    """The mean (...) of distributions (...,G), every logit at the middle of its bin: half a bin off at most."""
    mean: Float64 = shares @ ((edges[:-1] + edges[1:]) / 2)
    return mean


def quantile_logits(shares: Float64, edges: Float64, levels: Float64) -> Float64:
    """The quantiles (...,Q) of distributions (...,G) at `levels` (Q,) in [0,1], even within a bin; NaN of a NaN row."""
    rows = np.stack([np.interp(levels, row, edges) for row in _cumulative(shares).reshape(-1, len(edges))])
    return rows.reshape(*shares.shape[:-1], len(levels))


def distance(one: Float64, other: Float64, edges: Float64) -> Float64:
    """The Wasserstein-1 distance (...) of distributions (...,G) in logits, each even within its bins.

    It is the mean size of BLDA's offset, that of the monotone map from the one to the other (ICML 2025, Eq. 6).
    """
    apart = _cumulative(one) - _cumulative(other)
    low, high = apart[..., :-1], apart[..., 1:]
    sizes = np.abs(low) + np.abs(high)
    crossing = (low * low + high * high) / np.where(sizes > 0, sizes, 1.0)
    mean_gap = np.where(low * high < 0, crossing, sizes) / 2
    total: Float64 = mean_gap @ np.diff(edges)
    return total


def implied_shares(cells: Float64) -> Float64:
    """P(channel l is largest | true class c), (C,C), if the logits of a pixel did not depend on each other.

    `cells` (C,C,G) are the distributions by true class and channel; a true class without pixels has NaN. BLDA, Eq. 5:
    the integral of p_cl times the product of the other channels' distribution functions. Within a bin those are
    straight lines, so Gauss-Legendre nodes integrate exactly up to 48 classes. Rows add up to 1. Real channels do
    depend on each other: an estimate.
    """
    shares = np.full(cells.shape[:2], np.nan)
    for row in np.flatnonzero(~np.isnan(cells[:, 0, 0])):
        shares[row] = _largest(cells[row])
    return shares


def _largest(cells: Float64) -> Float64:
    """P(channel l is the largest), (C,), of independent channels with distributions (C,G)."""
    below = _cumulative(cells)[:, :-1]
    nodes, weights = np.polynomial.legendre.leggauss(min(max((len(cells) + 1) // 2, 1), _MOST_NODES))
    total = np.zeros(len(cells))
    for node, weight in zip((nodes + 1) / 2, weights / 2, strict=True):
        total += weight * (cells * _product_of_others(below + node * cells)).sum(axis=1)
    return total


def _product_of_others(values: Float64) -> Float64:
    """For each row of (C,G) the product of all other rows; written without a division, as rows may be 0."""
    ones = np.ones((1, values.shape[1]))
    before = np.cumprod(np.concatenate([ones, values[:-1]]), axis=0)
    after = np.cumprod(np.concatenate([ones, values[:0:-1]]), axis=0)[::-1]
    product: Float64 = before * after
    return product


def _cumulative(shares: Float64) -> Float64:
    """The distribution function (...,G+1) at the edges, from 0 to 1."""
    start = np.zeros((*shares.shape[:-1], 1))
    function: Float64 = np.minimum(np.concatenate([start, np.cumsum(shares, axis=-1)], axis=-1), 1.0)
    return function
