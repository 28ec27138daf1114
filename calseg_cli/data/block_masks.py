"""Owns masks of square blocks that hide a part of an image from a network."""

import torch
from torch import Tensor

from calseg_cli.errors import ConfigError


def block_masks(
    shape: tuple[int, int, int], block: int, ratio: float, generator: torch.Generator, first: int = 0
) -> Tensor:
    """Masks (B,1,H,W) bool for images of `shape` (B,H,W), True where a pixel is kept. Hoyer et al. 2023 (MIC).

    An image falls into squares of `block` pixels, each removed with probability `ratio`. The squares start at the
    top left and those at the right and lower edge are cut off where the size is no multiple of `block`; MIC's code
    stretches a rounded number of blocks over the image. `generator` and the result are on the CPU, and each image
    takes its draws after those before it, of which a part of a batch has `first`. Raises ConfigError for a block below
    1 or a ratio outside [0, 1].
    """
    if block < 1 or not 0 <= ratio <= 1:
        raise ConfigError(
            f"a mask of blocks of {block} pixels that removes {ratio} of them is impossible",
            "write a block of 1 or more and a ratio from 0 to 1",
        )
    number, height, width = shape
    rows, columns = -(-height // block), -(-width // block)
    draws = [torch.rand(rows, columns, generator=generator, dtype=torch.float64) for _ in range(first + number)]
    kept = torch.stack(draws[first:])[:, None] >= ratio
    return kept.repeat_interleave(block, 2).repeat_interleave(block, 3)[:, :, :height, :width].contiguous()
