"""Owns local temperature scaling: each pixel's own temperature, from logits and image. Ding et al. 2021, 2008.05105.

T(x) is a tree of convolutions (5x5, dilation 2): four of the logits, joined in pairs by gates, then one of the image.
The paper makes it positive by ReLU(x + 1) + 1e-8 (its branches add another 1), which can reach 1e-8 and then makes
logits 1e8 times as large. Here softplus does it by default, T is 0.01 at least, and the paper's rule is on offer.
"""

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from calseg_cli.errors import ArtifactError, DataError
from calseg_cli.methods.calibrator import Array, Calibrator, check_channels, read_array
from calseg_cli.methods.scenes import Scene, Scenes, class_count, no_pixels

Positive = Literal["softplus", "relu"]
KERNEL, DILATION = 5, 2
LEAST = 0.01
"""The lowest temperature that softplus can give."""
_BRANCHES = 8  # convolutions of the logits: four temperatures, three gates between them, one gate of the image
_REACH = DILATION * (KERNEL - 1) // 2
_AT_ZERO = math.log(math.expm1(1 - LEAST))  # softplus of this is 1 - LEAST, so that T begins at 1


class TemperatureTree(nn.Module):
    """T (h,w) from logits (C,h,w) and an image; 8 (25 C + 1) + 76 parameters, 2484 for 12 classes as in the paper."""

    def __init__(self, classes: int, positive: Positive = "softplus", *, seed: int = 0) -> None:
        super().__init__()
        self.positive = positive
        self.of_logits = nn.Conv2d(classes, _BRANCHES, KERNEL, dilation=DILATION)
        self.of_image = nn.Conv2d(3, 1, KERNEL, dilation=DILATION)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for layer in (self.of_logits, self.of_image):
                # Small, so that T begins near 1 everywhere; not zero, or all branches would learn the same.
                layer.weight.copy_(torch.randn(layer.weight.shape, generator=generator) * 1e-3)
                assert layer.bias is not None
                layer.bias.zero_()

    def forward(self, logits: Tensor, image: Tensor) -> Tensor:
        """Temperatures (h,w) > 0 of the cells of logits (C,h,w); the image (3,H,W) is brought to their grid."""
        seen = self.of_logits(_framed(logits[None]))[0]
        small = F.interpolate(image[None], size=logits.shape[-2:], mode="bilinear", antialias=True)
        gates = seen[4:].sigmoid()
        first = _between(gates[0], seen[0], seen[1])
        second = _between(gates[1], seen[2], seen[3])
        raw = _between(gates[3], _between(gates[2], first, second), self.of_image(_framed(small))[0, 0])
        if self.positive == "relu":
            return torch.relu(raw + 2) + 1e-8  # the 1 of the branches and the 1 of the rule
        return F.softplus(raw + _AT_ZERO) + LEAST


def _framed(values: Tensor) -> Tensor:
    """(1,K,h,w) continued by its border, for the convolution to keep its size; any size will do, unlike reflection."""
    return F.pad(values, (_REACH,) * 4, mode="replicate")


def _between(gate: Tensor, one: Tensor, other: Tensor) -> Tensor:
    return one * gate + other * (1 - gate)


def train_tree(scenes: Scenes, *, positive: Positive, epochs: int, lr: float, seed: int) -> TemperatureTree:
    """A tree trained by Adam on the cross-entropy at the label's full size, an image a step.

    Raises DataError as `Scene.check`, without a labelled pixel, and where the training diverges.
    """
    tree = TemperatureTree(class_count(scenes), positive, seed=seed)
    optimizer = torch.optim.Adam(tree.parameters(), lr=lr)
    steps = sum(_step(tree, optimizer, scene) for _ in range(epochs) for scene in scenes())
    if not steps:
        raise no_pixels()
    if not all(bool(torch.isfinite(tensor).all()) for tensor in tree.parameters()):
        raise _diverged()
    return tree.eval().requires_grad_(False)


def _step(tree: TemperatureTree, optimizer: torch.optim.Optimizer, scene: Scene) -> bool:
    """One step on one image; False where no pixel of it is labelled."""
    if scene.image is None:
        raise ValueError(f"local temperature scaling needs the image of {scene.id}")
    scene.check()
    logits = scene.logits.float()
    scaled = logits / tree(logits, scene.image)
    if not bool(torch.isfinite(scaled).all()):
        raise _diverged()
    blocks = list(scene.blocks(scaled))
    if blocks:
        losses = [F.cross_entropy(z.T, labels, reduction="sum") for z, labels in blocks]
        loss = torch.stack(losses).sum() / sum(labels.numel() for _, labels in blocks)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return bool(blocks)


def _diverged() -> DataError:
    return DataError("the training of local temperature scaling diverged", "lower calibrate.lr")


class LocalTemperature(Calibrator):
    """Each cell's logits divided by a temperature of its own. No cell changes its class; pixels between cells may."""

    method: ClassVar[str] = "local"
    keeps_argmax: ClassVar[bool] = True
    needs_image: ClassVar[bool] = True

    def __init__(self, tree: TemperatureTree, origin: Mapping[str, Any] | None = None) -> None:
        super().__init__(origin)
        self.tree = tree

    @torch.no_grad()
    def __call__(self, logits: Tensor, image: Tensor | None = None) -> Tensor:
        """Logits (C,h,w) over T(x) (h,w). Raises ArtifactError for other classes, ValueError without the image."""
        check_channels(logits, self.tree.of_logits.in_channels, self.method)
        if image is None:
            raise ValueError("local temperature scaling looks at the image")
        tree = self.tree.to(logits.device)
        temperature: Tensor = tree(logits.float(), image.to(logits.device))
        return logits.float() / temperature

    def parameters(self) -> dict[str, float | str]:
        """How T is kept positive, and how many numbers were fitted."""
        return {"positive": self.tree.positive, "weights": str(sum(p.numel() for p in self.tree.parameters()))}

    def facts(self) -> dict[str, Any]:
        """The method, its rule, its origin."""
        return {**super().facts(), "positive": self.tree.positive}

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """The weights of the two convolutions, float32."""
        arrays: dict[str, Array] = {
            name.replace(".", "_"): tensor.detach().cpu().numpy() for name, tensor in self.tree.state_dict().items()
        }
        return arrays

    @classmethod
    def from_artifact(cls, arrays: Mapping[str, NDArray[Any]], facts: Mapping[str, Any]) -> Self:
        """Raises ArtifactError unless the arrays are the weights of a tree with a rule that is known."""
        positive = facts.get("positive")
        if positive not in ("softplus", "relu"):
            raise ArtifactError(f"its rule {positive!r} is unknown", "make it again")
        found = {
            name: torch.from_numpy(read_array(arrays, name.replace(".", "_"), dimensions=size)).float()
            for name, size in _WEIGHTS.items()
        }
        tree = TemperatureTree(found["of_logits.weight"].shape[1], positive)
        try:
            tree.load_state_dict(found)
        except RuntimeError as error:
            raise ArtifactError("its arrays are not the weights of a temperature tree", "make it again") from error
        return cls(tree.eval().requires_grad_(False), facts)


_WEIGHTS = {"of_logits.weight": 4, "of_logits.bias": 1, "of_image.weight": 4, "of_image.bias": 1}
