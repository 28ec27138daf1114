"""Owns the contract that every segmentation network keeps: images in [0,1] become features, features become logits."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from calseg_cli.networks.weights import LoadReport

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
Channels = tuple[float, float, float]


class Head(nn.Module):
    """What stands between an encoder's maps and the logits: `fuse` makes one map of them, `classifier` the logits."""

    classifier: nn.Module

    def fuse(self, maps: Sequence[Tensor]) -> Tensor:
        """Features (B,D,h,w) at the network's stride from the encoder's maps, finest first."""
        raise NotImplementedError

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Logits (B,C,h,w) from the encoder's maps."""
        logits: Tensor = self.classifier(self.fuse(maps))
        return logits


class Network(nn.Module):
    """A network from images (B,3,H,W), float32 RGB in [0,1], to logits (B,C,h,w) at its own stride.

    It normalises by itself; the caller pads to a multiple of `divisor` and enlarges logits with `align_corners`.
    `encoder` and `head` share out all parameters: training makes its two parameter groups of them. `load_report` says
    what was read into it by `build_network`, and is None after a start from random weights.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        *,
        name: str,
        num_classes: int,
        feature_dim: int,
        stride: int,
        encoder: nn.Module,
        head: nn.Module,
        mean: Channels = IMAGENET_MEAN,
        std: Channels = IMAGENET_STD,
        align_corners: bool = False,
        divisor: int = 1,
    ) -> None:
        super().__init__()
        self.name, self.num_classes, self.feature_dim = name, num_classes, feature_dim
        self.stride, self.align_corners, self.divisor = stride, align_corners, divisor
        self.encoder, self.head = encoder, head
        self.load_report: LoadReport | None = None
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)

    def normalize(self, images: Tensor) -> Tensor:
        """Images (B,3,H,W) as the encoder wants them."""
        return (images - self.mean) / self.std

    def features(self, images: Tensor) -> Tensor:
        """Features (B,`feature_dim`,h,w): all that `classify` needs."""
        features: Tensor = self.head.fuse(self.encoder(self.normalize(images)))  # type: ignore[operator]
        return features

    def classify(self, features: Tensor) -> Tensor:
        """Logits (B,C,h,w) from features (B,`feature_dim`,h,w)."""
        logits: Tensor = self.head.classifier(features)  # type: ignore[operator]
        return logits

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B,C,h,w) at the network's stride."""
        return self.classify(self.features(images))

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """The size of the logits for images of that size: every network here rounds up unless it says otherwise."""
        return -(-height // self.stride), -(-width // self.stride)

    def is_head(self, name: str) -> bool:
        """Whether a name of the state dict belongs to the head: what may be left at random when weights are read."""
        return name.startswith("head.")

    def remarks(self, state: Mapping[str, Tensor]) -> list[str]:
        """What a user should hear when weights of these names are read: a licence, a likely mistake."""
        return []

    def translate(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A published state dict under this network's own names; what it does not know keeps its name.

        Names that lack the leading "encoder." or "head." are found; a family with other names overrides this.
        """
        own = set(self.state_dict())
        return {_own_name(name, own): tensor for name, tensor in state.items()}


def _own_name(name: str, own: set[str]) -> str:
    candidates = (name, f"encoder.{name}", f"head.{name}", name.removeprefix("encoder."))
    return next((candidate for candidate in candidates if candidate in own), name)


def initialize(module: nn.Module) -> None:
    """He initialisation of all convolutions from torch's generator; norms start as the identity."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        elif isinstance(layer, nn.BatchNorm2d):
            nn.init.ones_(layer.weight)
            nn.init.zeros_(layer.bias)
