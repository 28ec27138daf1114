"""Owns the small world of soft_vs_hard.py: images of textured shapes in two domains, a small U-Net, their batches.

A class is a colour with an oriented texture. The target's channels are mixed, scaled and shifted, its images blurred
and noisier; its shapes are drawn as the source's are. Everything follows from the seed.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from calseg_cli.data.loader import Batch
from calseg_cli.networks.network import Head, Network

CLASSES, SIZE, SHAPES = 5, 32, 5
CLASS_NAMES = tuple("abcde")
COLORS = np.array([[0.45, 0.45, 0.45], [0.62, 0.42, 0.36], [0.38, 0.60, 0.40], [0.40, 0.42, 0.64], [0.58, 0.56, 0.34]])
ANGLES = np.pi * np.array([0.0, 0.2, 0.4, 0.6, 0.8])
WAVES = 0.22  # of a texture, in cycles a pixel
CONTRAST = 0.13
COUNTS = {"train": 200, "held-out": 80, "val": 80}


@dataclass(frozen=True)
class Shift:
    """What the target's camera does. `mix` of each channel comes from the next one; 0 leaves channels as they are."""

    mix: float = 0.0
    gain: tuple[float, float, float] = (1.0, 1.0, 1.0)
    bias: tuple[float, float, float] = (0.0, 0.0, 0.0)
    blur: bool = False
    noise: float = 0.06


NO_SHIFT = Shift()
SHIFT = Shift(mix=0.1, gain=(0.9, 0.9, 0.9), bias=(0.05, 0.05, 0.05), blur=True, noise=0.18)


