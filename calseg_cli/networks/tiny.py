"""Owns `tiny`: a small convolutional network with batch norm for the sample data, tests and first looks."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from calseg_cli.networks.network import Head, Network, initialize

_WIDTHS = (32, 48, 64)
_FEATURES = 32


def conv_norm_relu(
    inputs: int, outputs: int, *, kernel: int = 3, stride: int = 1, dilation: int = 1, groups: int = 1
) -> nn.Sequential:
    """A convolution that keeps the size up to its stride (rounded up), batch norm, ReLU."""
    padding = dilation * (kernel // 2)
    conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, dilation, groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


class _Residual(nn.Module):
    def __init__(self, width: int, dilation: int = 1) -> None:
        super().__init__()
        self.body = conv_norm_relu(width, width, dilation=dilation)

    def forward(self, entering: Tensor) -> Tensor:
        changed: Tensor = self.body(entering)
        return entering + changed


class TinyEncoder(nn.Module):
    """Maps of 32, 48 and 64 channels at strides 4, 8 and 16; the last sees about a third of a 96x160 image."""

    def __init__(self) -> None:
        super().__init__()
        fine, middle, coarse = _WIDTHS
        self.stem = conv_norm_relu(3, 16, stride=2)
        self.fine = nn.Sequential(conv_norm_relu(16, fine, stride=2), _Residual(fine))
        self.middle = nn.Sequential(conv_norm_relu(fine, middle, stride=2), _Residual(middle))
        self.coarse = nn.Sequential(conv_norm_relu(middle, coarse, stride=2), _Residual(coarse, dilation=2))

    def forward(self, images: Tensor) -> list[Tensor]:
        """Three maps, finest first."""
        maps = [self.fine(self.stem(images))]
        maps.append(self.middle(maps[-1]))
        maps.append(self.coarse(maps[-1]))
        return maps


class PyramidHead(Head):
    """All maps brought to one width, added from coarse to fine, smoothed once, classified pixel by pixel."""

    def __init__(self, widths: Sequence[int], features: int, num_classes: int) -> None:
        super().__init__()
        self.laterals = nn.ModuleList(
            nn.Sequential(nn.Conv2d(width, features, 1, bias=False), nn.BatchNorm2d(features)) for width in widths
        )
        self.smooth = conv_norm_relu(features, features)
        self.classifier = nn.Conv2d(features, num_classes, 1)

    def fuse(self, maps: Sequence[Tensor]) -> Tensor:
        """Features (B,D,h,w) at the finest map's size."""
        sides = [lateral(entering) for lateral, entering in zip(self.laterals, maps, strict=True)]
        total: Tensor = sides[-1]
        for side in reversed(sides[:-1]):
            total = side + F.interpolate(total, size=side.shape[-2:], mode="bilinear", align_corners=False)
        features: Tensor = self.smooth(F.relu(total))
        return features


def build_tiny(num_classes: int) -> Network:
    """A network of about 130 thousand parameters at stride 4, randomly initialised."""
    network = Network(
        name="tiny",
        num_classes=num_classes,
        feature_dim=_FEATURES,
        stride=4,
        encoder=TinyEncoder(),
        head=PyramidHead(_WIDTHS, _FEATURES, num_classes),
        mean=(0.5, 0.5, 0.5),
        std=(0.25, 0.25, 0.25),
    )
    initialize(network)
    nn.init.normal_(network.head.classifier.weight, std=0.01)  # type: ignore[union-attr, arg-type]
    return network
