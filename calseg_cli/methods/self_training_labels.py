"""Owns what the self-training frame teaches about target pixels: the teacher's labels, and how much each counts."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Generator, Tensor

from calseg_cli.engine.distributed import ALONE, Ranks

Labels = Literal["hard", "soft", "sampled"]
Quality = Literal["batch", "image", "one"]


@dataclass(frozen=True)
class Trust:
    """How much a target pixel counts: DACS's quality weight (Tranheden et al. 2021, arXiv 2007.08702, section 3).

    "batch": the share of the batch's pixels whose largest probability is at least `threshold`, the same for all;
    "image": that share of the pixel's own image; "one": 1. With `threshold_labels` a pixel counts fully where its own
    probability is large enough, and not at all elsewhere. Rows at the top and bottom of the image never count: there
    a car's bonnet or the border of a rectified image has no class.
    """

    quality: Quality = "batch"
    threshold: float = 0.968
    threshold_labels: bool = False
    ignore_top: int = 0
    ignore_bottom: int = 0

    def __call__(self, confidence: Tensor, ranks: Ranks = ALONE) -> Tensor:
        """Weights (B,H,W) in [0,1], float32, from the teacher's largest probability (B,H,W).

        Where several `ranks` share a batch, its share of sure pixels is that of all of them.
        """
        return self.inside(self._shares(confidence >= self.threshold, ranks), 0)

    def inside(self, values: Tensor, outside: int) -> Tensor:
        """Weights or labels (B,H,W) with `outside` in the rows that never count."""
        values = values.clone()
        values[:, : self.ignore_top] = outside
        values[:, max(values.shape[1] - self.ignore_bottom, 0) :] = outside
        return values

    def _shares(self, sure: Tensor, ranks: Ranks) -> Tensor:
        sure = sure.float()
        if self.threshold_labels:
            return sure
        if self.quality == "one":
            return torch.ones_like(sure)
        if self.quality == "image":
            return sure.mean(dim=(1, 2), keepdim=True).expand_as(sure)
        return (ranks.total(sure.mean(dim=(0, 1, 2), keepdim=True)) / ranks.world).expand_as(sure)


@dataclass(frozen=True)
class Taught:
    """Classes (B,H,W), and probabilities (B,C,H,W) where these are what is taught instead."""

    labels: Tensor
    soft: Tensor | None = None


def taught(dense: Tensor, kind: Labels, generator: Generator, first: int = 0) -> Taught:
    """What the enlarged logits (B,C,H,W) teach: their class, their softmax, or a class drawn from it.

    Drawn labels have the soft ones' expected gradient, without the sharpening of the most probable class. The first
    image's place is `first`, where these are a part of a batch.
    """
    if kind == "sampled":
        return Taught(sampled(dense.softmax(dim=1), generator, first))
    return Taught(dense.argmax(dim=1), dense.softmax(dim=1) if kind == "soft" else None)


def sampled(probabilities: Tensor, generator: Generator, first: int = 0) -> Tensor:
    """A class (B,H,W) for each pixel of (B,C,H,W), drawn on the CPU, so that the device changes nothing."""
    batch, classes, height, width = probabilities.shape
    drawn = torch.rand(first + batch, 1, height, width, generator=generator)[first:].to(probabilities)
    return (probabilities.cumsum(dim=1) <= drawn).sum(dim=1).clamp_max(classes - 1)
