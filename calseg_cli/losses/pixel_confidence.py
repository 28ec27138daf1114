"""Owns what losses read of a pixel's class probabilities: that of its label, and the confidence, at little cost.

A supervised step with a calibration term needs both at full size. Done plainly, the smoothed maximum alone costs more
than the cross-entropy; here it costs one more pass over the classes and leaves no tensor with classes behind.
"""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class PixelConfidence(NamedTuple):
    """Each (B,H,W): log-probability of the label (0 without one), smoothed confidence, whether the label is the most
    probable class (of equals, the first is).
    """

    label_log_prob: Tensor
    confidence: Tensor
    correct: Tensor


def pixel_confidence(log_probs: Tensor, labels: Tensor, temperature: float) -> PixelConfidence:
    """Likelihood, confidence and correctness from log-probabilities (B,C,H,W); labels (B,H,W), valid in 0..C-1.

    The confidence is `smoothed_confidence` of the probabilities, value and gradient, to the last bits of the type:
    with differences of many temperatures between the largest probability and all others it is that probability, and
    only the pixels where it is not are calculated in full. Half precision becomes float32.
    """
    with torch.autocast(log_probs.device.type, enabled=False):
        wide = log_probs.to(torch.promote_types(log_probs.dtype, torch.float32))
        return PixelConfidence(*_PixelConfidence.apply(wide, labels, temperature))  # type: ignore[no-untyped-call]


def log_probabilities(logits: Tensor) -> Tensor:
    """Logarithms of the softmax over the classes (dimension 1), in float32 whatever autocast says; float64 stays."""
    with torch.autocast(logits.device.type, enabled=False):
        return torch.log_softmax(logits.to(torch.promote_types(logits.dtype, torch.float32)), dim=1)


class _PixelConfidence(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, log_probs: Tensor, labels: Tensor, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
        largest = log_probs.amax(dim=1)
        counts = log_probs >= _least_that_counts(largest, log_probs.shape[1], temperature)[:, None]
        rivals = counts.view(torch.uint8).sum(dim=1, dtype=torch.uint8)  # labels are bytes: C <= 255
        close = (rivals != 1).nonzero(as_tuple=True)
        valid = (labels >= 0) & (labels < log_probs.shape[1])
        known = labels.masked_fill(~valid, 0)
        of_label = log_probs.gather(1, known[:, None]).squeeze(1)
        correct = (of_label >= largest) & valid
        confidence = largest.exp()
        probs = log_probs.permute(0, 2, 3, 1)[close].exp()
        confidence[close], shares = _smoothed(probs, temperature)
        correct[close] &= probs.argmax(dim=1) == labels[close]
        ctx.save_for_backward(counts, confidence, *close, shares.mul_(probs), known, valid)
        ctx.mark_non_differentiable(correct)
        return of_label * valid, confidence, correct

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_label: Tensor, of_confidence: Tensor, _: Tensor) -> tuple[Tensor, None, None]:
        counts, confidence, image, row, column, slopes, known, valid = ctx.saved_tensors
        close = (image, row, column)
        grad = torch.where(counts, (of_confidence * confidence)[:, None], of_confidence.new_zeros(()))
        grad.permute(0, 2, 3, 1)[close] = slopes * of_confidence[close][:, None]
        grad.scatter_add_(1, known[:, None], (of_label * valid)[:, None])
        return grad, None, None


def _least_that_counts(largest: Tensor, classes: int, temperature: float) -> Tensor:
    """The log-probability below which a class adds nothing to the smoothed maximum that its type could show."""
    reach = temperature * (math.log(classes) - math.log(torch.finfo(largest.dtype).eps) + 3)
    least = (largest.exp() - reach).clamp_min(0).log()
    return torch.minimum(least, largest)


def _smoothed(probs: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Smoothed maximum (n,) of probabilities (n,C), and its gradient."""
    largest = probs.amax(dim=1, keepdim=True)
    raised = ((probs - largest) / temperature).exp()
    total = raised.sum(dim=1, keepdim=True)
    return (largest + temperature * total.log()).squeeze(1), raised / total
