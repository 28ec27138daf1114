"""Owns turning histograms of logits into what the bias report shows."""

import numpy as np
from numpy.typing import NDArray

from calseg_cli.metrics.bias import bias_of_shares
from calseg_cli.metrics.logit_distributions import mean_logit, quantile_logits, read_distributions
from calseg_cli.metrics.logit_histograms import LogitHistograms
from calseg_cli.metrics.scores import Scores
from calseg_cli.report.data import LOGIT_LEVELS, LogitReport, LogitRow, LogitSpread

Float64 = NDArray[np.float64]
_MOST_POINTS = 160
_SEEN = (0.002, 0.998)  # quantiles between which logits are drawn


def logit_report(histograms: LogitHistograms, scores: Scores) -> LogitReport:
    """The logits of each evaluated class, and of all together in the anchors; at most 160 points a density."""
    found = read_distributions(histograms)
    grid, cut = _view(np.concatenate([found.positive, found.negative, found.anchors]), found.edges)
    bias = bias_of_shares(found.shares)

    def spread(shares: Float64, distance: float = 0.0) -> LogitSpread:
        quantiles = quantile_logits(shares, found.edges, np.array(LOGIT_LEVELS))
        return LogitSpread(float(mean_logit(shares, found.edges)), quantiles, _density(shares, grid, cut), distance)

    rows = [
        LogitRow(
            name=row.name,
            pixels=row.pixels,
            bias=row.bias,
            bias_by_logits=float(bias[index]),
            positive=spread(found.positive[index], float(found.positive_distance[index])),
            negative=spread(found.negative[index], float(found.negative_distance[index])),
        )
        for index, row in enumerate(scores.classes)
        if row.evaluated
    ]
    width = float(np.diff(found.edges)[0])
    return LogitReport((grid[:-1] + grid[1:]) / 2, width, rows, *(spread(anchor) for anchor in found.anchors))


def _view(shares: Float64, edges: Float64) -> tuple[Float64, NDArray[np.intp]]:
    """The edges between which densities are drawn, and where among `edges` they are: the bulk of every distribution."""
    low, high = edges[0], edges[-1]
    known = shares[~np.isnan(shares[:, 0])]
    if len(known):
        ends = quantile_logits(known, edges, np.array(_SEEN))
        low, high = ends[:, 0].min(), ends[:, 1].max()
    first = max(int(np.searchsorted(edges, low, side="right")) - 1, 0)
    last = min(max(int(np.searchsorted(edges, high)), first + 1), len(edges) - 1)
    cut = np.append(np.arange(first, last, -(-(last - first) // _MOST_POINTS)), last)
    return edges[cut], cut


def _density(shares: Float64, grid: Float64, cut: NDArray[np.intp]) -> Float64:
    """The density by logit between the edges `grid`; sums of bins over their widths."""
    return np.add.reduceat(shares[: cut[-1]], cut[:-1]) / np.diff(grid)
