"""Owns the fine confidence histogram: exact, mergeable integer counts that every binned score is read off."""

from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from calseg_cli.errors import ConfigError, DataError

Edges = Literal["right", "left"]
"""Which edge belongs to a bin: "right" is (lo,hi] with 0 in the first bin, "left" is [lo,hi) with 1 in the last."""

FINE_BINS = 4800
"""2**6 * 3 * 5**2: every customary number of bins (10, 12, 15, 16, 20, 25, 30, 50, 100) divides it."""

ONE = 2**31
"""Fixed point: confidence 1.0. A float32 in [1/256, 1] is a whole multiple of 2**-31, so nothing is rounded there."""

_LARGEST = np.iinfo(np.int64).max
Counts = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class CalibrationCounts:
    """Three int64 (G, 4800) arrays by group and fine bin: pixels, right ones, and the sum of confidence times 2**31.

    Counts of parts add up to the counts of the whole, bit for bit, in any order and grouping. Raises ConfigError where
    two conventions or class counts are added, DataError where a sum leaves int64 (2**32 pixels in one bin).
    """

    count: Counts
    correct: Counts
    confidence: Counts
    edges: Edges = field(default="right", kw_only=True)

    def __post_init__(self) -> None:
        check_edges(self.edges)
        for array in (self.count, self.correct, self.confidence):
            if array.dtype != np.int64 or array.shape != (self.num_groups, FINE_BINS):
                raise ValueError(f"counts are int64 (G, {FINE_BINS}), not {array.dtype} {array.shape}")

    @classmethod
    def zeros(cls, num_groups: int, edges: Edges = "right") -> "CalibrationCounts":
        """Counts of nothing, the neutral element of addition."""
        empty = (np.zeros((num_groups, FINE_BINS), np.int64) for _ in range(3))
        return cls(*empty, edges=edges)

    @property
    def num_groups(self) -> int:
        """How many groups, such as classes, are counted apart."""
        return len(self.count)

    @property
    def num_pixels(self) -> int:
        """All pixels counted."""
        return int(self.count.sum())

    def __add__(self, other: "CalibrationCounts") -> "CalibrationCounts":
        total = self.copy()
        total.absorb(other)
        return total

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, CalibrationCounts):
            return NotImplemented
        pairs = zip(self.arrays(), other.arrays(), strict=True)
        return self.edges == other.edges and all(np.array_equal(one, two) for one, two in pairs)

    __hash__ = None  # type: ignore[assignment]  # holds arrays

    def arrays(self) -> tuple[Counts, Counts, Counts]:
        """(count, correct, confidence), in this order."""
        return self.count, self.correct, self.confidence

    def copy(self) -> "CalibrationCounts":
        """The same counts in memory of their own."""
        return CalibrationCounts(*(array.copy() for array in self.arrays()), edges=self.edges)

    def absorb(self, other: "CalibrationCounts") -> None:
        """Add `other` in place, which spares a long pass three new arrays an image."""
        if (self.edges, self.num_groups) != (other.edges, other.num_groups):
            raise ConfigError(
                f"counts of {self.num_groups} classes with {self.edges}-closed bins and of {other.num_groups} classes "
                f"with {other.edges}-closed bins cannot be added",
                "measure both with the same classes and the same bin edges",
            )
        if np.any(self.confidence > _LARGEST - other.confidence):
            raise DataError("more than 2**32 pixels in one confidence bin", "measure the dataset in parts")
        for mine, theirs in zip(self.arrays(), other.arrays(), strict=True):
            mine += theirs


def calibration_counts(
    confidence: Tensor, correct: Tensor, groups: Tensor, num_groups: int, edges: Edges = "right"
) -> CalibrationCounts:
    """Counts of N pixels: `confidence` (N,) float32 in [0,1], `correct` (N,) bool, `groups` (N,) integers in [0,G).

    Exact on every device: whole numbers are summed, so order does not matter. Raises ValueError for a confidence that
    is NaN or outside [0,1], which no softmax gives.

    >>> counts = calibration_counts(torch.tensor([0.5, 1.0]), torch.tensor([True, False]), torch.tensor([0, 0]), 1)
    >>> counts.num_pixels, int(counts.correct.sum()), int(counts.confidence.sum()) / ONE
    (2, 1, 1.5)
    """
    bins = fine_bins(confidence, edges)
    counts, sums = binned_sums(confidence, bins, groups, num_groups)
    right, _ = binned_sums(None, bins[correct], groups[correct], num_groups)
    return CalibrationCounts(counts, right, sums, edges=edges)


def fine_bins(confidence: Tensor, edges: Edges = "right") -> Tensor:
    """The fine bin (N,) int64 of each float32 confidence, as a search among the float64 edges j/4800 would find it.

    The product below has at most 24 + 7 significant bits, so float64 holds it exactly; and no float32 lies between the
    real number j/4800 and the float64 next to it. So rounding up or down is the search, at a tenth of its cost.
    """
    check_edges(edges)
    if confidence.dtype != torch.float32:
        raise ValueError(f"confidence is float32, not {confidence.dtype}: other types are not exact in fixed point")
    if confidence.numel() and not ((confidence.min() >= 0) & (confidence.max() <= 1)):  # NaN fails both
        raise ValueError("confidence is NaN or outside [0,1]")
    position = confidence.double().mul_(FINE_BINS)
    if edges == "right":
        return position.ceil_().long().sub_(1).clamp_(min=0)
    return position.floor_().long().clamp_(max=FINE_BINS - 1)


def binned_sums(confidence: Tensor | None, bins: Tensor, groups: Tensor, num_groups: int) -> tuple[Counts, Counts]:
    """Pixels and fixed-point confidence by group and fine bin, both int64 (G, 4800); no sums without `confidence`.

    int64 addition has no rounding and no order, so atomics on a GPU give the same bits, as floats would not.
    """
    if groups.numel() and not ((groups.min() >= 0) & (groups.max() < num_groups)):
        raise ValueError(f"a group lies outside [0, {num_groups})")
    size = num_groups * FINE_BINS
    cells = groups.long() * FINE_BINS + bins
    counts = torch.bincount(cells, minlength=size)
    sums = torch.zeros_like(counts)
    if confidence is not None:
        sums.index_add_(0, cells, confidence.double().mul_(ONE).round_().long())
    shape = (num_groups, FINE_BINS)
    return counts.reshape(shape).cpu().numpy(), sums.reshape(shape).cpu().numpy()


def check_edges(edges: str) -> None:
    """Raise ConfigError unless `edges` is "right" or "left"."""
    if edges not in get_args(Edges):
        raise ConfigError(f"bin edges {edges!r} are unknown", 'choose "right" for (lo,hi] or "left" for [lo,hi)')


def check_bins(bins: int, fine: int = FINE_BINS) -> None:
    """Raise ConfigError, with the nearest numbers that do, unless `bins` divides the fine bins."""
    if bins >= 1 and fine % bins == 0:
        return
    allowed = [number for number in range(1, fine + 1) if fine % number == 0]
    nearest = [*[number for number in allowed if number < bins][-1:], *[n for n in allowed if n > bins][:1]]
    raise ConfigError(
        f"{bins} bins do not divide the {fine} bins that are counted", f"choose {' or '.join(map(str, nearest))}"
    )
