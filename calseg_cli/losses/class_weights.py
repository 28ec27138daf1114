"""Owns class weights from thresholds: what the network is less sure of weighs more. Cal-SFDA, arXiv 2308.03003."""

import torch
from torch import Tensor


def threshold_class_weights(thresholds: Tensor, *, lowest: float = 0.1) -> Tensor:
    """Softmax of 1 / max(threshold, lowest), with mean 1 over the classes that have one; (C,) float32.

    Thresholds (C,) of confidence in [0,1]; NaN for a class that was never predicted, which weighs 0. A smaller
    threshold never weighs less. `lowest` bounds the heaviest class: without it a threshold near 0 leaves nothing for
    the others.

    >>> threshold_class_weights(torch.tensor([0.5, 0.5, float("nan")]))
    tensor([1., 1., 0.])
    """
    wide = thresholds.double()
    present = ~wide.isnan()
    inverse = (1 / wide.clamp_min(lowest)).masked_fill(~present, -torch.inf)
    shares = torch.where(present, (inverse - inverse.max()).exp(), 0)
    return (shares * (present.sum() / shares.sum().clamp_min(1))).float()
