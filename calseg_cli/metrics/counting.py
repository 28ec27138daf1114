"""Owns the two roads from an image's logits to its counts: compiled where numba is installed, plain torch everywhere.

Both give the same bits, so nothing but time depends on which was taken.
"""

import functools
import importlib
from dataclasses import dataclass
from types import ModuleType

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from calseg_cli.metrics.confusion import Confusion, check_labels, confusion_of_valid
from calseg_cli.metrics.fine_histogram import ONE, CalibrationCounts, Edges, binned_sums, fine_bins
from calseg_cli.metrics.grid import Grid
from calseg_cli.metrics.pixels import ValidPixels, logit_blocks, measure_grid, top_of_softmax

_VOID = 255


@dataclass(frozen=True, eq=False)
class ImageCounts:
    """The counts of one image; `pixels` is None unless it was asked for."""

    by_predicted: CalibrationCounts
    by_true: CalibrationCounts
    confusion: Confusion
    ignored: int
    invalid: int
    nll: float
    brier: float
    brier_top: float
    pixels: ValidPixels | None


@functools.cache
def compiled_road() -> ModuleType | None:
    """The module `kernel`, or None where numba is missing, does not fit this numpy, or is told not to compile."""
    try:
        if importlib.import_module("numba").config.DISABLE_JIT:
            return None
        return importlib.import_module("calseg_cli.metrics.kernel")
    except (ImportError, SystemError):
        return None


def count_image(
    native: Tensor, labels: Tensor, grid: Grid, *, ignore: int, edges: Edges, keep_pixels: bool = False, where: str = ""
) -> ImageCounts:
    """The counts of logits (C,h,w) on their own grid against integer labels (H,W).

    Raises DataError, naming `where`, for a label that is neither in [0,C) nor `ignore`.
    """
    kernel = compiled_road() if native.device.type == "cpu" else None
    if kernel is not None:
        logits = np.ascontiguousarray(native.detach().float().numpy())
        if kernel.suits(logits, grid):
            counts = _compiled(kernel, logits, labels, grid, ignore, edges, keep_pixels)
            if counts is not None:
                return counts
    check_labels(labels, native.shape[0], ignore=ignore, where=where)
    return _plain(native, labels.long(), grid, ignore, edges, keep_pixels)


@torch.no_grad()
def decide_image(native: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    """The predicted class (H,W) int64 and its confidence (H,W) float32 of logits (C,h,w): what `count_image` counts.

    A pixel that reads a NaN or an infinity has a confidence of NaN, or that of a limit, and a class that means nothing.
    """
    kernel = compiled_road() if native.device.type == "cpu" else None
    if kernel is not None:
        logits = np.ascontiguousarray(native.float().numpy())
        if kernel.suits(logits, grid):
            nothing = np.full(grid.out_hw, _VOID, np.uint8)
            found = kernel.count(logits, nothing, _VOID, grid, keep_pixels=True, threads=torch.get_num_threads())
            return torch.from_numpy(found.predictions).long(), torch.from_numpy(found.confidence)
    classes, confidence = zip(*(top_of_softmax(block) for block in logit_blocks(native, grid)), strict=True)
    return torch.cat(classes).reshape(grid.out_hw), torch.cat(confidence).reshape(grid.out_hw)


def _compiled(
    kernel: ModuleType,
    logits: NDArray[np.float32],
    labels: Tensor,
    grid: Grid,
    ignore: int,
    edges: Edges,
    keep_pixels: bool,
) -> ImageCounts | None:
    """None where a label is no class."""
    found = kernel.count(
        logits,
        *_narrow(labels, ignore),
        grid,
        left_closed=edges == "left",
        keep_pixels=keep_pixels,
        threads=torch.get_num_threads(),
    )
    if found.rows[:, kernel.STRANGE].any():
        return None
    right, *wrong = (np.ascontiguousarray(np.moveaxis(part, -1, 0)) for part in found.cells)
    by_predicted, by_true = (
        CalibrationCounts(right[0] + more[0], right[0].copy(), right[1] + more[1], edges=edges) for more in wrong
    )
    nll, brier, brier_top = (sum(found.rows[:, column].tolist()) / ONE for column in range(3))
    ignored = int(found.rows[:, kernel.LEFT_OUT].sum())
    pixels = None
    if keep_pixels:
        valid = labels.flatten() != ignore
        confidence, predictions = (
            torch.from_numpy(array).flatten()[valid] for array in (found.confidence, found.predictions)
        )
        chosen = labels.flatten()[valid].long()
        pixels = ValidPixels(confidence, predictions.long(), chosen, valid, ignored, 0, nll, brier, brier_top)
    return ImageCounts(by_predicted, by_true, found.confusion, ignored, 0, nll, brier, brier_top, pixels)


def _narrow(labels: Tensor, ignore: int) -> tuple[NDArray[np.uint8] | NDArray[np.int16], int]:
    """Labels in one of the two types that are compiled, and their ignored value.

    As int16, a label that does not fit becomes -2, which is no class, and an ignored value that does not fit -1.
    """
    if labels.dtype != torch.uint8:
        held = labels.where((labels >= 0) & (labels < 2**15), -2).where(labels != ignore, -1)
        labels, ignore = held.short(), -1
    return labels.contiguous().numpy(), ignore


def _plain(native: Tensor, labels: Tensor, grid: Grid, ignore: int, edges: Edges, keep_pixels: bool) -> ImageCounts:
    """Right pixels have one class, true and predicted; so they are binned once, and only wrong ones twice."""
    pixels = measure_grid(native, labels, grid, ignore)
    classes = native.shape[0]
    bins = fine_bins(pixels.confidence, edges)
    right = pixels.predictions == pixels.labels
    correct, correct_sums = binned_sums(pixels.confidence[right], bins[right], pixels.labels[right], classes)
    wrong = ~right
    wrong_confidence, wrong_bins = pixels.confidence[wrong], bins[wrong]

    def by_class(side: Tensor) -> CalibrationCounts:
        count, sums = binned_sums(wrong_confidence, wrong_bins, side[wrong], classes)
        return CalibrationCounts(count + correct, correct.copy(), sums + correct_sums, edges=edges)

    return ImageCounts(
        by_predicted=by_class(pixels.predictions),
        by_true=by_class(pixels.labels),
        confusion=confusion_of_valid(pixels.labels, pixels.predictions, classes),
        ignored=pixels.ignored,
        invalid=pixels.invalid,
        nll=pixels.nll,
        brier=pixels.brier,
        brier_top=pixels.brier_top,
        pixels=pixels if keep_pixels else None,
    )
