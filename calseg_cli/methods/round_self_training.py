"""Owns what methods have in common that train in rounds: pseudo-labels are made once a round and lie on the disk."""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from calseg_cli.data.loader import Batch
from calseg_cli.engine.forward import native_logits, upsample_logits
from calseg_cli.engine.method import Method
from calseg_cli.engine.trainable_parts import Part, set_mode, train_only


@dataclass(frozen=True)
class Beliefs:
    """What a round starts from, besides the labels: of each class and of each image, by its id.

    `thresholds` (C,) of the scaled confidence, NaN for a class that was not predicted; `expected_error` is the
    calibration error e in [0,1] that the value net expects of an image, 0 without guidance; `confidence` the mean
    confidence in [0,1] that the labelling network had on it; `temperature` what its logits are divided by so that this
    mean becomes (1-e) of it.
    """

    thresholds: NDArray[np.float64] | None = None
    expected_error: Mapping[str, float] = field(default_factory=dict)
    confidence: Mapping[str, float] = field(default_factory=dict)
    temperature: Mapping[str, float] = field(default_factory=dict)


class RoundSelfTraining(Method):
    """A method that learns from the pseudo-labels of a round. `believe` is told what the round starts from.

    What it is told follows from the round's artifact, so it is no memory of the method's own.
    """

    requires: ClassVar[frozenset[str]] = frozenset({"target", "pseudo_labels"})
    remeasures: ClassVar[bool] = True

    def __init__(self, network: nn.Module, *, train: Part = "all") -> None:
        super().__init__(network)
        self.part = train
        self.beliefs = Beliefs()
        train_only(network, train)

    def believe(self, beliefs: Beliefs, teacher: nn.Module | None = None) -> None:
        """Begin a round. `teacher` is the network that made the labels, frozen, where the method wants soft ones."""
        self.beliefs = beliefs

    @property
    def wants_teacher(self) -> bool:
        """Whether `believe` needs the labelling network."""
        return False

    def train(self, mode: bool = True) -> "RoundSelfTraining":
        """The part that is trained normalises with the batch at hand, what is frozen with its statistics."""
        super().train(mode)
        set_mode(self.network, self.part, training=mode)
        return self

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Weighted loss terms."""
        assert batch.target_images is not None
        assert batch.target_labels is not None
        native, geometry = native_logits(self.network, batch.target_images)  # type: ignore[arg-type]
        return self.terms(upsample_logits(native, geometry), native, batch.target_labels, batch)

    @abstractmethod
    def terms(self, logits: Tensor, native: Tensor, labels: Tensor, batch: Batch) -> dict[str, Tensor]:
        """The terms from logits (B,C,H,W), the same on the network's grid (B,C,h,w), and pseudo-labels.

        Labels are (B,H,W) int64, 255 where nothing is believed. What needs no label is cheaper on the network's grid.
        """

    def of_images(self, batch: Batch, values: Mapping[str, float], missing: float) -> Tensor:
        """What `values` say of the batch's images, (B,) float32."""
        found = [values.get(name, missing) for name in batch.target_ids]
        assert batch.target_images is not None
        return torch.tensor(found, dtype=torch.float32, device=batch.target_images.device)
