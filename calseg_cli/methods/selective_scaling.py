"""Owns selective scaling: only pixels that are judged wrong get a temperature. Wang et al. 2023, CVPR, 2212.12053.

A small network looks at the softmax of a pixel and says whether its class is more likely wrong than right. Where it
says right, nothing changes; where it says wrong, logits are divided by a temperature: a given one, as in the paper,
or the one of least loss on those pixels. The authors' code of it is not public; this follows the paper's description.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from calseg_cli.errors import ArtifactError, DataError
from calseg_cli.methods.calibrator import Array, Calibrator, check_channels, read_array, read_number
from calseg_cli.methods.scenes import Scenes, class_count, no_pixels
from calseg_cli.methods.temperature import Fit, Sums, find_temperature, sums_at
from calseg_cli.metrics.pixels import first_index

HIDDEN = 32
PIXELS = 8192
"""So many pixels of an image, drawn anew each time, make one step."""


@dataclass(frozen=True, eq=False)
class Judge:
    """Two layers from p (C,n) to a score, above 0 "wrong": `hidden` (H,C), `bias` (H,), `out` (H,), `offset` (1,)."""

    hidden: Tensor
    bias: Tensor
    out: Tensor
    offset: Tensor

    def __call__(self, logits: Tensor) -> Tensor:
        """The score (n,) of pixels with logits (C,n)."""
        p = logits.float().softmax(dim=0)
        features = torch.relu(self.hidden @ p + self.bias[:, None])
        return self.out @ features + self.offset

    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """All of it, in the order of the fields."""
        return self.hidden, self.bias, self.out, self.offset


def new_judge(classes: int, seed: int) -> Judge:
    """A judge before training, the same for one seed."""
    generator = torch.Generator().manual_seed(seed)

    def drawn(*shape: int, scale: float) -> Tensor:
        return nn.Parameter(torch.randn(*shape, generator=generator) * scale)

    return Judge(
        drawn(HIDDEN, classes, scale=1.0),
        drawn(HIDDEN, scale=0.1),
        drawn(HIDDEN, scale=HIDDEN**-0.5),
        drawn(1, scale=0.0),
    )


def train_judge(scenes: Scenes, *, epochs: int, lr: float, seed: int) -> Judge:
    """A judge trained by Adam on binary cross-entropy, some pixels of one image a step. Raises DataError."""
    judge = new_judge(class_count(scenes), seed)
    optimizer = torch.optim.Adam(judge.tensors(), lr=lr)
    generator = torch.Generator().manual_seed(seed)
    steps = 0
    for _ in range(epochs):
        for logits, wrong in _batches(scenes, generator):
            optimizer.zero_grad()
            F.binary_cross_entropy_with_logits(judge(logits), wrong).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            steps += 1
    if not steps:
        raise no_pixels()
    trained = Judge(*(tensor.detach() for tensor in judge.tensors()))
    if not all(bool(torch.isfinite(tensor).all()) for tensor in trained.tensors()):
        raise DataError("the training of selective scaling diverged", "lower calibrate.lr")
    return trained


@torch.no_grad()
def _batches(scenes: Scenes, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    """Of each image some pixels: logits (C,m), and 1 where the class is wrong (m,)."""
    for scene in scenes():
        blocks = list(_drawn(scene.blocks(), scene.label.numel(), generator))
        if blocks:
            logits, labels = torch.cat([z for z, _ in blocks], dim=1), torch.cat([y for _, y in blocks])
            yield logits, (first_index(logits, logits.amax(dim=0)) != labels).float()


def _drawn(
    blocks: Iterator[tuple[Tensor, Tensor]], pixels: int, generator: torch.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    share = min(1.0, PIXELS / max(pixels, 1))
    for logits, labels in blocks:
        chosen = torch.rand(labels.numel(), generator=generator) < share
        if chosen.any():
            yield logits[:, chosen], labels[chosen]


def fit_wrong_temperature(judge: Judge, scenes: Scenes) -> Fit:
    """The temperature of least loss of the pixels that are judged wrong."""

    def total_at(beta: float) -> Sums:
        total = Sums()
        for scene in scenes():
            for logits, labels in scene.blocks():
                with torch.no_grad():
                    wrong = judge(logits) > 0
                total += sums_at(beta, logits[:, wrong], labels[wrong])
        return total

    return find_temperature(total_at)


class SelectiveScaling(Calibrator):
    """Cells that the judge calls wrong are divided by T; the others stay as they are. No cell changes its class."""

    method: ClassVar[str] = "selective"
    keeps_argmax: ClassVar[bool] = True

    def __init__(self, judge: Judge, temperature: float, origin: Mapping[str, Any] | None = None) -> None:
        super().__init__(origin)
        self.judge, self.temperature = judge, temperature

    @torch.no_grad()
    def __call__(self, logits: Tensor, image: Tensor | None = None) -> Tensor:
        """Logits (C,h,w), divided by T where they are judged wrong. Raises ArtifactError for other classes."""
        check_channels(logits, self.judge.hidden.shape[1], self.method)
        judge = Judge(*(tensor.to(logits.device) for tensor in self.judge.tensors()))
        wrong = (judge(logits.flatten(1)) > 0).reshape(logits.shape[1:])
        return torch.where(wrong, logits.float() / self.temperature, logits.float())

    def parameters(self) -> dict[str, float | str]:
        """The temperature of pixels that are judged wrong."""
        return {"T where judged wrong": self.temperature}

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """The judge's four arrays in float32, and `temperature` (1,) float64."""
        arrays: dict[str, Array] = {
            name: tensor.cpu().numpy() for name, tensor in zip(_ARRAYS, self.judge.tensors(), strict=True)
        }
        return {**arrays, "temperature": np.array([self.temperature], np.float64)}

    @classmethod
    def from_artifact(cls, arrays: Mapping[str, NDArray[Any]], facts: Mapping[str, Any]) -> Self:
        """Raises ArtifactError unless the arrays fit each other and T is above 0."""
        found = [read_array(arrays, name, dimensions=size) for name, size in _ARRAYS.items()]
        hidden, bias, out, offset = (torch.from_numpy(array).float() for array in found)
        if not (hidden.shape[0] == len(bias) == len(out) and len(offset) == 1):
            raise ArtifactError("its layers do not fit each other", "make it again")
        return cls(Judge(hidden, bias, out, offset), read_number(arrays, "temperature", above=0), facts)


_ARRAYS = {"hidden": 2, "bias": 1, "out": 1, "offset": 1}
