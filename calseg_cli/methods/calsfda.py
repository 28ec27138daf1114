"""Owns Cal-SFDA's third stage: self-training on target images alone, guided by expected calibration errors.

Wang et al. 2023 (ACM MM), arXiv 2308.03003. The loss of a round; how labels are made is `methods.pseudo_labels`, which
images are believed less is the value net's (`methods.value_net`).
"""

from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from calseg_cli.data.catalog import IGNORE
from calseg_cli.data.loader import Batch
from calseg_cli.engine.forward import dense_logits
from calseg_cli.engine.trainable_parts import Part
from calseg_cli.losses.class_weights import threshold_class_weights
from calseg_cli.losses.entropy import entropy_loss
from calseg_cli.losses.negative_learning import complementary_rank, negative_learning
from calseg_cli.losses.symmetric_cross_entropy import symmetric_cross_entropy
from calseg_cli.methods.round_self_training import Beliefs, RoundSelfTraining

Softness = Literal["none", "smoothing", "temperature"]


class CalSFDA(RoundSelfTraining):
    """Symmetric cross-entropy on believed pixels, negative learning and entropy on all.

    `ce_weight` and `rce_weight` are the two halves' shares (0.1 and 1 in the released code), the first weighted by
    class with the softmax of the inverse thresholds. `entropy_weight` multiplies the mean of ((H/log C)^2 +
    1e-8)^`entropy_power`; the paper's is unknown.

    Two additions keep confidence where the value net expects it to be right; both are 0 and "none" in the paper.
    `softness` says what a believed pixel is taught: its class alone; with "smoothing" its class with probability 1 - e
    of the image and the others the rest; with "temperature" the labelling network's probabilities, divided by the
    temperature at which that network's mean confidence on the image is (1 - e) times what it was. `anchor` weights
    |mean confidence of the image - (1 - e) times the labelling network's|, the image's calibration error in one bin
    with the accuracy that the value net expects: what self-training on sure pixels adds in confidence alone is taken
    back.
    """

    name: ClassVar[str] = "calsfda"

    def __init__(
        self,
        network: nn.Module,
        *,
        train: Part = "all",
        ce_weight: float = 0.1,
        rce_weight: float = 1.0,
        negative_weight: float = 1.0,
        entropy_weight: float = 0.01,
        entropy_power: float = 2.0,
        class_weights: Literal["thresholds", "none"] = "thresholds",
        softness: Softness = "none",
        anchor: float = 0.0,
    ) -> None:
        super().__init__(network, train=train)
        self.ce_weight, self.rce_weight = ce_weight, rce_weight
        self.negative_weight, self.entropy_weight, self.entropy_power = negative_weight, entropy_weight, entropy_power
        self.weigh_classes, self.softness, self.anchor = class_weights == "thresholds", softness, anchor
        self._class_weights: Tensor | None = None
        self._teacher: tuple[nn.Module, ...] = ()  # in a tuple: it is neither trained nor part of any checkpoint

    @property
    def wants_teacher(self) -> bool:
        """Only the labelling network knows the probabilities that are to be softened."""
        return self.softness == "temperature"

    def believe(self, beliefs: Beliefs, teacher: nn.Module | None = None) -> None:
        """Begin a round. Raises ValueError without a teacher where its probabilities are to be taught."""
        super().believe(beliefs, teacher)
        if self.wants_teacher and teacher is None:
            raise ValueError("softness: temperature needs the network that made the labels")
        self._teacher = (teacher.eval(),) if teacher is not None and self.wants_teacher else ()
        self._class_weights = None
        if self.weigh_classes and beliefs.thresholds is not None:
            self._class_weights = threshold_class_weights(torch.from_numpy(beliefs.thresholds))

    def terms(self, logits: Tensor, native: Tensor, labels: Tensor, batch: Batch) -> dict[str, Tensor]:
        """The terms "sce", and where their weight is not 0 "negative", "entropy", "anchor"."""
        weights = self._class_weights
        found = {
            "sce": symmetric_cross_entropy(
                logits,
                labels,
                class_weights=None if weights is None else weights.to(logits.device),
                ce_weight=self.ce_weight,
                rce_weight=self.rce_weight,
                soft_labels=self._soft_labels(logits, labels, batch),
                total=self.ranks.total,
            )
        }
        share = 1 / self.ranks.world  # of what is a mean over pixels or images, as many in every process
        if self.negative_weight:
            generator = torch.Generator().manual_seed(batch.step)  # a rank a step, the same after a break
            rank = complementary_rank(native.shape[1], generator)
            found["negative"] = share * self.negative_weight * negative_learning(native, rank)
        if self.entropy_weight:
            found["entropy"] = share * self.entropy_weight * entropy_loss(native, power=self.entropy_power)
        if self.anchor:
            found["anchor"] = share * self.anchor * self._anchor(native, batch)
        return found

    def _soft_labels(self, logits: Tensor, labels: Tensor, batch: Batch) -> Tensor | None:
        if self.softness == "smoothing":
            error = self.of_images(batch, self.beliefs.expected_error, 0.0)[:, None, None, None]
            return smoothed_labels(labels, error, logits.shape[1])
        if not self._teacher:
            return None
        assert batch.target_images is not None
        temperature = self.of_images(batch, self.beliefs.temperature, 1.0)[:, None, None, None]
        with torch.no_grad():
            taught = dense_logits(self._teacher[0], batch.target_images)  # type: ignore[arg-type]
            return (taught.float() / temperature).softmax(dim=1)

    def _anchor(self, native: Tensor, batch: Batch) -> Tensor:
        confidence = native.float().softmax(dim=1).amax(dim=1).mean(dim=(1, 2))
        before = self.of_images(batch, self.beliefs.confidence, float("nan"))
        error = self.of_images(batch, self.beliefs.expected_error, 0.0)
        gap = (confidence - (1 - error) * before).abs()
        return torch.where(before.isnan(), confidence.new_zeros(()), gap).mean()


def smoothed_labels(labels: Tensor, error: Tensor, num_classes: int) -> Tensor:
    """Labels (B,H,W) as probabilities (B,C,H,W): 1 - `error` (B,1,1,1) on the class, the rest spread over the others.

    Where the label is 255 they mean nothing.

    >>> smoothed_labels(torch.tensor([[[1]]]), torch.full((1, 1, 1, 1), 0.2), 3).flatten().tolist()
    [0.10000000149011612, 0.800000011920929, 0.10000000149011612]
    """
    hard = F.one_hot(labels.masked_fill(labels == IGNORE, 0), num_classes).permute(0, 3, 1, 2)
    return torch.where(hard.bool(), 1 - error, error / (num_classes - 1))
