"""Owns a pass through a network that stops at its features on the way."""

from torch import Tensor, nn

from calseg_cli.engine.compiling import part_of


class Parted:
    """A network whose pass notes the features on its way, with their graph, where it has a way to stop there."""

    def __init__(self, network: nn.Module) -> None:
        self._network = network
        self.num_classes = int(getattr(network, "num_classes", 0))
        self.stride, self.divisor = int(getattr(network, "stride", 1)), int(getattr(network, "divisor", 1))
        self.align_corners = bool(getattr(network, "align_corners", False))
        self.features: Tensor | None = None

    def __call__(self, images: Tensor) -> Tensor:
        """The logits (B,C,h,w) of images (B,3,H,W)."""
        extract, classify = part_of(self._network, "features"), getattr(self._network, "classify", None)
        if extract is None or classify is None:
            logits: Tensor = self._network(images)
            return logits
        features: Tensor = extract(images)
        self.features = features
        classified: Tensor = classify(features)
        return classified
