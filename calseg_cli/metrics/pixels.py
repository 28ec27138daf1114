"""Owns what a softmax says of each pixel: the predicted class, its confidence, and sums of the proper scores."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from calseg_cli.metrics.arithmetic import exp_of_negative, log_from_one, sum_in_order
from calseg_cli.metrics.fine_histogram import ONE
from calseg_cli.metrics.grid import Grid, enlarge

LARGEST_FIXED = 2.0**17
"""No negative log-likelihood of float16 logits is larger; 2**15 of them fit int64 in steps of 2**-31."""

_BLOCK_ON_CPU = 2**15  # pixels: a block of 19 classes stays near the cache, and torch sums it in one thread
_BLOCK_ON_GPU = 2**18


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
    """Of each pixel (n,): confidence (float32), predicted class (int64), its share of the proper scores (float64)."""

    confidence: Tensor
    predictions: Tensor
    nll: Tensor
    brier: Tensor
    brier_top: Tensor


@torch.no_grad()
def measure_pixels(logits: Tensor, labels: Tensor, ignore: int) -> ValidPixels:
    """The valid pixels of (C,N) logits and (N,) labels: those that have a class, and no logit NaN or infinite.

    The pixels are worked off in blocks, and whole numbers are summed: the same bits with any number of threads.
    """
    return _measure(pixel_blocks(logits, labels), labels, ignore)


@torch.no_grad()
def measure_grid(native: Tensor, labels: Tensor, grid: Grid, ignore: int) -> ValidPixels:
    """The same of logits (C,h,w) on their own grid and labels (H,W): a few rows of full size are alive at a time."""
    return _measure(_row_blocks(native, labels, grid), labels, ignore)


def _measure(blocks: Iterable[tuple[Tensor, Tensor]], labels: Tensor, ignore: int) -> ValidPixels:
    none = labels.new_zeros(0)
    columns: list[tuple[Tensor, Tensor, Tensor, Tensor]] = [(none.float(), none, none, none.bool())]
    sums = [FixedSum() for _ in range(3)]
    labelled = 0
    for block, truth in blocks:
        has_class = truth != ignore
        scores = softmax_scores(block, truth.where(has_class, 0))
        valid = has_class & finite_pixels(block)
        labelled += int(has_class.sum())
        columns.append((scores.confidence[valid], scores.predictions[valid], truth[valid], valid))
        for total, values in zip(sums, (scores.nll, scores.brier, scores.brier_top), strict=True):
            total.add(values[valid])
    confidence, predictions, truth, valid = (torch.cat(column) for column in zip(*columns, strict=True))
    nll, brier, brier_top = (total.value for total in sums)
    ignored, invalid = labels.numel() - labelled, labelled - truth.numel()
    return ValidPixels(confidence, predictions, truth, valid, ignored, invalid, nll, brier, brier_top)


def top_of_softmax(logits: Tensor) -> tuple[Tensor, Tensor]:
    """The predicted class (n,) int64 and its confidence (n,) of float32 logits (C,n), as `softmax_scores` has them."""
    largest = logits.amax(dim=0)
    return first_index(logits, largest), sum_in_order(exp_of_negative(logits - largest)).reciprocal()


class FixedSum:
    """A sum of float64 values in steps of 2**-31: exact in any order. What is too large for that is summed by fsum."""

    def __init__(self) -> None:
        self._steps = 0
        self._large: list[float] = []

    def add(self, values: Tensor) -> None:
        """Add values (n,) float64 of any device."""
        fits = values.abs() < LARGEST_FIXED
        if not fits.all():
            self._large += values[~fits].tolist()
            values = values[fits]
        steps = (values * ONE).round_().long()
        # In two parts, so that no sum of millions of the largest values leaves int64.
        self._steps += (int((steps >> 16).sum()) << 16) + int((steps & 0xFFFF).sum())

    @property
    def value(self) -> float:
        """The sum, rounded once."""
        return math.fsum([self._steps / ONE, *self._large])


def softmax_scores(logits: Tensor, labels: Tensor) -> SoftmaxScores:
    """What the softmax of float32 logits (C,n) says against labels (n,) in [0,C).

    The predicted class is the lowest index among equal largest logits. The largest logit is taken off first, so the
    confidence is 1 / sum(exp): one exponential a logit, and none of them overflows. The Brier score is the sum of
    squared differences to the one-hot label, in [0,2]; summed as such, it keeps the digits that 1 - 2p + p**2 loses.
    Every step is one that `arithmetic` allows, classes are added in one order: `kernel` does the same, bit for bit.
    """
    largest = logits.amax(dim=0)
    predictions = first_index(logits, largest)
    shifted = logits - largest  # (C,n), at most 0
    picked = shifted.gather(0, labels[None])[0].double()
    exps = exp_of_negative(shifted)
    picked_exp = exps.gather(0, labels[None])[0].double()
    total, squares = sum_in_order(exps), sum_in_order(exps.square().scatter_(0, labels[None], 0.0)).double()
    confidence = total.reciprocal()
    q = confidence.double()
    missing = 1.0 - picked_exp * q
    residual = q - (predictions == labels).double()
    return SoftmaxScores(
        confidence=confidence,
        predictions=predictions,
        nll=log_from_one(total) - picked,
        brier=squares * (q * q) + missing * missing,
        brier_top=residual * residual,
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
    probs = exp_of_negative(logits - logits.amax(dim=0))
    probs *= sum_in_order(probs).reciprocal()
    return probs


def pixel_blocks(logits: Tensor, labels: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """(C,N) logits and (N,) labels in pieces of a size that suits the device, logits in float32."""
    size = _block_size(logits)
    for start in range(0, labels.numel(), size):
        part = slice(start, start + size)
        yield logits[:, part].float(), labels[part]


def logit_blocks(native: Tensor, grid: Grid) -> Iterator[Tensor]:
    """(C,n) logits at full size of some rows at a time."""
    height, width = grid.out_hw
    size = max(1, _block_size(native) // width)
    for first in range(0, height, size):
        yield enlarge(native, grid, first, min(first + size, height)).flatten(1)


def _row_blocks(native: Tensor, labels: Tensor, grid: Grid) -> Iterator[tuple[Tensor, Tensor]]:
    start = 0
    for block in logit_blocks(native, grid):
        yield block, labels.flatten()[start : start + block.shape[1]]
        start += block.shape[1]


def _block_size(logits: Tensor) -> int:
    return _BLOCK_ON_CPU if logits.device.type == "cpu" else _BLOCK_ON_GPU


def finite_pixels(logits: Tensor) -> Tensor:
    """Which of the pixels of (C,n) logits have no logit that is NaN or infinite, (n,) bool."""
    if torch.isfinite(logits.sum()):  # one cheap look: a NaN or an infinity anywhere would show in the sum
        return torch.ones(logits.shape[1], dtype=torch.bool, device=logits.device)
    return torch.isfinite(logits).all(dim=0)
