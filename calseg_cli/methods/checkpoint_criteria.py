"""Owns what can be said of a network on images without labels, and when such words show that it has collapsed.

Three criteria for choosing among checkpoints need no label: the mean entropy of the pixels (Cal-SFDA, arXiv
2308.03003, chooses its target checkpoint by it), their mean confidence, and a soft neighbourhood density. Each of
them is best where a network answers the same class everywhere, so none may be used without `collapse`.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

TEMPERATURE = 0.05
"""Of the similarities between pixels, as in the paper on SND."""

SIDE = 16
"""An image's sampled pixels lie on a grid of at most 16x16."""

LEAST_SHARE = 1e-4
"""A class counts as predicted from this share of the pixels on."""

KEPT_CLASSES = 0.75
"""Of the classes that the start predicts, so many must still be predicted."""

MOST_MOVED = 0.5
"""Of all pixels, so many may have moved to another class, at least: total variation of the two histograms."""


@dataclass(frozen=True)
class Outlook:
    """A network on images without labels; NaN where nothing was added, or where a logit was not finite.

    `entropy` in [0,1]: mean over pixels of Shannon's entropy / log C. `confidence` in [1/C,1]: mean of the largest
    probability. `neighbourhood` in [0,1]: `neighbour_entropy`, mean over the sampled pixels; higher is better.
    `class_shares` (C,) float64: the share of pixels predicted as each class, in sum 1. `pixels`: how many.
    """

    entropy: float
    confidence: float
    neighbourhood: float
    class_shares: NDArray[np.float64]
    pixels: int

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Outlook):
            return NotImplemented
        return np.array_equal(_numbers(self), _numbers(other), equal_nan=True)

    __hash__ = None  # type: ignore[assignment]  # holds an array


def _numbers(outlook: Outlook) -> NDArray[np.float64]:
    scalars = (outlook.entropy, outlook.confidence, outlook.neighbourhood, outlook.pixels)
    return np.concatenate([np.array(scalars, np.float64), outlook.class_shares])


class OutlookSums:
    """Adds up images one by one. Pixels are those of the logits' own grid; every one weighs the same.

    Sums of each image are float64 and are added exactly (`math.fsum`): the order of images changes no bit.
    """

    def __init__(self) -> None:
        self._entropy: list[float] = []
        self._confidence: list[float] = []
        self._neighbours: list[float] = []
        self._pixels: list[int] = []
        self._sampled: list[int] = []
        self._classes: NDArray[np.int64] | None = None

    @torch.no_grad()
    def add(self, logits: Tensor) -> None:
        """Count one image's logits (C,h,w), of any floating type and device; softmax is float32.

        Raises ValueError for another number of dimensions, or of classes than the images before.
        """
        if logits.ndim != 3:
            raise ValueError(f"logits are (C,h,w), not {tuple(logits.shape)}")
        probs = logits.float().softmax(dim=0)
        classes = torch.bincount(logits.argmax(dim=0).flatten().cpu(), minlength=len(probs)).numpy()
        if self._classes is not None and len(self._classes) != len(classes):
            raise ValueError(f"logits of {len(classes)} classes after others of {len(self._classes)}")
        self._classes = classes if self._classes is None else self._classes + classes
        entropy = torch.special.entr(probs).sum(dim=0) / max(math.log(len(probs)), 1e-300)
        self._entropy.append(_total(entropy))
        self._confidence.append(_total(probs.amax(dim=0)))
        rows = neighbour_entropy(sample(probs))
        self._neighbours.append(float(rows.sum()))
        self._pixels.append(int(classes.sum()))
        self._sampled.append(len(rows))

    @property
    def columns(self) -> dict[str, NDArray[np.float64]]:
        """What was added, one row an image (I,) in the order of adding: sums, and what they are to be divided by."""
        told = {"entropy": self._entropy, "confidence": self._confidence, "neighbourhood": self._neighbours}
        counts = {"pixels": self._pixels, "sampled": self._sampled}
        return {name: np.array(values, np.float64) for name, values in {**told, **counts}.items()}

    def outlook(self) -> Outlook:
        """What was added so far."""
        classes = np.zeros(0, np.int64) if self._classes is None else self._classes
        pixels = int(classes.sum())
        return Outlook(
            _mean(self._entropy, pixels),
            _mean(self._confidence, pixels),
            _mean(self._neighbours, sum(self._sampled)),
            classes / max(pixels, 1),
            pixels,
        )


