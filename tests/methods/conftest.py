"""A tiny network and batches for the methods."""

import pytest
import torch
from torch import nn

from calseg_cli.data.loader import Batch


class Small(nn.Module):
    """Encoder with batch norm, head without; stride 2."""

    def __init__(self, num_classes: int = 3) -> None:
        super().__init__()
        self.num_classes, self.stride, self.divisor, self.align_corners, self.name = num_classes, 2, 1, False, "small"
        self.encoder = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.head = nn.Conv2d(8, num_classes, 1)

    def features(self, images):
        return self.encoder(images)

    def classify(self, features):
        return self.head(features)

    def forward(self, images):
        return self.classify(self.features(images))


def small() -> Small:
    """Always the same weights."""
    torch.manual_seed(0)
    return Small()


def batch_of(step: int = 0, size: int = 4, *, ignore: float = 0.1) -> Batch:
    """Images that show their labels, of both domains and held out; they follow from the step."""
    generator = torch.Generator().manual_seed(step)
    cells = torch.rand(size, 3, 4, 5, generator=generator)
    images = cells.repeat_interleave(4, dim=2).repeat_interleave(4, dim=3)  # patches that a stride of 2 can see
    labels = images.argmax(dim=1)
    labels[torch.rand(labels.shape, generator=generator) < ignore] = 255
    ids = tuple(f"{step}-{n}" for n in range(size))
    held_out = images.flip(0), labels.flip(0)
    return Batch(step, images, labels, images + 1, ids, ids, labels, *held_out)


@pytest.fixture
def network():
    return small()


@pytest.fixture
def make_batch():
    return batch_of
