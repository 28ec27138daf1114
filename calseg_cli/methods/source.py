"""Owns supervised training on the labelled source domain: the start of every adaptation, and its first baseline."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from calseg_cli.data.catalog import IGNORE
from calseg_cli.data.loader import Batch
from calseg_cli.engine.distributed import ALONE, Ranks
from calseg_cli.engine.forward import dense_logits
from calseg_cli.engine.method import Method
from calseg_cli.losses.pixel_confidence import PixelConfidence, log_probabilities, pixel_confidence
from calseg_cli.losses.soft_ece import Absent, Binning, class_conditional_ece_of, image_ece_of


@dataclass(frozen=True)
class CalibrationTerm:
    """The calibration error as a term of the loss: stage 1 of Cal-SFDA (Wang et al. 2023), arXiv 2308.03003.

    `weight` times the mean over the batch's images of the error over each class's pixels (the paper's) or over all
    pixels of the image, counted from step `start_step` on. The others are those of `losses.soft_ece`.
    """

    weight: float
    start_step: int = 0
    over: Literal["class", "image"] = "class"
    bins: int = 10
    binning: Binning = "hard"
    temperature: float = 1e-5
    absent: Absent = "count"

    def __call__(self, pixels: PixelConfidence, labels: Tensor, classes: int) -> Tensor:
        """The weighted term, a scalar."""
        if self.over == "image":
            errors = image_ece_of(pixels, labels, classes, bins=self.bins, binning=self.binning)
        else:
            errors = class_conditional_ece_of(
                pixels, labels, classes, bins=self.bins, binning=self.binning, absent=self.absent
            )
        return self.weight * errors.mean()


class Source(Method):
    """Cross-entropy on labelled source images, every labelled pixel weighted equally or by its class.

    The loss is taken at the label's full size on bilinearly enlarged logits, which is how the network is measured.
    `class_weights` (C,) multiply a pixel's loss; the mean is then over the weights, so that their scale is free.
    `ece` adds the calibration error; without it, with weight 0 and before its first step nothing is calculated for it.

    Where several `ranks` share a batch, a term is this one's part of the whole batch's: its pixels' loss over the
    weight of all processes' pixels, its images' error over the number of all images. The parts' gradients add up.
    """

    name: ClassVar[str] = "source"
    requires: ClassVar[frozenset[str]] = frozenset({"source", "labels"})

    class_weights: Tensor | None

    def __init__(
        self,
        network: nn.Module,
        *,
        class_weights: Tensor | None = None,
        label_smoothing: float = 0.0,
        ece: CalibrationTerm | None = None,
        ranks: Ranks = ALONE,
    ) -> None:
        super().__init__(network)
        self.register_buffer("class_weights", class_weights, persistent=False)
        self.label_smoothing = label_smoothing
        self.ece = ece
        self.ranks = ranks
        self._step = 0  # told before every step, so no memory

    def before_step(self, batch: Batch, step: int) -> None:
        """Note the step: the calibration term may begin later."""
        self._step = step

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """The term "ce", and "ece" where it is on. A batch without a single labelled pixel gives zero, not NaN."""
        assert batch.source_images is not None
        assert batch.source_labels is not None
        logits = dense_logits(self.network, batch.source_images)  # type: ignore[arg-type]
        labels = batch.source_labels
        if self.ece is None or self.ece.weight == 0 or self._step < self.ece.start_step:
            return {"ce": self._smoothed_cross_entropy(logits, labels)}
        log_probs = log_probabilities(logits)
        pixels = pixel_confidence(log_probs, labels, self.ece.temperature)
        if self.label_smoothing:
            ce = self._smoothed_cross_entropy(log_probs, labels)  # log_softmax changes log-probabilities no more
        else:
            ce = self._cross_entropy(pixels.label_log_prob, labels)
        return {"ce": ce, "ece": self.ece(pixels, labels, logits.shape[1]) / self.ranks.world}

    def _smoothed_cross_entropy(self, logits: Tensor, labels: Tensor) -> Tensor:
        loss = F.cross_entropy(
            logits,
            labels,
            weight=self.class_weights,
            ignore_index=IGNORE,
            label_smoothing=self.label_smoothing,
            reduction="sum",
        )
        return loss / self._weight_sum(labels).clamp_min(1e-12)

    def _cross_entropy(self, label_log_prob: Tensor, labels: Tensor) -> Tensor:
        """The same without smoothing, from the labels' log-probabilities, which are 0 where a pixel is ignored."""
        if self.class_weights is not None:
            label_log_prob = label_log_prob * self.class_weights[labels.masked_fill(labels == IGNORE, 0)]
        return -label_log_prob.sum() / self._weight_sum(labels).clamp_min(1e-12)

    def _weight_sum(self, labels: Tensor) -> Tensor:
        """Of all processes' pixels: a mean of their means would weigh pixels by how many labels their share has."""
        valid = labels != IGNORE
        if self.class_weights is None:
            return self.ranks.total(valid.sum())
        return self.ranks.total(self.class_weights[labels[valid]].sum())


def inverse_frequency_weights(pixels: Tensor, *, power: float = 1.0) -> Tensor:
    """Weights (C,) proportional to frequency**-power, with mean 1 over the classes that occur; 0 for the others.

    >>> inverse_frequency_weights(torch.tensor([75, 25, 0]))
    tensor([0.5000, 1.5000, 0.0000])
    """
    present = pixels > 0
    weights = torch.where(present, pixels.clamp_min(1).double() ** -power, torch.zeros((), dtype=torch.float64))
    return (weights * present.sum() / weights.sum()).float()
