"""Owns which predicted pixels are believed: their confidence, thresholds by class, and labels that ignore the rest.

Zou et al. 2018 (CBST, arXiv 1810.07911): of each class, the share of its predicted pixels that is most confident.

`votes` is the only place where a confidence is made. A method that trusts some images less gives it a `scale` an image
(Cal-SFDA: 1 - expected ECE). The scaled confidence is then what thresholds are measured on, what is compared with them
and what is stored: the two sides cannot differ.
"""

from dataclasses import dataclass
from fractions import Fraction
from math import ceil

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from calseg_cli.data.catalog import IGNORE
from calseg_cli.metrics.counting import decide_image
from calseg_cli.metrics.grid import Grid, bilinear_grid

COARSE_STEP = 2.0**-16
FINE_STEP = 2.0**-24
"""float32's own spacing in [0.5, 1]: on this grid nothing is rounded."""
FINE_FROM = 1 - 2.0**-8
"""From here up to 1 the grid is fine, because confident networks put most pixels there."""
_COARSE_BINS = int(FINE_FROM / COARSE_STEP)
EDGES: NDArray[np.float64] = np.concatenate(
    [np.arange(_COARSE_BINS) * COARSE_STEP, FINE_FROM + np.arange(int((1 - FINE_FROM) / FINE_STEP) + 1) * FINE_STEP]
)
"""The lower edge of each bin (130817,); each is a float32 exactly. The last bin holds confidence 1 alone."""
GRID = "steps of 2^-16, from 1 - 2^-8 of 2^-24"

Counts = NDArray[np.int64]
Thresholds = NDArray[np.float64]


@dataclass(frozen=True)
class Votes:
    """Of each pixel of one image: the predicted class (H,W) int64, and its confidence (H,W) float32 in [0,1]."""

    classes: Tensor
    confidence: Tensor


@torch.no_grad()
def votes(logits: Tensor, *, grid: Grid | None = None, scale: float = 1.0) -> Votes:
    """The class of the largest logit, of equals the lowest index, and its softmax times `scale` in [0,1].

    Logits are (C,h,w), read where `grid` lays the label's pixels on them; without one, each is a pixel.

    >>> one = votes(torch.tensor([[[0.0]], [[0.0]]]), scale=0.5)
    >>> int(one.classes), float(one.confidence)
    (0, 0.25)
    """
    if not 0 <= scale <= 1:
        raise ValueError(f"the scale of an image's confidence is {scale}, not within [0,1]")
    height, width = (int(side) for side in logits.shape[1:])
    classes, confidence = decide_image(logits, grid or bilinear_grid((height, width), (height, width)))
    return Votes(classes, confidence.mul_(scale))


def believed_labels(image: Votes, thresholds: Thresholds) -> Tensor:
    """Labels (H,W) uint8: the predicted class where its confidence reaches the threshold of that very class, else 255.

    The comparison is `confidence >= thresholds[class]` in float64, which holds a float32 exactly. Not the rule by
    which any class above its own threshold would do: that believes pixels whose predicted class fails. Where a
    threshold is NaN nothing is believed.

    >>> image = Votes(torch.tensor([[0, 1]]), torch.tensor([[0.5, 0.5]]))
    >>> believed_labels(image, np.array([0.5, 0.6])).tolist()
    [[0, 255]]
    """
    wanted = torch.from_numpy(thresholds).to(image.classes.device)[image.classes]
    labels = image.classes.to(torch.uint8)
    return labels.masked_fill_(~(image.confidence.double() >= wanted), IGNORE)


def locally_believed(image: Votes, labels: Tensor, portion: float) -> Tensor:
    """Labels (H,W) with the image's own surest pixels believed besides: `portion` of them, ties included.

    You et al. 2021 (LDBE) and Cal-SFDA's code; it goes past the balance of classes.

    >>> image = Votes(torch.tensor([[0, 1]]), torch.tensor([[0.5, 0.6]]))
    >>> locally_believed(image, torch.tensor([[255, 255]], dtype=torch.uint8), 0.5).tolist()
    [[255, 1]]
    """
    wanted = ceil(Fraction(str(portion)) * image.confidence.numel())
    lowest = image.confidence.flatten().kthvalue(image.confidence.numel() - wanted + 1).values
    return torch.where(image.confidence >= lowest, image.classes.to(torch.uint8), labels)


