"""Owns the contract of a correction: what changes a network's logits afterwards and trains no network."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Self

from numpy.typing import NDArray
from torch import Tensor


class Correction(ABC):
    """Logits in, logits out, so that whatever reads logits reads corrected ones: there is one road."""

    kind: ClassVar[str]
    """The kind of artifact that holds it: "prototypes" or "calibrator"."""
    needs_image: ClassVar[bool] = False
    """True where the image is looked at beside its logits."""

    @abstractmethod
    def __call__(self, logits: Tensor, image: Tensor | None = None) -> Tensor:
        """Logits (C,h,w) float32, finite, on their own grid, corrected: (C,h,w) float32, finite.

        `image` is (3,H,W) float32 in [0,1] at the network's input size, given where `needs_image`.
        """

    @abstractmethod
    def describe(self) -> str:
        """One line for the protocol: what is done, with which options."""

    @abstractmethod
    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """The arrays of its artifact."""

    @abstractmethod
    def facts(self) -> dict[str, Any]:
        """The rest of its artifact as plain values: "method", options, and "labels", which it was fitted on.

        "labels" is "none", "source", or begins with "target: oracle".
        """

    @classmethod
    @abstractmethod
    def from_artifact(cls, arrays: Mapping[str, NDArray[Any]], facts: Mapping[str, Any]) -> Self:
        """The correction that `to_arrays` and `facts` told. Raises ArtifactError for what cannot be one."""

    @property
    def oracle(self) -> bool:
        """Whether labels of the target went into it: a number that nobody has who needs one."""
        return str(self.facts().get("labels", "")).startswith("target")
