"""Owns class-balanced self-training: cross-entropy on each class's surest pixels. Zou et al. 2018, arXiv 1810.07911."""

from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from calseg_cli.data.catalog import IGNORE
from calseg_cli.data.loader import Batch
from calseg_cli.methods.round_self_training import RoundSelfTraining


class CBST(RoundSelfTraining):
    """Plain cross-entropy on the believed pixels: the baseline of every method with pseudo-labels on the disk.

    The pixels are those of the class-balanced thresholds (`methods.pseudo_labels`); the source is not needed. Not of
    the paper and left out: its curriculum's joint training on the source, and its spatial prior.
    """

    name: ClassVar[str] = "cbst"

    def terms(self, logits: Tensor, native: Tensor, labels: Tensor, batch: Batch) -> dict[str, Tensor]:
        """The term "ce"; 0 with zero gradient for a batch in which nothing is believed."""
        total = F.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="sum")
        return {"ce": total / self.ranks.total((labels != IGNORE).sum()).clamp_min(1)}