def class_pixels(labels: Tensor, num_classes: int) -> Counts:
    """How many pixels (C,) int64 have each class; ignored ones count for none."""
    counts: Counts = torch.bincount(labels.flatten().long(), minlength=IGNORE + 1)[:num_classes].cpu().numpy()
    return counts


class VoteHistogram:
    """How many pixels of each predicted class have which confidence: `counts` (C, 130817) int64.

    Whole numbers: images may come in any order, and histograms of parts add up to that of the whole, bit for bit.
    """

    def __init__(self, num_classes: int) -> None:
        self.counts: Counts = np.zeros((num_classes, len(EDGES)), np.int64)

    def add(self, image: Votes) -> None:
        """Count an image's pixels. Raises ValueError for a confidence that is NaN or outside [0,1]."""
        cells = image.classes.flatten() * len(EDGES) + confidence_bins(image.confidence.flatten())
        # In place: a fresh table for each image would cost more than the counting of a small one.
        torch.from_numpy(self.counts).view(-1).index_add_(0, cells.cpu(), torch.ones(cells.numel(), dtype=torch.int64))

    def absorb(self, other: "VoteHistogram") -> None:
        """Add the pixels that `other` has counted."""
        self.counts += other.counts

    @property
    def predicted(self) -> Counts:
        """The pixels of each predicted class (C,)."""
        pixels: Counts = self.counts.sum(axis=1)
        return pixels

    def thresholds(self, portion: float, ceiling: float = 1.0) -> Thresholds:
        """Thresholds (C,) that `portion` of each class's predicted pixels reach; see `class_balanced_threshold`.

        None is above `ceiling`, which is taken at the edge of the grid at or below it.
        """
        lowest = [class_balanced_threshold(counts, portion) for counts in self.counts]
        highest = EDGES[np.searchsorted(EDGES, ceiling, side="right") - 1]
        bounded: Thresholds = np.minimum(lowest, highest)
        return bounded

    def reaching(self, thresholds: Thresholds) -> Counts:
        """How many pixels of each class (C,) reach its threshold, which must be an edge of the grid or NaN."""
        places = np.searchsorted(EDGES, thresholds)  # NaN sorts behind every edge
        return np.array([counts[place:].sum() for counts, place in zip(self.counts, places, strict=True)])


def class_balanced_threshold(counts: Counts, portion: float) -> float:
    """The highest edge of the grid at or above which lie ceil(portion * N) of a class's N pixels; NaN where N is 0.

    `counts` (130817,) are the class's pixels by bin; `portion`, in (0,1], is the decimal number as it is written, so
    that 0.1 of 10 pixels is 1. Ties are kept: every pixel of the lowest bin that is needed, one of width 2**-16 below
    0.99609375 and 2**-24 from there, is believed. So at least the portion is, and at most that bin's pixels more.
    """
    if not 0 < portion <= 1:
        raise ValueError(f"the portion {portion} is not within (0,1]")
    from_above = np.cumsum(counts[::-1])
    if not from_above[-1]:
        return float("nan")
    wanted = ceil(Fraction(str(portion)) * int(from_above[-1]))
    return float(EDGES[len(EDGES) - 1 - int(np.searchsorted(from_above, wanted))])


def confidence_bins(confidence: Tensor) -> Tensor:
    """The bin (N,) int64 of each float32 confidence in [0,1]: the last one whose edge is not above it.

    Multiplying by a power of two and subtracting a near number are exact, so this is the search among the edges.
    """
    if confidence.dtype != torch.float32:
        raise ValueError(f"confidence is float32, not {confidence.dtype}")
    if confidence.numel() and not ((confidence.min() >= 0) & (confidence.max() <= 1)):  # NaN fails both
        raise ValueError("confidence is NaN or outside [0,1]")
    coarse = (confidence / COARSE_STEP).long()
    fine = ((confidence - FINE_FROM) / FINE_STEP).long() + _COARSE_BINS
    return torch.where(confidence >= FINE_FROM, fine, coarse)
