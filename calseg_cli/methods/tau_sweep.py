"""Owns the choice of a correction's strength tau without a label of the target: what every strength would score.

Either labelled images of another domain judge, or the network's own probabilities stand for the labels.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from calseg_cli.errors import DataError
from calseg_cli.metrics.bias import over_classes, prediction_shares

TAUS = (0.0, 0.05, *(step / 10 for step in range(1, 11)))
"""The strengths that are tried."""

FLAT = 1e-3
"""Scores that differ by less are alike, and the smaller strength is taken."""

Float64 = NDArray[np.float64]
Deciding = Callable[[Tensor, Sequence[float]], Tensor]
"""From logits (C,P) and T strengths to the classes (T,P) int64 that each predicts."""


@dataclass(frozen=True, eq=False)
class Curve:
    """Scores (T,) in [0,1] of each strength: mean IoU, mean class accuracy, and the population spread of accuracies."""

    miou: Float64
    macc: Float64
    accuracy_spread: Float64

    def best(self, wanted: str, taus: Sequence[float] = TAUS) -> float:
        """The smallest of the rising `taus` whose `wanted` score, miou or macc, is the highest but for `FLAT`."""
        scores: Float64 = getattr(self, wanted)
        return float(taus[int(np.flatnonzero(scores.max() - scores < FLAT)[0])])


@torch.no_grad()
def count_labelled(decide: Deciding, logits: Tensor, labels: Tensor, taus: Sequence[float] = TAUS) -> Float64:
    """The confusion (T,C,C), rows true, of P pixels with logits (C,P) and labels (P,) in [0,C)."""
    classes = len(logits)
    cells = decide(logits, taus) + labels.long() * classes
    counts = [torch.bincount(one, minlength=classes**2).reshape(classes, classes) for one in cells]
    return torch.stack(counts).double().cpu().numpy()


@torch.no_grad()
def count_expected(decide: Deciding, logits: Tensor, taus: Sequence[float] = TAUS) -> Float64:
    """E (T,C,C): E[t,c,k] sums the network's own probability of c over the pixels predicted k; logits (C,P).

    It is the confusion to be expected if the uncorrected softmax told the truth.
    """
    classes = len(logits)
    p = logits.double().softmax(dim=0)
    chosen = decide(logits, taus)
    sums = [torch.zeros(classes, classes, dtype=p.dtype, device=p.device).index_add_(1, one, p) for one in chosen]
    return torch.stack(sums).cpu().numpy()


@torch.no_grad()
def count_changed(decide: Deciding, logits: Tensor, taus: Sequence[float] = TAUS) -> NDArray[np.int64]:
    """How many (T,) of the pixels with logits (C,P) have another class than with no correction."""
    return (decide(logits, taus) != decide(logits, (0.0,))).sum(dim=1).cpu().numpy()


def read_curve(confusions: Float64) -> Curve:
    """The scores of confusions (T,C,C), over the classes that occur. Raises DataError where nothing was counted."""
    if not confusions.any():
        raise DataError("no cell of the images that judge tau has a label", "check the source's labels, or give --tau")
    hits = np.diagonal(confusions, axis1=1, axis2=2)
    true, found = confusions.sum(axis=2), confusions.sum(axis=1)
    union = np.where(true > 0, true + found - hits, np.nan)
    accuracy = np.diagonal(prediction_shares(confusions), axis1=1, axis2=2)
    return Curve(over_classes(hits / union), over_classes(accuracy), over_classes(accuracy, statistic="std"))
