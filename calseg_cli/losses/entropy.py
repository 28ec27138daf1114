"""Owns the entropy of predictions as a score and as a loss: Shannon's, in units of the most that C classes can have."""

import math

import torch
from torch import Tensor


def normalized_entropy(logits: Tensor) -> Tensor:
    """Shannon entropy over log C of logits (B,C,H,W), C >= 2; (B,H,W) float32: 0 for a sure pixel, 1 for a uniform one.

    Rounding is clamped away, so that it lies within [0, 1]. Autocast does not reach it.
    """
    with torch.autocast(logits.device.type, enabled=False):
        log_probs = torch.log_softmax(logits.to(torch.promote_types(logits.dtype, torch.float32)), dim=1)
        entropy = -(log_probs.exp() * log_probs).sum(dim=1)
        return (entropy / math.log(logits.shape[1])).clamp(0, 1)


def entropy_loss(logits: Tensor, *, power: float = 2.0) -> Tensor:
    """Mean over all pixels of ((H / log C)^2 + 1e-8)^power, H the entropy; a scalar in [0, 1], float32.

    A power above 1/2 spares sure pixels and pushes unsure ones: the robust entropy of Yang and Soatto 2020 (FDA), arXiv
    2004.05498, with 2 as in Cal-SFDA's code.
    """
    with torch.autocast(logits.device.type, enabled=False):
        return (normalized_entropy(logits).square() + 1e-8).pow(power).mean()
