"""Owns the alignment of finished networks: tables of offsets from exact histograms of logits, without any mixture.

Li et al. 2025 (BLDA), arXiv 2512.06886, equation 6. The distributions are those that were counted: even within a bin.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from calseg_cli.errors import ConfigError, DataError
from calseg_cli.methods.logit_alignment import AlignmentTable, Tail
from calseg_cli.metrics.logit_histograms import LogitHistograms

AnchorWeights = Literal["pixels", "classes"]
Float64 = NDArray[np.float64]
Known = NDArray[np.bool_]
_SLACK = 1e-12  # two sums of the same shares in another order


@dataclass(frozen=True, eq=False)
class Anchors:
    """The positive and the negative anchor: `shares` (2,G) sum to 1 each, of bins with `edges` (G+1,) in logits."""

    shares: Float64
    edges: Float64


def pooled_anchors(histograms: LogitHistograms, weights: AnchorWeights = "pixels") -> Anchors:
    """The anchors of counted logits: of a pixel's own label's channel, and of all others (section 3.3.3).

    Each pixel counts alike as in the paper, or with "classes" each cell of a label that occurs. Raises DataError
    where no pixel was counted, or where there is no second class.
    """
    counts = histograms.counts.astype(np.float64)
    if weights == "classes":
        counts /= np.maximum(counts.sum(axis=2, keepdims=True), 1)
    own = np.eye(len(counts), dtype=bool)
    pooled = np.stack([counts[where].sum(axis=0) for where in (own, ~own)])
    total = pooled.sum(axis=1, keepdims=True)
    if not (total > 0).all():
        raise DataError("no pixel has a label, or there is one class alone: logits have no anchors", "check the labels")
    return Anchors(pooled / total, histograms.edges)


def quantile_table(
    cells: LogitHistograms,
    anchors: Anchors,
    seen: Known | None = None,
    *,
    nodes: int = 256,
    tail: Tail = "hold",
    tail_quantile: float = 0.01,
) -> AlignmentTable:
    """The map of counted cells (C,C) to the anchors as a table, float64: z' = G(F(z)) (equation 6).

    The same as `logit_alignment.alignment_table`, of distributions as they were counted: `nodes`, `tail` and
    `tail_quantile` are the same, and labels that are not `seen` (C,), or have no pixel, have offset 0. Where G is
    steep because no anchor's logit lies there, the place nearest to z is taken, so a cell like its anchor is left. A
    cell that lies within one bin has no shape to stretch: it is moved to its anchor's median. Raises ConfigError for a
    quantile or a number of nodes that makes no table.
    """
    if not 0 < tail_quantile < 0.5 or nodes < 2:
        raise ConfigError(
            f"no table of {nodes} nodes between the quantiles {tail_quantile} and {1 - tail_quantile}",
            "nodes is at least 2, the tail's quantile above 0 and below 0.5",
        )
    classes = cells.num_classes
    offsets, low, step = np.zeros((classes, classes, nodes)), np.zeros((classes, classes)), np.ones((classes, classes))
    known = cells.counts[:, 0].any(axis=1) & (np.ones(classes, bool) if seen is None else seen)
    maps = [_Distribution.of(shares, anchors.edges) for shares in anchors.shares]
    for label in np.flatnonzero(known):
        for channel in range(classes):
            cell = _Distribution.of(cells.counts[label, channel] / cells.counts[label, channel].sum(), cells.edges)
            place = label, channel
            at = cell.nodes(nodes, tail_quantile)
            low[place], step[place] = at[0], at[1] - at[0]
            offsets[place] = _moved(cell, maps[int(label != channel)], at, tail_quantile) - at
    return AlignmentTable(torch.from_numpy(offsets), torch.from_numpy(low), torch.from_numpy(step), tail)


@dataclass(frozen=True, eq=False)
class _Distribution:
    """F at the edges of bins, rising from 0 to 1; straight between them."""

    below: Float64
    edges: Float64

    @classmethod
    def of(cls, shares: Float64, edges: Float64) -> "_Distribution":
        filled = np.flatnonzero(shares)
        part = shares[filled[0] : filled[-1] + 1]
        below = np.concatenate([[0.0], np.cumsum(part)])
        return cls(below / below[-1], edges[filled[0] : filled[-1] + 2])

    @property
    def width(self) -> float:
        return float(self.edges[1] - self.edges[0])

    def at(self, values: Float64) -> Float64:
        return np.interp(values, self.edges, self.below)

    def reached(self, shares: Float64) -> Float64:
        """The first places where F reaches the shares."""
        after = np.clip(np.searchsorted(self.below, shares), 1, len(self.below) - 1)
        low, high = self.below[after - 1], self.below[after]
        part = np.clip((shares - low) / np.where(high > low, high - low, 1.0), 0, 1)
        return self.edges[after - 1] + part * (self.edges[after] - self.edges[after - 1])

    def left(self, shares: Float64) -> Float64:
        """The last places where F is not above the shares."""
        return -_Distribution(1 - self.below[::-1], -self.edges[::-1]).reached(1 - shares)

    def nodes(self, number: int, tail_quantile: float) -> Float64:
        """Places between two quantiles; of a distribution within one bin, around its middle."""
        low, high = self.reached(np.array([tail_quantile, 1 - tail_quantile]))
        if self.constant(tail_quantile):
            middle = (low + high) / 2
            low, high = middle - self.width, middle + self.width
        return np.linspace(low, high, number)

    def constant(self, tail_quantile: float) -> bool:
        """Whether all but the tails lie within one bin."""
        low, high = self.reached(np.array([tail_quantile, 1 - tail_quantile]))
        return bool(high - low <= self.width)


def _moved(cell: _Distribution, anchor: _Distribution, at: Float64, tail_quantile: float) -> Float64:
    """Where the nodes go, z'."""
    if cell.constant(tail_quantile):
        middle = float(anchor.reached(np.array([0.5]))[0])
        return at + (middle - float(at.mean()))
    shares = np.clip(cell.at(at), tail_quantile, 1 - tail_quantile)
    # Where the anchor's F stands still any place will do: the nearest moves no logit without need.
    found: Float64 = np.clip(at, anchor.reached(shares - _SLACK), anchor.left(shares + _SLACK))
    return found
