"""Owns what a softmax says of each pixel: the predicted class, its confidence, and sums of the proper scores."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

_BLOCK_ON_CPU = 2**15  # pixels: a block of 19 classes stays near the cache, and torch sums it in one thread
_BLOCK_ON_GPU = 2**21


@dataclass(frozen=True)
class ValidPixels:
    """The n valid pixels of one image, and counts and sums over them.

    `confidence` (n,) float32 in [1/C,1]; `predictions` and `labels` (n,) int64; `valid` (N,) bool says which of all
    pixels they are; `ignored` and `invalid` count the pixels left out; `nll`, `brier` and `brier_top` are float64 sums.
    """

    confidence: Tensor
    predictions: Tensor
    labels: Tensor
    valid: Tensor
    ignored: int
    invalid: int
    nll: float
    brier: float
    brier_top: float


@dataclass(frozen=True)
class SoftmaxScores:
    """Of each pixel (n,), in float32: confidence, predicted class (int64), and its share of the proper scores."""

    confidence: Tensor
    predictions: Tensor
    nll: Tensor
    brier: Tensor
    brier_top: Tensor


@torch.no_grad()
def measure_pixels(logits: Tensor, labels: Tensor, ignore: int) -> ValidPixels:
    """The valid pixels of (C,N) logits and (N,) labels: those that have a class, and no logit NaN or infinite.

    The pixels are worked off in blocks of one size, summed in order: the same bits with any number of threads.
    """
    none = labels.new_zeros(0)
    columns: list[tuple[Tensor, Tensor, Tensor, Tensor]] = [(none.float(), none, none, none.bool())]
    sums: list[tuple[float, float, float]] = [(0.0, 0.0, 0.0)]
    labelled = 0
    for block, truth in pixel_blocks(logits, labels):
        has_class = truth != ignore
        scores = softmax_scores(block, truth.where(has_class, 0))
        valid = has_class & finite_pixels(block)
        labelled += int(has_class.sum())
        columns.append((scores.confidence[valid], scores.predictions[valid], truth[valid], valid))
        sums.append((_total(scores.nll[valid]), _total(scores.brier[valid]), _total(scores.brier_top[valid])))
    confidence, predictions, truth, valid = (torch.cat(column) for column in zip(*columns, strict=True))
    nll, brier, brier_top = (math.fsum(column) for column in zip(*sums, strict=True))
    ignored, invalid = labels.numel() - labelled, labelled - truth.numel()
    return ValidPixels(confidence, predictions, truth, valid, ignored, invalid, nll, brier, brier_top)


def softmax_scores(logits: Tensor, labels: Tensor) -> SoftmaxScores:
    """What the softmax of float32 logits (C,n) says against labels (n,) in [0,C).

    The predicted class is the lowest index among equal largest logits. The largest logit is taken off first, so the
    confidence is 1 / sum(exp): one exponential a logit, and none of them overflows. The Brier score is the sum of
    squared differences to the one-hot label, in [0,2]; summed as such, it keeps the digits that 1 - 2p + p**2 loses.
    """
    largest = logits.amax(dim=0)
    predictions = first_index(logits, largest)
    shifted = logits - largest  # (C,n), at most 0
    picked = shifted.gather(0, labels[None])[0]
    probs = shifted.exp_()
    total = probs.sum(dim=0)
    confidence = total.reciprocal()
    probs *= confidence
    probs.scatter_add_(0, labels[None], probs.new_full((1, 1), -1.0).expand(1, labels.numel()))
    return SoftmaxScores(
        confidence=confidence,
        predictions=predictions,
        nll=total.log() - picked,
        brier=probs.square_().sum(dim=0),
        brier_top=(confidence - (predictions == labels).float()).square_(),
    )


def first_index(values: Tensor, largest: Tensor) -> Tensor:
    """The lowest index (n,) int64 at which (C,n) `values` reach their `largest` (n,); 0 where that is NaN.

    Written out because it takes a third of the time of `max(dim=0)`, and settles ties alike on every device.
    """
    index = torch.zeros(values.shape[1], dtype=torch.int64, device=values.device)
    for row in range(values.shape[0] - 1, -1, -1):
        index.masked_fill_(values[row] == largest, row)
    return index


def probabilities(logits: Tensor) -> Tensor:
    """The softmax (C,n) float32 of float32 logits (C,n), by the same arithmetic: its largest is the confidence."""
    shifted = logits - logits.amax(dim=0)
    probs = shifted.exp_()
    probs *= probs.sum(dim=0).reciprocal()
    return probs


def pixel_blocks(logits: Tensor, labels: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """(C,N) logits and (N,) labels in pieces of a size that suits the device, logits in float32."""
    size = _BLOCK_ON_CPU if logits.device.type == "cpu" else _BLOCK_ON_GPU
    for start in range(0, labels.numel(), size):
        part = slice(start, start + size)
        yield logits[:, part].float(), labels[part]


def finite_pixels(logits: Tensor) -> Tensor:
    """Which of the pixels of (C,n) logits have no logit that is NaN or infinite, (n,) bool."""
    if torch.isfinite(logits.sum()):  # one cheap look: a NaN or an infinity anywhere would show in the sum
        return torch.ones(logits.shape[1], dtype=torch.bool, device=logits.device)
    return torch.isfinite(logits).all(dim=0)


def _total(values: Tensor) -> float:
    return float(values.sum(dtype=torch.float64))
