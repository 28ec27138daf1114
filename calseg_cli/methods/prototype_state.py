"""Owns the sums that prototypes are made of: whole numbers, so that parts add up to the whole bit for bit.

Bohdal et al. 2023 (arXiv 2307.10842): of the pixels predicted as one class, the mean of their soft labels, weighted by
confidence. Kept are the two sums and not the mean, because sums of parts can be added.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from calseg_cli.errors import ArtifactError, ConfigError, DataError
from calseg_cli.metrics.pixels import finite_pixels, first_index, probabilities

STEPS = 2**44
"""One, in the steps that are summed: a weighted probability is rounded by 3e-14 at most."""

_LIMB = 32
_MASK = 2**_LIMB - 1
_BLOCK = 2**15  # pixels; 2**18 of them are the most whose sum of steps fits int64
_SLACK = 1e-4  # a row of sums adds up to its weight but for float32's rounding

Sums = NDArray[np.float64]
Counts = NDArray[np.int64]


@dataclass(frozen=True)
class PixelRule:
    """Which pixels count, and how much.

    A pixel's soft label is softmax(logits / temperature), its confidence the largest probability in it, its weight
    confidence ** weight_power. It counts where its confidence reaches `min_confidence` and, with `thresholds` (C,),
    that of its predicted class; a class whose threshold is NaN has no pixel that counts.
    """

    weight_power: float = 1.0
    temperature: float = 1.0
    min_confidence: float = 0.0
    thresholds: tuple[float, ...] | None = None

    def lowest(self, num_classes: int) -> Sums:
        """The confidence (C,) from which a pixel of each predicted class counts."""
        own = np.zeros(num_classes) if self.thresholds is None else np.array(self.thresholds, np.float64)
        lowest: Sums = np.maximum(own, self.min_confidence)  # NaN stays NaN
        return lowest


@dataclass(frozen=True)
class SoftLabels:
    """Of n pixels: predicted class (n,) int64, probabilities (C,n) float32, confidence (n,) float32 in [1/C,1]."""

    classes: Tensor
    probs: Tensor
    confidence: Tensor


def soft_labels(logits: Tensor, temperature: float = 1.0) -> SoftLabels:
    """Of float32 logits (C,n): of equal largest logits the class of the lowest index is predicted.

    >>> one = soft_labels(torch.tensor([[0.0], [0.0]]))
    >>> one.classes.tolist(), one.probs.tolist()
    ([0], [[0.5], [0.5]])
    """
    probs = probabilities(logits / temperature if temperature != 1 else logits)
    return SoftLabels(first_index(logits, logits.amax(dim=0)), probs, probs.amax(dim=0))


class PrototypeState:
    """The sums of any number of images: by predicted class (C,C) of weighted soft labels, (C,) of weights, of pixels.

    Images may come in any order, and states of parts add up (`+`) to that of the whole, bit for bit: each weighted
    probability is rounded once to a step of 2**-44, and whole numbers are added.
    """

    def __init__(self, num_classes: int, rule: PixelRule | None = None) -> None:
        self.rule = rule or PixelRule()
        if self.rule.thresholds is not None and len(self.rule.thresholds) != num_classes:
            raise ValueError(f"{len(self.rule.thresholds)} thresholds for {num_classes} classes")
        self.pixels: Counts = np.zeros(num_classes, np.int64)
        self.images: set[str] = set()
        self.dropped = 0
        """Pixels left out because a logit is NaN or infinite."""
        self.unsure = 0
        """Pixels left out because their confidence does not suffice."""
        # The last column is the weight; the value is high * 2**32 + low, with low in [0, 2**32).
        self._high: Counts = np.zeros((num_classes, num_classes + 1), np.int64)
        self._low: Counts = np.zeros_like(self._high)

    @property
    def num_classes(self) -> int:
        """C."""
        return len(self.pixels)

    @property
    def sums(self) -> Sums:
        """The weighted soft labels (C,C) by predicted class, each sum rounded once to float64."""
        return self._values()[:, :-1]

    @property
    def weights(self) -> Sums:
        """The weights (C,) by predicted class."""
        return self._values()[:, -1]

    @torch.no_grad()
    def add(
        self, logits: Tensor, mask: Tensor | None = None, *, name: str | None = None, classes: Tensor | None = None
    ) -> None:
        """Count the pixels of one image's logits (C,h,w) where `mask` (h,w) bool is True, everywhere without one.

        Pixels with a NaN or an infinity are counted in `dropped` and left out. `classes` (h,w) int64 in [0,C) stand in
        for the predicted ones. Raises DataError for an image whose `name` was counted before, ValueError for logits of
        other classes.
        """
        if logits.ndim != 3 or logits.shape[0] != self.num_classes:
            raise ValueError(f"logits are (C,h,w) with {self.num_classes} classes, not {tuple(logits.shape)}")
        self._remember(name)
        flat = logits.flatten(1)
        wanted = torch.ones_like(flat[0], dtype=torch.bool) if mask is None else mask.flatten().to(flat.device)
        given = None if classes is None else classes.flatten()
        for part in _parts(flat.shape[1]):
            block, finite = flat[:, part].float(), finite_pixels(flat[:, part])
            self.dropped += int((wanted[part] & ~finite).sum())
            kept = wanted[part] & finite
            self._add_pixels(block[:, kept], None if given is None else given[part][kept])

    def __add__(self, other: "PrototypeState") -> "PrototypeState":
        """Both together. Raises ConfigError for other classes or another rule, DataError for the same image twice."""
        if (self.num_classes, _told(self.rule)) != (other.num_classes, _told(other.rule)):
            raise ConfigError(
                "sums that were counted by different rules cannot be added",
                "count both with the same classes, weight_power, temperature, min_confidence and thresholds",
            )
        total = PrototypeState(self.num_classes, self.rule)
        for part in (self, other):
            total._absorb(part)
        return total

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, PrototypeState):
            return NotImplemented
        mine, theirs = self.to_arrays(), other.to_arrays()
        if mine.keys() != theirs.keys() or _told(self.rule) != _told(other.rule):
            return False
        return all(np.array_equal(mine[key], theirs[key]) for key in mine if key != "thresholds")

    __hash__ = None  # type: ignore[assignment]  # holds arrays

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """What `from_arrays` reads: the exact steps, and `sums` and `weights` in float64 for other readers."""
        arrays: dict[str, NDArray[Any]] = {
            "sums": self.sums,
            "weights": self.weights,
            "pixels": self.pixels.copy(),
            "steps_high": self._high.copy(),
            "steps_low": self._low.copy(),
            "left_out": np.array([self.dropped, self.unsure], np.int64),
        }
        if self.rule.thresholds is not None:
            arrays["thresholds"] = np.array(self.rule.thresholds, np.float64)
        if self.images:
            arrays["images"] = np.array(sorted(self.images), dtype=object)
        return arrays

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]], rule: PixelRule | None = None) -> "PrototypeState":
        """The state that `to_arrays` told; without its steps they are taken from `sums` and `weights`.

        Raises ArtifactError for shapes, types or values that no counting gives.
        """
        sums, weights, pixels = (np.asarray(arrays[name]) for name in ("sums", "weights", "pixels"))
        _check(sums, weights, pixels)
        state = cls(len(weights), rule)
        state.pixels = pixels.astype(np.int64)
        high, low = arrays.get("steps_high"), arrays.get("steps_low")
        if high is None or low is None:
            high, low = _limbs(np.column_stack([sums, weights]))
        _check_steps(high, low, state._high.shape)
        state._high, state._low = high.copy(), low.copy()
        told, counted = np.column_stack([sums, weights]), state._values()
        if not np.allclose(counted, told, rtol=1e-15, atol=1 / STEPS):
            raise ArtifactError("its sums are not those of its steps", "make it again")
        state.dropped, state.unsure = (int(number) for number in arrays.get("left_out", np.zeros(2, np.int64)))
        state.images = {str(name) for name in arrays.get("images", ())}
        return state

    def _add_pixels(self, logits: Tensor, given: Tensor | None) -> None:
        found = soft_labels(logits, self.rule.temperature)
        classes = found.classes if given is None else given
        lowest = torch.from_numpy(self.rule.lowest(self.num_classes)).to(logits.device)[classes]
        passes = found.confidence.double() >= lowest  # NaN is reached by nothing
        self.unsure += int((~passes).sum())
        classes = classes[passes]
        self.pixels += torch.bincount(classes, minlength=self.num_classes).cpu().numpy()
        weights = _weights(found.confidence[passes], self.rule.weight_power)
        steps = torch.cat([found.probs[:, passes].double().mul_(weights), weights[None]])
        steps = steps.mul_(STEPS).round_().long()
        table = torch.zeros(self._low.shape, dtype=torch.int64, device=logits.device)
        table.index_add_(0, classes, steps.T.contiguous())
        counted = table.cpu().numpy()
        self._carry(counted >> _LIMB, counted & _MASK)

    def _absorb(self, other: "PrototypeState") -> None:
        twice = self.images & other.images
        if twice:
            raise DataError(f"{min(twice)!r} was counted twice", "add parts that share no image")
        self.images |= other.images
        self.pixels += other.pixels
        self.dropped += other.dropped
        self.unsure += other.unsure
        self._carry(other._high, other._low)

    def _carry(self, high: Counts, low: Counts) -> None:
        self._low += low
        self._high += high + (self._low >> _LIMB)
        self._low &= _MASK

    def _remember(self, name: str | None) -> None:
        if name is None:
            return
        if name in self.images:
            raise DataError(f"{name!r} was counted twice", "give images distinct ids")
        self.images.add(name)

    def _values(self) -> Sums:
        """Python's division of whole numbers rounds once."""
        pairs = zip(self._high.ravel().tolist(), self._low.ravel().tolist(), strict=True)
        values = [((high << _LIMB) + low) / STEPS for high, low in pairs]
        return np.array(values, np.float64).reshape(self._high.shape)


