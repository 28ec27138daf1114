"""Owns PseudoCal for pixels: a temperature from mixes of two unlabelled images. Hu et al. 2024, arXiv 2307.07489.

Two images of the target are mixed, share * a + (1 - share) * b. Where the network sees different classes in a and in b,
the pixel's label is taken to be the class seen in the larger part: a guess that is as hard, the paper argues, as the
target's own pixels are. Temperature scaling on those pixels needs no label of anybody's.
"""

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from calseg_cli.data.catalog import IGNORE
from calseg_cli.errors import ConfigError
from calseg_cli.methods.temperature import Temperature

MIX = 0.65
"""The paper's share of the first image."""


class PseudoCal(Temperature):
    """Logits divided by a temperature that mixes of images gave."""

    method: ClassVar[str] = "pseudocal"


def mixing_pairs(sizes: Sequence[tuple[int, int]], seed: int) -> list[tuple[int, int]]:
    """Pairs (i,j), i != j, of images of one size: each is once the larger part and once the smaller.

    Images of each of the `sizes` (height, width) are shuffled and paired in a ring; a size that only one image has is
    left out. Raises ConfigError where no two images have one size.
    """
    generator = np.random.default_rng(seed)
    pairs: list[tuple[int, int]] = []
    for size in dict.fromkeys(sizes):
        ring = generator.permutation([place for place, other in enumerate(sizes) if other == size]).tolist()
        if len(ring) > 1:
            pairs += zip(ring, ring[1:] + ring[:1], strict=True)
    if not pairs:
        raise ConfigError(
            "pseudocal mixes two images of one size, and no two of these have one",
            "set target.size, or name a split with more images",
        )
    return sorted(pairs)


def mixed(first: Tensor, second: Tensor, share: float = MIX) -> Tensor:
    """Two images (...,3,H,W) laid over each other: share * first + (1 - share) * second."""
    return first * share + second * (1 - share)


def mixed_label(first: Tensor, second: Tensor) -> Tensor:
    """Labels (H,W) uint8: the class that `first` (H,W) shows where `second` shows another, else 255.

    It is the class of the larger part, argmax of share * onehot(first) + (1 - share) * onehot(second), share > 1/2;
    where both are one class the mix teaches nothing about mistakes, and the paper leaves it out.
    """
    return torch.where(first != second, first, IGNORE).to(torch.uint8)