@dataclass(frozen=True)
class Pictures:
    """Images (N,3,32,32) float32 in [0,1] and labels (N,32,32) int64."""

    images: Tensor
    labels: Tensor

    def at(self, places: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        return self.images[places], self.labels[places]


def draw(count: int, shift: Shift, *seed: int) -> Pictures:
    """`count` pictures of a domain."""
    pairs = [_picture(np.random.default_rng((*seed, number)), shift) for number in range(count)]
    images, labels = (np.stack(part) for part in zip(*pairs, strict=True))
    return Pictures(torch.from_numpy(images).float(), torch.from_numpy(labels).long())


def _picture(rng: np.random.Generator, shift: Shift) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    y, x = np.mgrid[:SIZE, :SIZE].astype(float)
    labels = np.full((SIZE, SIZE), rng.integers(CLASSES))
    for _ in range(SHAPES):
        labels[_shape(rng, y, x)] = rng.integers(CLASSES)
    phases = rng.uniform(0, 2 * np.pi, CLASSES)[labels]
    across = x * np.cos(ANGLES[labels]) + y * np.sin(ANGLES[labels])
    texture = CONTRAST * np.cos(2 * np.pi * WAVES * across + phases)
    image = COLORS[labels].transpose(2, 0, 1) * rng.uniform(0.9, 1.1) + texture
    return _photographed(image, shift, rng), labels


def _shape(rng: np.random.Generator, y: NDArray[np.float64], x: NDArray[np.float64]) -> NDArray[np.bool_]:
    """A turned box or ellipse."""
    (down, right), turn = rng.uniform(0, SIZE, 2), rng.uniform(0, np.pi)
    long, short = rng.uniform(4, 10, 2)
    along = np.cos(turn) * (x - right) + np.sin(turn) * (y - down)
    beside = np.cos(turn) * (y - down) - np.sin(turn) * (x - right)
    if rng.random() < 0.5:
        inside: NDArray[np.bool_] = (np.abs(along) < long) & (np.abs(beside) < short)
        return inside
    round_one: NDArray[np.bool_] = (along / long) ** 2 + (beside / short) ** 2 < 1
    return round_one


def _photographed(image: NDArray[np.float64], shift: Shift, rng: np.random.Generator) -> NDArray[np.float64]:
    mixed = (1 - shift.mix) * image + shift.mix * np.roll(image, 1, axis=0)
    seen = mixed * np.array(shift.gain)[:, None, None] + np.array(shift.bias)[:, None, None]
    if shift.blur:
        padded = np.pad(seen, ((0, 0), (1, 1), (1, 1)), mode="edge")
        rows = range(3)
        seen = sum(padded[:, a : a + SIZE, b : b + SIZE] for a in rows for b in rows) / 9
    cut: NDArray[np.float64] = (seen + shift.noise * rng.standard_normal(seen.shape)).clip(0, 1)
    return cut


@dataclass(frozen=True)
class World:
    """Both domains of one seed, and the batches that the loop asks for (`engine.train.Stream`)."""

    seed: int
    shift: Shift = SHIFT
    batch: int = 6

    @cached_property
    def source(self) -> Pictures:
        return draw(COUNTS["train"], NO_SHIFT, self.seed, 0)

    @cached_property
    def held_out(self) -> Pictures:
        """Labelled source images that no student trains on."""
        return draw(COUNTS["held-out"], NO_SHIFT, self.seed, 1)

    @cached_property
    def target(self) -> Pictures:
        return draw(COUNTS["train"], self.shift, self.seed, 2)

    @cached_property
    def val(self) -> Pictures:
        """Target images to measure on."""
        return draw(COUNTS["val"], self.shift, self.seed, 3)

    @cached_property
    def labelled_target(self) -> Pictures:
        """Target images with labels, for the oracle alone."""
        return draw(COUNTS["held-out"], self.shift, self.seed, 4)

    def batches(self, start_step: int, stop_step: int) -> Iterator[Batch]:
        return (self.of_step(step) for step in range(start_step, stop_step))

    def of_step(self, step: int) -> Batch:
        images, labels = self.source.at(self._places(0, step, len(self.source.images)))
        held_out, held_out_labels = self.held_out.at(self._places(1, step, len(self.held_out.images)))
        target, _ = self.target.at(self._places(2, step, len(self.target.images)))
        return Batch(step, images, labels, target, (), (), None, held_out, held_out_labels)

    def target_labels(self, step: int) -> Tensor:
        """What `of_step` does not tell: the classes of its target images."""
        return self.target.at(self._places(2, step, len(self.target.images)))[1]

    def _places(self, domain: int, step: int, count: int) -> NDArray[np.int64]:
        first = step * self.batch
        orders = [
            np.random.default_rng((self.seed, 9, domain, epoch)).permutation(count)
            for epoch in range(first // count, (first + self.batch - 1) // count + 1)
        ]
        start = first % count
        places: NDArray[np.int64] = np.concatenate(orders)[start : start + self.batch]
        return places


# The network


def build_network(seed: int, width: int = 12) -> Network:
    """A U-Net of three scales with group norm, logits at full size."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Network(
            name="toy-unet",
            num_classes=CLASSES,
            feature_dim=width,
            stride=1,
            encoder=_Down(width),
            head=_Up(width),
            mean=(0.5, 0.5, 0.5),
            std=(0.25, 0.25, 0.25),
            divisor=4,
        )


def _block(inputs: int, outputs: int) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
    return nn.Sequential(conv, nn.GroupNorm(4, outputs), nn.ReLU(inplace=True))


class _Down(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([_block(3, width), _block(width, 2 * width), _block(2 * width, 4 * width)])

    def forward(self, entering: Tensor) -> list[Tensor]:
        maps: list[Tensor] = []
        for block in self.blocks:
            maps.append(block(F.avg_pool2d(maps[-1], 2) if maps else entering))
        return maps


class _Up(Head):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([_block(6 * width, 2 * width), _block(3 * width, width)])
        self.classifier = nn.Conv2d(width, CLASSES, 1)

    def fuse(self, maps: Sequence[Tensor]) -> Tensor:
        rising = maps[-1]
        for block, beside in zip(self.blocks, reversed(maps[:-1]), strict=True):
            rising = block(torch.cat([F.interpolate(rising, scale_factor=2.0, mode="nearest"), beside], dim=1))
        return rising
