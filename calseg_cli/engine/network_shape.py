"""Owns what the engine asks of a network; `calseg_cli.networks` makes them, a stage hands them in."""

from typing import Protocol

from torch import Tensor


class SegmentationNetwork(Protocol):
    """A module from images (B,3,H,W) in [0,1] to logits (B,C,h,w) at its stride."""

    num_classes: int
    stride: int
    divisor: int
    align_corners: bool

    def __call__(self, images: Tensor) -> Tensor:
        """Logits at the network's own stride."""
