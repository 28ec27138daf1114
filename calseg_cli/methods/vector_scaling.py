"""Owns vector scaling: each class's logit has a factor and an offset of its own. Guo et al. 2017, arXiv 1706.04599.

The fit is Newton's method with backtracking on all pixels at once. Loss, gradient and Hessian of the 2C parameters are
sums over pixels, so a step is one pass and memory does not grow. A penalty keeps what the labels say little about near
"no change": without it a class that no pixel has gets an offset of minus infinity.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from calseg_cli.errors import ArtifactError, DataError
from calseg_cli.methods.calibrator import Calibrator, check_channels, read_array
from calseg_cli.methods.scenes import Scenes, class_count, no_pixels

MOST_PASSES = 40
_DECREMENT = 1e-12  # nats a pixel that Newton's next step could still gain
_ARMIJO = 1e-4
Float64 = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class VectorSums:
    """The loss at one pair of (w,b), its gradient (2C,) and its Hessian (2C,2C), w first; float64 sums that add."""

    loss: float
    gradient: Float64
    hessian: Float64
    pixels: int

    def __add__(self, other: "VectorSums") -> "VectorSums":
        return VectorSums(
            self.loss + other.loss,
            self.gradient + other.gradient,
            self.hessian + other.hessian,
            self.pixels + other.pixels,
        )


@dataclass(frozen=True, eq=False)
class VectorFit:
    """`weights` and `offsets` (C,), the passes it took, the pixels, and the mean loss in nats without the penalty."""

    weights: Float64
    offsets: Float64
    passes: int
    pixels: int
    nll: float


@torch.no_grad()
def vector_sums(weights: Float64, offsets: Float64, logits: Tensor, labels: Tensor) -> VectorSums:
    """The sums of pixels with logits z (C,n) and labels (n,), of the cross-entropy of softmax(w z + b), in float64."""
    z = logits.double()
    device = z.device
    scaled = z * torch.from_numpy(weights).to(device)[:, None] + torch.from_numpy(offsets).to(device)[:, None]
    scaled -= scaled.amax(dim=0)
    truth = scaled.gather(0, labels[None])[0]
    exps = scaled.exp()
    total = exps.sum(dim=0)
    p = exps.div_(total)
    both = torch.cat([p * z, p])  # (2C,n): each parameter's share of the mean
    first, second = both[: len(z)].sum(dim=1), p.sum(dim=1)
    upper = torch.cat([torch.diag((both[: len(z)] * z).sum(dim=1)), torch.diag(first)], dim=1)
    lower = torch.cat([torch.diag(first), torch.diag(second)], dim=1)
    hessian = torch.cat([upper, lower]) - both @ both.T
    seen = torch.zeros_like(second).index_add_(0, labels, z.new_ones(labels.numel()))
    seen_z = torch.zeros_like(first).index_add_(0, labels, z.gather(0, labels[None])[0])
    gradient = torch.cat([first - seen_z, second - seen])
    return VectorSums(float((total.log() - truth).sum()), gradient.cpu().numpy(), hessian.cpu().numpy(), labels.numel())


def find_vector(total_at: Callable[[Float64, Float64], VectorSums], classes: int, penalty: float) -> VectorFit:
    """Minimise the mean loss + penalty * (|w - 1|^2 + |b|^2) / 2, from w = 1, b = 0. Raises DataError.

    With a penalty above 0 there is exactly one minimum. A step that does not lower the objective enough is halved.
    """
    start = np.concatenate([np.ones(classes), np.zeros(classes)])
    at, step, decrement = start, np.zeros_like(start), 0.0
    best: tuple[float, VectorSums] | None = None
    for done in range(1, MOST_PASSES + 1):
        trial = at + step
        sums = total_at(trial[:classes], trial[classes:])
        if not sums.pixels:
            raise no_pixels()
        value = sums.loss / sums.pixels + penalty * float(np.sum((trial - start) ** 2)) / 2
        if best is not None and not value <= best[0] - _ARMIJO * decrement + 1e-13:
            step, decrement = step / 2, decrement / 2
            continue
        at, best = trial, (value, sums)
        gradient = sums.gradient / sums.pixels + penalty * (at - start)
        step = -np.linalg.solve(sums.hessian / sums.pixels + penalty * np.eye(len(at)), gradient)
        decrement = float(-gradient @ step)
        if decrement <= _DECREMENT:
            return VectorFit(at[:classes], at[classes:], done, sums.pixels, sums.loss / sums.pixels)
    raise DataError(
        f"vector scaling did not converge in {MOST_PASSES} passes",
        "raise calibrate.penalty, or use --method temperature",
    )


def fit_vector(scenes: Scenes, penalty: float) -> VectorFit:
    """Factors and offsets of least penalised loss over all labelled pixels. Raises DataError as `Scene.blocks`."""

    def total_at(weights: Float64, offsets: Float64) -> VectorSums:
        size = 2 * len(weights)
        total = VectorSums(0.0, np.zeros(size), np.zeros((size, size)), 0)
        for scene in scenes():
            for logits, labels in scene.blocks():
                total += vector_sums(weights, offsets, logits, labels)
        return total

    return find_vector(total_at, class_count(scenes), penalty)


class VectorScaling(Calibrator):
    """Logits times w (C,) plus b (C,), class by class. The predicted class may change."""

    method: ClassVar[str] = "vector"

    def __init__(self, weights: Float64, offsets: Float64, origin: Mapping[str, Any] | None = None) -> None:
        super().__init__(origin)
        self.weights, self.offsets = weights, offsets

    def __call__(self, logits: Tensor, image: Tensor | None = None) -> Tensor:
        """Logits (C,h,w) scaled and shifted. Raises ArtifactError for another number of classes."""
        check_channels(logits, len(self.weights), self.method)
        w, b = (torch.from_numpy(array).float().to(logits.device) for array in (self.weights, self.offsets))
        return logits.float() * w[:, None, None] + b[:, None, None]

    def parameters(self) -> dict[str, float | str]:
        """The ranges of w and b."""
        return {
            "w": f"{self.weights.min():.4g} to {self.weights.max():.4g}",
            "b": f"{self.offsets.min():.4g} to {self.offsets.max():.4g}",
        }

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """`weights` and `offsets` (C,) float64."""
        return {"weights": self.weights, "offsets": self.offsets}

    @classmethod
    def from_artifact(cls, arrays: Mapping[str, NDArray[Any]], facts: Mapping[str, Any]) -> Self:
        """Raises ArtifactError unless both have one finite number a class."""
        weights, offsets = (read_array(arrays, name, dimensions=1) for name in ("weights", "offsets"))
        if weights.shape != offsets.shape:
            raise ArtifactError(f"it has {len(weights)} factors and {len(offsets)} offsets", "make it again")
        return cls(weights, offsets, facts)