def _parts(pixels: int) -> Iterator[slice]:
    return (slice(start, start + _BLOCK) for start in range(0, pixels, _BLOCK))


def _weights(confidence: Tensor, power: float) -> Tensor:
    """Weights confidence ** power (n,) in float64; the two common powers without a library's pow."""
    if power == 0:
        return torch.ones_like(confidence, dtype=torch.float64)
    return confidence.double() if power == 1 else confidence.double() ** power


def _told(rule: PixelRule) -> str:
    """A rule in a form that compares: NaN equals NaN."""
    return repr(rule)


def _limbs(values: Sums) -> tuple[Counts, Counts]:
    steps = [round(value * STEPS) for value in values.ravel().tolist()]  # times a power of two: exact
    high, low = ([number >> _LIMB for number in steps], [number & _MASK for number in steps])
    return np.array(high, np.int64).reshape(values.shape), np.array(low, np.int64).reshape(values.shape)


def _check(sums: NDArray[Any], weights: NDArray[Any], pixels: NDArray[Any]) -> None:
    """Raise ArtifactError unless these are sums, weights and pixels of some counting."""
    classes = len(weights) if weights.ndim == 1 else 0
    if not classes or sums.shape != (classes, classes) or pixels.shape != (classes,):
        raise _unusable(f"sums {sums.shape}, weights {weights.shape} and pixels {pixels.shape} do not fit each other")
    if sums.dtype != np.float64 or weights.dtype != np.float64 or pixels.dtype.kind not in "iu":
        raise _unusable("sums and weights are float64, and pixels whole numbers")
    if not (np.isfinite(sums).all() and np.isfinite(weights).all()):
        raise _unusable("its sums hold NaN or infinity")
    if (sums < 0).any() or (weights < 0).any() or (pixels < 0).any() or weights.max() > 2.0**50:
        raise _unusable("its sums are out of range")
    if (np.abs(sums.sum(axis=1) - weights) > _SLACK * np.maximum(weights, 1e-9)).any():
        raise _unusable("a row of its sums does not add up to its weight")
    if not pixels.any():
        raise _unusable("it counts no pixel")


def _check_steps(high: NDArray[Any], low: NDArray[Any], shape: tuple[int, ...]) -> None:
    if any(part.shape != shape or part.dtype != np.int64 for part in (high, low)):
        raise _unusable("its steps do not fit its sums")
    if (high < 0).any() or (low < 0).any() or (low > _MASK).any():
        raise _unusable("its steps are out of range")


def _unusable(what: str) -> ArtifactError:
    return ArtifactError(f"prototypes cannot be read: {what}", "make them again with `calseg calibrate-prototypes`")
