"""Owns `deeplabv2`: DeepLabV2 on ResNet-50 or -101 as the domain adaptation literature uses it.

DeepLab (Chen et al. 2018): the last two stages keep stride 8 by dilation 2 and 4, and parallel 3x3 convolutions of
several rates are summed into logits. Names, the ceiling max-pool and byte-range BGR input are those of the public
AdaptSegNet and ADVENT checkpoints, so that these load as they are.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from calseg_cli.errors import ConfigError
from calseg_cli.networks.network import IMAGENET_MEAN, IMAGENET_STD, Network

_DEPTHS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
# The mean of the Caffe models, in RGB and [0,1] here; they scale by nothing but bytes.
_CAFFE_MEAN = (122.67891434 / 255, 116.66876762 / 255, 104.00698793 / 255)
_CAFFE_STD = (1 / 255,) * 3
_CLASSIFIER = ("layer6.", "layer5.")  # where both occur, layer5 is an auxiliary on an earlier stage


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 with a shortcut. The stride is the first 1x1's (Caffe) or the 3x3's (torchvision)."""

    def __init__(
        self, inputs: int, width: int, *, stride: int, dilation: int, is_first: bool, stride_in_3x3: bool
    ) -> None:
        super().__init__()
        outer, inner = (1, stride) if stride_in_3x3 else (stride, 1)
        self.conv1 = nn.Conv2d(inputs, width, 1, outer, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, inner, padding=dilation, dilation=dilation, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * width)
        self.relu = nn.ReLU(inplace=True)
        self.downsample: nn.Module | None = None
        if is_first:
            shortcut = nn.Conv2d(inputs, 4 * width, 1, stride, bias=False)
            self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(4 * width))

    def forward(self, entering: Tensor) -> Tensor:
        """(B,4*width,...) at the block's stride."""
        shortcut = entering if self.downsample is None else self.downsample(entering)
        changed = self.relu(self.bn1(self.conv1(entering)))
        changed = self.relu(self.bn2(self.conv2(changed)))
        left: Tensor = self.relu(self.bn3(self.conv3(changed)) + shortcut)
        return left


class DilatedResNet(nn.Module):
    """ResNet whose last two stages stay at stride 8: one map of 2048 channels."""

    def __init__(self, depth: int, *, stride_in_3x3: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, padding=1, ceil_mode=True)
        stages, inputs = [], 64
        for blocks, width, stride, dilation in zip(
            _DEPTHS[depth], (64, 128, 256, 512), (1, 2, 1, 1), (1, 1, 2, 4), strict=True
        ):
            layers = []
            for number in range(blocks):
                step = stride if number == 0 else 1
                layers.append(
                    Bottleneck(
                        inputs,
                        width,
                        stride=step,
                        dilation=dilation,
                        is_first=number == 0,
                        stride_in_3x3=stride_in_3x3,
                    )
                )
                inputs = 4 * width
            stages.append(nn.Sequential(*layers))
        self.layer1, self.layer2, self.layer3, self.layer4 = stages

    def forward(self, images: Tensor) -> Tensor:
        """(B,2048,h,w)."""
        entering = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        left: Tensor = self.layer4(self.layer3(self.layer2(self.layer1(entering))))
        return left


class PyramidClassifier(nn.Module):
    """Atrous spatial pyramid pooling as DeepLabV2 has it: one 3x3 convolution a rate, their logits summed."""

    def __init__(self, inputs: int, num_classes: int, rates: Sequence[int]) -> None:
        super().__init__()
        self.conv2d_list = nn.ModuleList(
            nn.Conv2d(inputs, num_classes, 3, padding=rate, dilation=rate) for rate in rates
        )

    def forward(self, features: Tensor) -> Tensor:
        """Logits (B,C,h,w)."""
        return torch.stack([conv(features) for conv in self.conv2d_list]).sum(dim=0)


