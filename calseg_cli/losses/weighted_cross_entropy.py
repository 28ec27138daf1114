"""Owns cross-entropy whose pixels have weights and whose targets are classes, probabilities, or both side by side."""

import torch
from torch import Tensor

IGNORE = 255


def weighted_cross_entropy(
    logits: Tensor, labels: Tensor, weights: Tensor, *, soft: Tensor | None = None, hard: Tensor | None = None
) -> Tensor:
    """-1/N of the sum over all N pixels of w times sum_c t_c log p_c; a scalar, float32 (or the logits' float64).

    `logits` (B,C,H,W); `labels` (B,H,W) int64 are the targets t, 255 counts nothing; `weights` (B,H,W) the w, at least
    0. With `soft` (B,C,H,W), probabilities, these are the targets but where `hard` (B,H,W), bool, says that the label
    is. N counts every pixel, so that a weight of 0 makes the loss smaller: its gradient is w (p - t) / N. Labels and
    probabilities get none. Autocast does not reach it.

    >>> logits = torch.zeros(1, 2, 1, 2)
    >>> float(weighted_cross_entropy(logits, torch.tensor([[[0, 255]]]), torch.ones(1, 1, 2)))
    0.3465735912322998
    """
    with torch.autocast(logits.device.type, enabled=False):
        log_probs = torch.log_softmax(logits.to(torch.promote_types(logits.dtype, torch.float32)), dim=1)
        known = labels != IGNORE
        found = log_probs.gather(1, labels.masked_fill(~known, 0)[:, None])[:, 0]
        found = torch.where(known, found, found.new_zeros(()))
        if soft is not None:
            taught = (soft.detach().to(log_probs.dtype) * log_probs).sum(dim=1)
            found = taught if hard is None else torch.where(hard, found, taught)
        return (weights * -found).sum() / labels.numel()
