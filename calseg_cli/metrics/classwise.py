"""Owns calibration of every class's probability, not of the predicted one alone: counts by class, and the score."""

import numpy as np
import torch
from torch import Tensor

from calseg_cli.metrics.bin_sums import ece_of, sum_bins
from calseg_cli.metrics.fine_histogram import FINE_BINS, ONE, CalibrationCounts, Edges, fine_bins
from calseg_cli.metrics.pixels import pixel_blocks, probabilities


@torch.no_grad()
def classwise_counts(logits: Tensor, labels: Tensor, edges: Edges = "right") -> CalibrationCounts:
    """Counts by class k of logits (C,N) and labels (N,) in [0,C): every pixel is in one bin of each class, by its p_k.

    "Right" are the pixels of the class. A probability below 1/256 is rounded to the nearest 2**-31, so a mean of them
    is off by at most 2.3e-10; nothing else is rounded. It costs C counts a pixel: about as much again as all else.
    """
    classes = logits.shape[0]
    offsets = torch.arange(classes, device=logits.device)[:, None] * FINE_BINS
    total = torch.zeros((3, classes * FINE_BINS), dtype=torch.int64, device=logits.device)
    for block, truth in pixel_blocks(logits, labels):
        probs = probabilities(block)
        cells = fine_bins(probs.flatten(), edges).reshape(probs.shape) + offsets
        total[0] += torch.bincount(cells.flatten(), minlength=total.shape[1])
        total[1] += torch.bincount(cells.gather(0, truth[None])[0], minlength=total.shape[1])
        total[2].index_add_(0, cells.flatten(), probs.double().mul_(ONE).round_().long().flatten())
    count, correct, confidence = total.reshape(3, classes, FINE_BINS).cpu().numpy()
    return CalibrationCounts(count, correct, confidence, edges=edges)


def cece(counts: CalibrationCounts, bins: int = 15, *, present: bool = False) -> float:
    """The class-wise (marginal, static) ECE in [0,1]: the mean over classes of the ECE of p_k; NaN if empty.

    Kull et al. 2019: sum over bins of |sum of (p_k - [y = k])| / N for each class k, with all N pixels in every class.
    `present` leaves out the classes that no pixel is of. Most pixels have a p_k near 0 for most classes, so it falls
    with the number of classes, and two data sets of different classes cannot be compared by it.
    """
    gaps = [
        ece_of(sum_bins(*group, bins)) for group in zip(*counts.arrays(), strict=True) if not present or group[1].any()
    ]
    return float(np.mean(gaps)) if gaps else float("nan")
