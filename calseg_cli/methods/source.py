"""Owns supervised training on the labelled source domain: the start of every adaptation, and its first baseline."""

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from calseg_cli.data.catalog import IGNORE
from calseg_cli.data.loader import Batch
from calseg_cli.engine.forward import dense_logits
from calseg_cli.engine.method import Method


class Source(Method):
    """Cross-entropy on labelled source images, every labelled pixel weighted equally or by its class.

    The loss is taken at the label's full size on bilinearly enlarged logits, which is how the network is measured.
    `class_weights` (C,) multiply a pixel's loss; the mean is then over the weights, so that their scale is free.
    """

    name: ClassVar[str] = "source"
    requires: ClassVar[frozenset[str]] = frozenset({"source", "labels"})

    class_weights: Tensor | None

    def __init__(
        self, network: nn.Module, *, class_weights: Tensor | None = None, label_smoothing: float = 0.0
    ) -> None:
        super().__init__(network)
        self.register_buffer("class_weights", class_weights, persistent=False)
        self.label_smoothing = label_smoothing

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """The term "ce". A batch without a single labelled pixel gives zero, not NaN."""
        assert batch.source_images is not None
        assert batch.source_labels is not None
        logits = dense_logits(self.network, batch.source_images)  # type: ignore[arg-type]
        loss = F.cross_entropy(
            logits,
            batch.source_labels,
            weight=self.class_weights,
            ignore_index=IGNORE,
            label_smoothing=self.label_smoothing,
            reduction="sum",
        )
        return {"ce": loss / self._weight_sum(batch.source_labels).clamp_min(1e-12)}

    def _weight_sum(self, labels: Tensor) -> Tensor:
        valid = labels != IGNORE
        if self.class_weights is None:
            return valid.sum()
        return self.class_weights[labels[valid]].sum()


def inverse_frequency_weights(pixels: Tensor, *, power: float = 1.0) -> Tensor:
    """Weights (C,) proportional to frequency**-power, with mean 1 over the classes that occur; 0 for the others.

    >>> inverse_frequency_weights(torch.tensor([75, 25, 0]))
    tensor([0.5000, 1.5000, 0.0000])
    """
    present = pixels > 0
    weights = torch.where(present, pixels.clamp_min(1).double() ** -power, torch.zeros((), dtype=torch.float64))
    return (weights * present.sum() / weights.sum()).float()
