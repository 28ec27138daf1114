"""Owns temperature scaling: one number that all logits are divided by. Guo et al. 2017, arXiv 1706.04599.

The fit is a bracketed Newton search for beta = 1/T. The negative log-likelihood is convex in beta, and what the search
asks of a pass over the data are four sums that add over pixels, images and machines; so memory does not grow.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from calseg_cli.errors import DataError
from calseg_cli.methods.calibrator import Calibrator, read_number
from calseg_cli.methods.scenes import Scenes, no_pixels

LOWEST, HIGHEST = 0.01, 100.0
"""The bounds of beta, and of T: a fit that runs into one of them has found nothing."""
MOST_PASSES = 10
GRADIENT = 1e-9
"""The search ends where the mean slope is below this, and Newton's next step below 1e-8 of beta."""
_STEP = 1e-8
_PATIENCE = 4  # passes on one side of the optimum before the bound on the other is looked at
_CERTAIN = 1e-6  # nats a pixel: so small a loss means that every pixel is right

Status = Literal["converged", "at the bound", "separable", "flat", "not converged", "no pixels"]
_WHY: dict[str, str] = {
    "at the bound": f"the best one is not within {LOWEST:g} to {HIGHEST:g}; either nearly every pixel is right, or "
    "logits and labels do not fit each other",
    "separable": "every labelled pixel is classified rightly, so no confidence is too high",
    "flat": "the logits of every pixel are equal, so no temperature changes anything",
    "not converged": f"{MOST_PASSES} passes did not find it",
}


@dataclass(frozen=True)
class Sums:
    """The loss at one beta and its first two derivatives, float64 sums over `pixels`. Sums of parts add up.

    `loss` L = sum(logsumexp(beta z) - beta z_y) in nats, `slope` g = sum(E[z] - z_y), `curvature` h = sum(Var[z]) >= 0,
    with expectations under softmax(beta z).
    """

    loss: float = 0.0
    slope: float = 0.0
    curvature: float = 0.0
    pixels: int = 0

    def __add__(self, other: "Sums") -> "Sums":
        return Sums(
            self.loss + other.loss,
            self.slope + other.slope,
            self.curvature + other.curvature,
            self.pixels + other.pixels,
        )


@dataclass(frozen=True)
class Fit:
    """What a search ended with: `temperature` is None unless `status` is "converged"; `nll` in nats a pixel."""

    temperature: float | None
    status: Status
    passes: int
    pixels: int
    nll: float

    def found(self, what: str = "temperature") -> float:
        """The temperature. Raises DataError where there is none, saying why."""
        if self.temperature is not None:
            return self.temperature
        if self.status == "no pixels":
            raise no_pixels()
        raise DataError(
            f"no {what} can be fitted ({self.status}): {_WHY[self.status]}",
            "fit on more images, or on a split that the network was not trained on",
        )


@torch.no_grad()
def sums_at(beta: float, logits: Tensor, labels: Tensor) -> Sums:
    """The sums of pixels with logits (C,n) and labels (n,) in [0,C), worked out in float64.

    The largest logit is taken off first, so nothing overflows. Guo et al. 2017, Eq. 9, with beta for 1/T.
    """
    z = logits.double()
    z = z - z.amax(dim=0)
    truth = z.gather(0, labels[None])[0]
    exps = (z * beta).exp_()
    total = exps.sum(dim=0)
    p = exps.div_(total)
    mean = (p * z).sum(dim=0)
    variance = (p * (z - mean).square_()).sum(dim=0)
    return Sums(
        float((total.log() - beta * truth).sum()),
        float((mean - truth).sum()),
        float(variance.sum()),
        labels.numel(),
    )


def find_temperature(total_at: Callable[[float], Sums], *, most: int = MOST_PASSES) -> Fit:
    """Minimise the loss that `total_at` sums over all pixels for a given beta, in at most `most` calls.

    Newton's step is taken where it stays between the two betas that enclose the optimum, else their geometric mean.
    Where that leads towards a bound for long, the bound itself is looked at: an optimum beyond it is refused, not
    approached for ever.
    """
    search = _Search()
    passes, sums, status = 0, Sums(), None
    while status is None and passes < most:
        sums, passes = total_at(search.beta), passes + 1
        status = search.advance(sums)
    mean = sums.loss / sums.pixels if sums.pixels else math.nan
    found = 1 / search.beta if status == "converged" else None
    return Fit(found, status or "not converged", passes, sums.pixels, mean)


