"""Owns the histograms of logits by true class and channel: exact counts on a grid that widens by doubling."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from calseg_cli.errors import ConfigError

LOGIT_BINS = 1024
"""Bins of each histogram, half of them below 0; 8 KiB for each pair of classes."""

FINEST, COARSEST = -10, 119
"""Bins are 2**FINEST wide (logits in [-0.5, 0.5)) at the least, and 2**COARSEST where logits fill float32."""

_HALF = LOGIT_BINS // 2
_HALVINGS = LOGIT_BINS.bit_length() - 1  # after so many all counts are in the two bins beside 0, and stay there
Counts = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class LogitHistograms:
    """How many pixels of each true class have which logit in each channel: BLDA's sets M[c][l] (ICML 2025, Eq. 3).

    `counts` int64 (C,C,1024) by true class c, channel l and bin; bin j has the logits in [(j-512) w, (j-511) w) with
    w = 2**`exponent`. The grid is as fine as the largest logit allows, and the wider one of two is made of the finer
    one by adding pairs of bins, which is exact: counts of parts add up to those of the whole in any order.
    """

    counts: Counts
    exponent: int

    def __post_init__(self) -> None:
        classes = len(self.counts)
        if self.counts.dtype != np.int64 or self.counts.shape != (classes, classes, LOGIT_BINS):
            raise ValueError(
                f"counts are int64 (C, C, {LOGIT_BINS}) of logits, not {self.counts.dtype} {self.counts.shape}"
            )
        if not FINEST <= self.exponent <= COARSEST:
            raise ValueError(f"bins of logits are 2**{FINEST} to 2**{COARSEST} wide, not 2**{self.exponent}")

    @classmethod
    def zeros(cls, num_classes: int) -> "LogitHistograms":
        """Counts of nothing, the neutral element of addition."""
        return cls(np.zeros((num_classes, num_classes, LOGIT_BINS), np.int64), FINEST)

    @property
    def num_classes(self) -> int:
        """C."""
        return len(self.counts)

    @property
    def edges(self) -> NDArray[np.float64]:
        """The edges of the bins, (1025,) float64 in logits, rising; exact."""
        return np.ldexp(np.arange(-_HALF, _HALF + 1, dtype=np.float64), self.exponent)

    def widened(self, exponent: int) -> "LogitHistograms":
        """The same counts on a grid at least as wide. Raises ValueError for a finer one."""
        if exponent < self.exponent:
            raise ValueError(f"bins 2**{self.exponent} wide cannot be made 2**{exponent} wide")
        counts = self.counts
        for _ in range(min(exponent - self.exponent, _HALVINGS)):
            counts = np.pad(counts.reshape(*counts.shape[:2], -1, 2).sum(axis=3), ((0, 0), (0, 0), (_HALF // 2,) * 2))
        return LogitHistograms(counts, exponent)

    def __add__(self, other: "LogitHistograms") -> "LogitHistograms":
        """Raises ConfigError where the numbers of classes differ."""
        if self.num_classes != other.num_classes:
            raise ConfigError(
                f"logits of {self.num_classes} and of {other.num_classes} classes cannot be added",
                "measure both with the same classes",
            )
        widest = max(self.exponent, other.exponent)
        return LogitHistograms(self.widened(widest).counts + other.widened(widest).counts, widest)

    def contradictions(self, confusion: Counts) -> list[str]:
        """What does not agree with the confusion matrix (C,C) of the same pixels, in words."""
        if len(confusion) != self.num_classes:
            return ["logits and classes"]
        pixels = np.broadcast_to(confusion.sum(axis=1)[:, None], confusion.shape)
        agree = (self.counts >= 0).all() and np.array_equal(self.counts.sum(axis=2), pixels)
        return [] if agree else ["logits and pixels"]


@torch.no_grad()
def count_logits(logits: Tensor, labels: Tensor) -> LogitHistograms:
    """The histograms of n pixels from finite logits (C,n) and labels (n,) in [0,C), on any device.

    One channel is binned at a time. A logit is scaled by a power of two and rounded down: nothing is lost.
    """
    num_classes = logits.shape[0]
    exponent = _exponent(max(abs(float(end)) for end in logits.aminmax())) if logits.numel() else FINEST
    rows = labels.long() * LOGIT_BINS + _HALF
    channels = []
    for channel in logits:
        cells = channel.float().mul(2.0**-exponent).floor_().long().add_(rows)
        channels.append(torch.bincount(cells, minlength=num_classes * LOGIT_BINS).reshape(num_classes, LOGIT_BINS))
    return LogitHistograms(torch.stack(channels, dim=1).cpu().numpy(), exponent)


def _exponent(largest: float) -> int:
    """The finest grid on which every logit of at most this size has a bin."""
    return max(math.frexp(largest)[1] - (_HALF.bit_length() - 1), FINEST) if largest else FINEST
