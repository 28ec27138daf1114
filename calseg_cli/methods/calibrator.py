"""Owns what calibrators have in common: what they tell of themselves, and how their arrays are checked."""

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from calseg_cli.errors import ArtifactError
from calseg_cli.methods.correction import Correction

Array = NDArray[Any]


class Calibrator(Correction):
    """A correction of confidence. `origin` is plain values for its artifact: what it was fitted on, options, notes."""

    kind: ClassVar[str] = "calibrator"
    method: ClassVar[str]
    keeps_argmax: ClassVar[bool] = False
    """Whether every cell of the logits' grid keeps its class."""

    def __init__(self, origin: Mapping[str, Any] | None = None) -> None:
        self.origin = {key: value for key, value in (origin or {}).items() if key != "method"}

    def facts(self) -> dict[str, Any]:
        """The method's name and its origin."""
        return {"method": self.method, **self.origin}

    @abstractmethod
    def parameters(self) -> dict[str, float | str]:
        """The fitted numbers that are worth a line each."""

    def describe(self) -> str:
        """The method, its numbers, and what it was fitted on."""
        numbers = ", ".join(
            f"{name} {value:.6g}" if isinstance(value, float) else f"{name} {value}"
            for name, value in self.parameters().items()
        )
        fitted = self.origin.get("fitted_on")
        return f"{self.method} ({numbers})" + (f", fitted on {fitted}" if fitted else "")


def read_array(arrays: Mapping[str, Array], name: str, *, dimensions: int) -> Array:
    """An array of a calibrator's file in float64. Raises ArtifactError: missing, empty, another shape, NaN."""
    if name not in arrays:
        raise ArtifactError(f"it lacks the array {name!r}", "make it again with calseg calibrate")
    array = np.asarray(arrays[name])
    if array.dtype.kind not in "fiu" or array.ndim != dimensions or not array.size:
        raise ArtifactError(
            f"its array {name!r} is {array.dtype} {array.shape}, not numbers with {dimensions} dimensions",
            "make it again with calseg calibrate",
        )
    if not np.isfinite(array).all():
        raise ArtifactError(f"its array {name!r} holds NaN or infinity", "make it again with calseg calibrate")
    return array.astype(np.float64)


def read_number(arrays: Mapping[str, Array], name: str, *, above: float = -np.inf, least: float = -np.inf) -> float:
    """An array (1,) as a number, which lies `above` one bound and is at `least` another. Raises ArtifactError."""
    array = read_array(arrays, name, dimensions=1)
    if array.shape != (1,) or not (array[0] > above and array[0] >= least):
        raise ArtifactError(
            f"its {name!r} is {array.tolist()}, which it cannot be", "make it again with calseg calibrate"
        )
    return float(array[0])


def check_channels(logits: Tensor, classes: int, method: str) -> None:
    """Raise ArtifactError where logits (C,h,w) have another number of classes than a calibrator."""
    if logits.shape[0] != classes:
        raise ArtifactError(
            f"the {method} calibrator is for {classes} classes, the logits have {logits.shape[0]}",
            "fit one on logits of this network",
        )