def sample(probs: Tensor) -> Tensor:
    """Of probabilities (C,h,w) those of at most 16x16 pixels (N,C) float64 on the CPU: centres of equal cells."""
    rows, columns = (_centres(int(side)) for side in probs.shape[1:])
    picked = probs[:, rows.to(probs.device)][:, :, columns.to(probs.device)]
    return picked.flatten(1).t().cpu().double()


def neighbour_entropy(probs: Tensor) -> NDArray[np.float64]:
    """How evenly each of the pixels (N,C) looks at the others, (N,) in [0,1]; none where N < 3. SND-like.

    Saito et al. 2021, "Tune it the Right Way" (arXiv 2108.10860): the similarity of two samples is the product of
    their softmax vectors, each of length 1; a softmax over all others at temperature 0.05 makes a distribution of
    neighbours; its entropy, averaged, is the soft neighbourhood density. High: many neighbours are alike, so classes
    are dense. What differs here: samples are pixels of one image on a fixed grid in place of random ones, a pixel is
    left out of its own neighbours altogether, and entropies are divided by log(N - 1), so that sizes compare.
    """
    count = len(probs)
    if count < 3:
        return np.zeros(0)
    unit = probs / probs.norm(dim=1, keepdim=True).clamp_min(1e-12)
    likeness = (unit @ unit.t() / TEMPERATURE).fill_diagonal_(-math.inf)
    entropy: NDArray[np.float64] = torch.special.entr(likeness.softmax(dim=1)).sum(dim=1).numpy()
    return entropy / math.log(count - 1)


def collapse(
    candidate: Outlook,
    start: Outlook,
    *,
    least_share: float = LEAST_SHARE,
    kept_classes: float = KEPT_CLASSES,
    most_moved: float = MOST_MOVED,
) -> str | None:
    """Why a candidate is not to be believed beside the network that it started from; None if nothing speaks against.

    Refused: scores that are not finite; fewer than `kept_classes` (a share, rounded up) of the classes that the start
    predicts on a share of pixels above `least_share`; class histograms further apart than `most_moved`, in total
    variation, which is the share of pixels that must have changed class. Raises ValueError where the two are of
    different numbers of classes.
    """
    if candidate.class_shares.shape != start.class_shares.shape:
        raise ValueError(f"{len(candidate.class_shares)} classes beside {len(start.class_shares)}")
    if not all(map(math.isfinite, (candidate.entropy, candidate.confidence))):
        return "its answers are not finite"
    before, still = start.class_shares > least_share, candidate.class_shares > least_share
    kept, wanted = int((before & still).sum()), math.ceil(kept_classes * int(before.sum()) - 1e-9)
    if kept < wanted:
        return f"it predicts {kept} of the {int(before.sum())} classes that the start does"
    moved = 0.5 * math.fsum(np.abs(candidate.class_shares - start.class_shares).tolist())
    if moved > most_moved:
        return f"{moved:.0%} of the pixels or more have changed class since the start"
    return None


def _centres(length: int) -> Tensor:
    number = min(SIDE, length)
    return (torch.arange(number) * 2 + 1) * length // (2 * number)


def _total(values: Tensor) -> float:
    """Summed in float64 on the CPU: not every device has it."""
    return float(np.sum(values.cpu().numpy(), dtype=np.float64))


def _mean(sums: list[float], count: int) -> float:
    return math.fsum(sums) / count if count else math.nan
