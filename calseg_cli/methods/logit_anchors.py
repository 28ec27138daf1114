"""Owns the fit of BLDA's two anchors to counted logits, once, for runs in which they are frozen.

Li et al. 2025, arXiv 2512.06886, section 3.3.3: the positive anchor pools all logits of a pixel's own label, the
negative one all others, pixel by pixel.
"""

import numpy as np
import torch
from torch import Tensor

from calseg_cli.methods.logit_mixtures import VARIANCE_FLOOR, Mixtures, log_joint
from calseg_cli.metrics.logit_distributions import quantile_logits
from calseg_cli.metrics.logit_histograms import LogitHistograms

EM_STEPS = 200
_RELATIVE_FLOOR = 1e-3  # of the variance of all logits of the row
_LEAST_WEIGHT = 1e-6


def anchor_mixtures(histograms: LogitHistograms, components: int = 5, steps: int = EM_STEPS) -> Mixtures:
    """The anchors (2,K), float64: row 0 of logits of a pixel's own label, row 1 of all others; without any chance.

    Expectation maximisation from quantiles, every logit at the middle of its bin; variances keep a floor of 1e-4, of a
    thousandth of the row's own, and of what a bin hides. Both kinds of logits must have been counted.
    """
    own = np.eye(histograms.num_classes, dtype=bool)
    pooled = np.stack([histograms.counts[where].sum(axis=0) for where in (own, ~own)])
    shares = pooled / pooled.sum(axis=1, keepdims=True)
    edges, filled = histograms.edges, pooled.any(axis=0)
    values = torch.from_numpy(((edges[:-1] + edges[1:]) / 2)[filled])
    weights = torch.from_numpy(shares[:, filled])
    places = quantile_logits(shares, edges, (np.arange(components) + 0.5) / components)
    middle = (weights * values).sum(dim=1, keepdim=True)
    variance = (weights * (values - middle).square()).sum(dim=1, keepdim=True)
    floor = (_RELATIVE_FLOOR * variance).clamp_min(max(VARIANCE_FLOOR, float(np.diff(edges[:2])[0]) ** 2 / 12))
    found = Mixtures(
        torch.full((2, components), 1 / components, dtype=torch.float64),
        torch.from_numpy(places),
        torch.maximum(variance / components, floor).expand(2, components),
    )
    for _ in range(steps):
        found = _em_step(values.expand(2, -1), weights, found, floor)
    return found


def _em_step(values: Tensor, weights: Tensor, mixtures: Mixtures, floor: Tensor) -> Mixtures:
    """One step on values (R,N) that count by weights (R,N) of sum 1. A component without any keeps its mean."""
    shares = log_joint(values, mixtures).softmax(dim=-2) * weights[:, None]
    total = shares.sum(dim=-1).clamp_min(_LEAST_WEIGHT)
    alive = shares.sum(dim=-1) > _LEAST_WEIGHT
    means = torch.where(alive, (shares * values[:, None]).sum(dim=-1) / total, mixtures.means)
    apart = values[:, None] - means[..., None]
    variances = torch.maximum((shares * apart.square()).sum(dim=-1) / total, floor)
    variances = torch.where(alive, variances, mixtures.variances)
    return Mixtures(total / total.sum(dim=-1, keepdim=True), means, variances)