class DeepLabV2(Network):
    """Logits at stride 8 with aligned corners: an edge of 8k+1 pixels gives k+1 rows (513 -> 65), as does 8k (512)."""

    encoder: DilatedResNet
    head: PyramidClassifier

    def __init__(
        self, num_classes: int, *, depth: int, rates: Sequence[int], preprocessing: str, stride_in_3x3: bool
    ) -> None:
        is_caffe = preprocessing == "caffe"
        super().__init__(
            name="deeplabv2",
            num_classes=num_classes,
            feature_dim=2048,
            stride=8,
            encoder=DilatedResNet(depth, stride_in_3x3=stride_in_3x3),
            head=PyramidClassifier(2048, num_classes, rates),
            mean=_CAFFE_MEAN if is_caffe else IMAGENET_MEAN,
            std=_CAFFE_STD if is_caffe else IMAGENET_STD,
            align_corners=True,
        )
        self.preprocessing = preprocessing
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
        for conv in self.head.conv2d_list.children():
            nn.init.normal_(conv.weight, std=0.01)  # type: ignore[arg-type]
            nn.init.zeros_(conv.bias)  # type: ignore[arg-type]

    def normalize(self, images: Tensor) -> Tensor:
        """BGR in bytes minus the mean ("caffe"), or RGB in units of ImageNet's spread ("torchvision")."""
        normalized = super().normalize(images)
        return normalized.flip(1) if self.preprocessing == "caffe" else normalized

    def features(self, images: Tensor) -> Tensor:
        """The last stage's map (B,2048,h,w)."""
        features: Tensor = self.encoder(self.normalize(images))
        return features

    def classify(self, features: Tensor) -> Tensor:
        """The pyramid's logits (B,C,h,w)."""
        logits: Tensor = self.head(features)
        return logits

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Half, rounded up; half by the ceiling max-pool, which always reaches over the edge; half, rounded up."""
        rows, columns = (((-(-size // 2)) // 2 + 2) // 2 for size in (height, width))
        return rows, columns

    def remarks(self, state: Mapping[str, Tensor]) -> list[str]:
        """A classifier for ImageNet's labels tells torchvision's weights from the literature's."""
        if self.preprocessing == "caffe" and any(name.endswith("fc.weight") for name in state):
            return [
                "these look like torchvision's weights: set network.options to "
                "{preprocessing: torchvision, stride_in_3x3: true}, or the first layer sees other numbers than before"
            ]
        return []

    def translate(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Published names: the classifier is layer6, or layer5 where there is no layer6; the rest is the encoder's."""
        prefix = next((layer for layer in _CLASSIFIER if any(name.startswith(layer) for name in state)), None)
        named = {
            f"head.{name.removeprefix(prefix)}" if prefix and name.startswith(prefix) else name: tensor
            for name, tensor in state.items()
        }
        return super().translate(named)


def build_deeplab(
    num_classes: int,
    *,
    depth: int = 101,
    rates: Sequence[int] = (6, 12, 18, 24),
    preprocessing: str = "caffe",
    stride_in_3x3: bool = False,
) -> Network:
    """DeepLabV2, randomly initialised.

    `rates` [6, 12] for AdaptSegNet's own multi-level checkpoints, whose code summed two of the four branches.
    `preprocessing` "caffe" (the domain adaptation checkpoints) or "torchvision"; `stride_in_3x3` as in torchvision's
    ResNet. Raises ConfigError for a depth, rate or preprocessing that does not exist.
    """
    if depth not in _DEPTHS:
        raise ConfigError(f"deeplabv2 has no depth {depth!r}", "network.options.depth: 50 or 101")
    if preprocessing not in ("caffe", "torchvision"):
        raise ConfigError(
            f"deeplabv2 has no preprocessing {preprocessing!r}",
            "network.options.preprocessing: caffe or torchvision",
        )
    if not isinstance(rates, Sequence) or not rates or not all(isinstance(r, int) and r > 0 for r in rates):
        raise ConfigError(f"deeplabv2 cannot use the rates {rates!r}", "network.options.rates: e.g. [6, 12, 18, 24]")
    return DeepLabV2(num_classes, depth=depth, rates=rates, preprocessing=preprocessing, stride_in_3x3=stride_in_3x3)
