"""Owns the figures of docs/metrics.md on float32: the ECE of one network by torchmetrics, calseg and float64.

    python benchmarks/float32_ece.py          # needs torchmetrics (extra "test"); about 2 GB of memory

The network is drawn (seed 0): its confidence is the fourth root of a uniform number, so that most pixels are sure, and
it is right with a probability of 0.04 less than that. Each column measures the same pixels with 15 bins; torchmetrics
is given the confidence and whether the pixel is right, through its public function.
"""

import argparse

import numpy as np
import torch
from torchmetrics.functional.classification import binary_calibration_error

from calseg_cli.metrics.calibration import CalibrationCounts, calibration_counts, ece

BINS = 15
PIECE = 10**6


def draw(pixels: int) -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(0)
    confidence = torch.rand(pixels, generator=random).sqrt_().sqrt_()
    return confidence, torch.rand(pixels, generator=random) < confidence - 0.04


def by_calseg(confidence: torch.Tensor, correct: torch.Tensor) -> float:
    total = CalibrationCounts.zeros(1)
    for q, t in zip(confidence.split(PIECE), correct.split(PIECE), strict=True):
        total.absorb(calibration_counts(q, t, torch.zeros(len(q), dtype=torch.long), 1))
    return ece(total, BINS)


def by_float64(confidence: torch.Tensor, correct: torch.Tensor) -> float:
    """The definition, bins (lo,hi], in numpy; `np.bincount` adds in float64."""
    bins = np.searchsorted(np.arange(1, BINS) / BINS, confidence.numpy(), side="left")
    sums = (np.bincount(bins, weights, BINS) for weights in (confidence.numpy(), correct.numpy()))
    return float(np.abs(np.subtract(*sums)).sum() / len(bins))


def main() -> None:
    parser = argparse.ArgumentParser(description="The ECE of more and more pixels of one network.")
    parser.add_argument("--pixels", type=int, nargs="+", default=[10**6, 10**7, 3 * 10**7])
    print(f"{'pixels':>12}  {'torchmetrics':>12}  {'calseg':>9}  {'float64':>9}")
    for pixels in parser.parse_args().pixels:
        confidence, correct = draw(pixels)
        told = float(binary_calibration_error(confidence, correct.long(), n_bins=BINS, norm="l1"))
        ours, exact = by_calseg(confidence, correct), by_float64(confidence, correct)
        print(f"{pixels:12,}  {told:12.6f}  {ours:9.6f}  {exact:9.6f}", flush=True)


if __name__ == "__main__":
    main()
