"""Owns symmetric cross-entropy, which forgives wrong labels: Wang et al. 2019 (ICCV), arXiv 1908.06112."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORE = 255


def symmetric_cross_entropy(
    logits: Tensor,
    labels: Tensor,
    *,
    class_weights: Tensor | None = None,
    ce_weight: float = 0.1,
    rce_weight: float = 1.0,
    floor: float = 1e-4,
    soft_labels: Tensor | None = None,
    total: Callable[[Tensor], Tensor] = lambda weight: weight,
) -> Tensor:
    """ce_weight * CE + rce_weight * RCE over pixels whose label is not 255; a scalar in float32.

    Logits (B,C,H,W), labels (B,H,W) int64. CE is the mean of -log p_y, weighted by `class_weights` (C,) of the label
    and divided by the sum of the weights. RCE (eq. 5, 6) takes label and prediction in each other's place,
    -sum_k p_k log max(q_k, floor); for a hard label it is -log(floor) * (1 - p_y), so a label that the network finds
    impossible has a bounded loss and almost no gradient. The weights of the halves are Cal-SFDA's. No valid pixel: 0
    with zero gradient.

    `soft_labels` (B,C,H,W), probabilities q, replace the label in both halves; `labels` then say which pixels count and
    with which class's weight. Where processes share a batch, `total` adds up the weights of all, and this is one
    process's part of the whole batch's loss.
    """
    with torch.autocast(logits.device.type, enabled=False):
        log_probs = torch.log_softmax(logits.to(torch.promote_types(logits.dtype, torch.float32)), dim=1)
        valid = labels != IGNORE
        if soft_labels is None:
            forward, reverse = _hard(log_probs, labels, floor)
        else:
            forward, reverse = _soft(log_probs, soft_labels.to(log_probs.dtype), floor)
        weights = _pixel_weights(valid, labels, class_weights).to(log_probs.dtype)
        counted = valid.to(log_probs.dtype)
        return ce_weight * _mean(forward, weights, total) + rce_weight * _mean(reverse, counted, total)


def _hard(log_probs: Tensor, labels: Tensor, floor: float) -> tuple[Tensor, Tensor]:
    unlikely = F.nll_loss(log_probs, labels, ignore_index=IGNORE, reduction="none")
    return unlikely, math.log(floor) * torch.expm1(-unlikely)


def _soft(log_probs: Tensor, soft_labels: Tensor, floor: float) -> tuple[Tensor, Tensor]:
    forward = -(soft_labels * log_probs).sum(dim=1)
    return forward, -(log_probs.exp() * soft_labels.clamp_min(floor).log()).sum(dim=1)


def _pixel_weights(valid: Tensor, labels: Tensor, class_weights: Tensor | None) -> Tensor:
    if class_weights is None:
        return valid
    return class_weights[labels.masked_fill(~valid, 0)] * valid


def _mean(values: Tensor, weights: Tensor, total: Callable[[Tensor], Tensor]) -> Tensor:
    return (values * weights).sum() / total(weights.sum()).clamp_min(torch.finfo(values.dtype).tiny)