class _Search:
    """Where the search stands: the beta to look at next, between `low` and `high`."""

    def __init__(self) -> None:
        self.beta, self.low, self.high = 1.0, LOWEST, HIGHEST
        self._looked_at: set[float] = set()
        self._outside = 0
        self._later: float | None = None

    def advance(self, sums: Sums) -> Status | None:
        """Take the sums at `beta` in: how the search ended there, or None and the next beta."""
        ended = self._ended(sums)
        if ended is None:
            self._looked_at.add(self.beta)
            if sums.slope > 0:
                self.high = self.beta
            else:
                self.low = self.beta
            later, self._later = self._later, None
            self.beta = later or self._next(sums)
        return ended

    def _ended(self, sums: Sums) -> Status | None:
        if not sums.pixels:
            return "no pixels"
        if sums.slope == 0 and sums.curvature == 0:  # all probabilities are 0 or 1, or nothing depends on beta
            return self._certain(sums, "flat")
        small = abs(sums.slope) <= _STEP * self.beta * sums.curvature
        if small and abs(sums.slope) <= GRADIENT * sums.pixels:
            return "converged"
        if self.beta == HIGHEST and sums.slope < 0:
            return self._certain(sums, "at the bound")
        return "at the bound" if self.beta == LOWEST and sums.slope > 0 else None

    def _certain(self, sums: Sums, otherwise: Status) -> Status:
        return "separable" if sums.loss < _CERTAIN * sums.pixels else otherwise

    def _next(self, sums: Sums) -> float:
        step = self._newton(sums)
        inside = self.low < step < self.high
        self._outside = 0 if inside else self._outside + 1
        end = self.low if sums.slope > 0 else self.high
        if end not in self._looked_at and (self._outside > 1 or len(self._looked_at) >= _PATIENCE):
            self._later = step if inside else None
            return end
        return step if inside else math.sqrt(self.low * self.high)

    def _newton(self, sums: Sums) -> float:
        """Newton's step in beta, or NaN; from below the optimum in log(beta), where the loss is less bent."""
        if sums.curvature <= 0:
            return math.nan
        share = sums.slope / (self.beta * sums.curvature)
        return self.beta * (math.exp(min(-share / (1 + share), 3.0)) if -0.7 < share < 0 else 1 - share)


def fit_temperature(scenes: Scenes) -> Fit:
    """The temperature of least negative log-likelihood of all labelled pixels; one pass over the scenes a step.

    Raises DataError, naming the image, for logits that are not finite or labels that are no class.
    """
    return find_temperature(lambda beta: total_at(beta, scenes))


def total_at(beta: float, scenes: Scenes) -> Sums:
    """The sums over all labelled pixels of all scenes."""
    total = Sums()
    for scene in scenes():
        for logits, labels in scene.blocks():
            total += sums_at(beta, logits, labels)
    return total


class Temperature(Calibrator):
    """Logits divided by T > 0: confidence changes, the order of the classes does not."""

    method: ClassVar[str] = "temperature"
    keeps_argmax: ClassVar[bool] = True

    def __init__(self, temperature: float, origin: Mapping[str, Any] | None = None) -> None:
        super().__init__(origin)
        self.temperature = temperature

    def __call__(self, logits: Tensor, image: Tensor | None = None) -> Tensor:
        """Logits (C,h,w) over T."""
        return logits.float() / self.temperature

    def parameters(self) -> dict[str, float | str]:
        """T alone."""
        return {"T": self.temperature}

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """`temperature` (1,) float64."""
        return {"temperature": np.array([self.temperature], np.float64)}

    @classmethod
    def from_artifact(cls, arrays: Mapping[str, NDArray[Any]], facts: Mapping[str, Any]) -> Self:
        """Raises ArtifactError unless T is a number above 0."""
        return cls(read_number(arrays, "temperature", above=0), facts)
