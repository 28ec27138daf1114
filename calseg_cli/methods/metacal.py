"""Owns Meta-Cal: pixels of high entropy are given up, the others get a temperature. Ma & Blaschko 2021, 2105.04290.

The entropy of the softmax ranks pixels. Above a threshold a pixel is rejected: its probabilities become uniform, and
its class is lost. The threshold bounds the share of rightly classified pixels that is rejected (miscoverage), or else
the accuracy of those that are kept. The paper splits its data at random between threshold and temperature; here both
are fitted on all of it, one after the other, so the bounds hold on that data, and elsewhere about as well as it fits.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from math import floor
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from calseg_cli.errors import DataError
from calseg_cli.methods.calibrator import Calibrator, read_number
from calseg_cli.methods.scenes import Scenes, class_count, no_pixels
from calseg_cli.methods.temperature import Fit, Sums, find_temperature, sums_at
from calseg_cli.metrics.pixels import first_index

BINS = 2**16
"""Steps of the entropy, from 0 to log C: thresholds are edges between them."""
Counts = NDArray[np.int64]


@torch.no_grad()
def entropy_steps(logits: Tensor) -> Tensor:
    """The entropy of softmax(z) of logits (C,...) in steps of log(C)/65536, int64 in [0,65535]: floor, in float64."""
    z = logits.double()
    shifted = z - z.amax(dim=0)
    exps = shifted.exp()
    total = exps.sum(dim=0)
    entropy = total.log() - (exps * shifted).sum(dim=0) / total
    share = entropy / max(math.log(logits.shape[0]), 1e-300)
    return (share * BINS).long().clamp_(0, BINS - 1)


@dataclass(frozen=True, eq=False)
class EntropyCounts:
    """How many pixels, right and wrong, lie at each step of the entropy: two int64 (65536,). Counts of parts add up."""

    right: Counts
    wrong: Counts

    def steps_for_miscoverage(self, share: float) -> int:
        """The fewest steps kept such that at most `share` of the right pixels lie at or above them."""
        allowed = floor(share * int(self.right.sum()) + 1e-9)
        above = np.cumsum(self.right[::-1])[::-1]  # right pixels at this step or higher
        enough = np.flatnonzero(np.append(above, 0) <= allowed)
        return int(enough[0])

    def steps_for_accuracy(self, target: float) -> int:
        """The most steps that can be kept with an accuracy of at least `target` among them. Raises DataError."""
        right, kept = np.cumsum(self.right), np.cumsum(self.right + self.wrong)
        good = np.flatnonzero((kept > 0) & (right >= target * kept))
        if not len(good):
            raise DataError(
                f"no threshold of the entropy keeps pixels of accuracy {target:g}", "lower calibrate.target_accuracy"
            )
        return int(good[-1]) + 1

    def kept(self, steps: int) -> tuple[int, int]:
        """Right pixels and all pixels below `steps`."""
        right = int(self.right[:steps].sum())
        return right, right + int(self.wrong[:steps].sum())


@torch.no_grad()
def count_entropies(scenes: Scenes) -> EntropyCounts:
    """Right and wrong pixels of all scenes by entropy. Raises DataError as `Scene.blocks`, and without a pixel."""
    right, wrong = np.zeros(BINS, np.int64), np.zeros(BINS, np.int64)
    for scene in scenes():
        for logits, labels in scene.blocks():
            hit = first_index(logits, logits.amax(dim=0)) == labels
            steps = entropy_steps(logits)
            right += torch.bincount(steps[hit], minlength=BINS).cpu().numpy()
            wrong += torch.bincount(steps[~hit], minlength=BINS).cpu().numpy()
    if not right.sum() + wrong.sum():
        raise no_pixels()
    return EntropyCounts(right, wrong)


@dataclass(frozen=True)
class MetaFit:
    """How many of the 65536 steps of entropy are kept, the fit of the temperature, and shares of the pixels."""

    steps: int
    classes: int
    fit: Fit
    kept: float
    accuracy_kept: float
    right_rejected: float


def fit_metacal(scenes: Scenes, *, miscoverage: float, target_accuracy: float | None) -> MetaFit:
    """The threshold by one of the two rules, then the temperature of the pixels below it. Raises DataError."""
    classes, counts = class_count(scenes), count_entropies(scenes)
    steps = (
        counts.steps_for_miscoverage(miscoverage)
        if target_accuracy is None
        else counts.steps_for_accuracy(target_accuracy)
    )

    def total_at(beta: float) -> Sums:
        total = Sums()
        for scene in scenes():
            for logits, labels in scene.blocks():
                kept = entropy_steps(logits) < steps
                total += sums_at(beta, logits[:, kept], labels[kept])
        return total

    fit = find_temperature(total_at)
    right, kept = counts.kept(steps)
    all_right, pixels = counts.kept(BINS)
    return MetaFit(
        steps,
        classes,
        fit,
        kept / pixels,
        right / kept if kept else math.nan,
        1 - right / all_right if all_right else math.nan,
    )


class MetaCal(Calibrator):
    """Cells whose entropy reaches the threshold become uniform (logits 0); all others are divided by T."""

    method: ClassVar[str] = "meta"

    def __init__(self, steps: int, temperature: float, origin: Mapping[str, Any] | None = None) -> None:
        super().__init__(origin)
        self.steps, self.temperature = steps, temperature

    def __call__(self, logits: Tensor, image: Tensor | None = None) -> Tensor:
        """Logits (C,h,w) over T, and 0 for all classes of a rejected cell."""
        rejected = entropy_steps(logits.float()) >= self.steps
        return (logits.float() / self.temperature).masked_fill(rejected, 0.0)

    def parameters(self) -> dict[str, float | str]:
        """The temperature, and the threshold as a share of the largest entropy, log C."""
        return {"T": self.temperature, "entropy threshold / log C": self.steps / BINS}

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """`temperature` (1,) float64 and `steps` (1,) int64."""
        return {
            "temperature": np.array([self.temperature], np.float64),
            "steps": np.array([self.steps], np.int64),
        }

    @classmethod
    def from_artifact(cls, arrays: Mapping[str, NDArray[Any]], facts: Mapping[str, Any]) -> Self:
        """Raises ArtifactError unless T is above 0 and the threshold not below 0."""
        return cls(int(read_number(arrays, "steps", least=0)), read_number(arrays, "temperature", above=0), facts)
