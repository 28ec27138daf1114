"""Owns the confusion matrix and the scores of the labels alone: IoU and accuracy."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from calseg_cli.errors import DataError

Confusion = NDArray[np.int64]
Float64 = NDArray[np.float64]


def confusion_matrix(labels: Tensor, predictions: Tensor, num_classes: int, *, ignore: int) -> Confusion:
    """Pixels of true class i predicted as j, int64 (C,C), rows true; pixels labelled `ignore` are left out.

    Raises DataError where a label is neither a class nor `ignore`.

    >>> confusion_matrix(torch.tensor([0, 0, 1, 255]), torch.tensor([0, 1, 1, 0]), 2, ignore=255).tolist()
    [[1, 1], [0, 1]]
    """
    check_labels(labels, num_classes, ignore=ignore)
    counted = labels != ignore
    return confusion_of_valid(labels[counted], predictions[counted], num_classes)


def confusion_of_valid(labels: Tensor, predictions: Tensor, num_classes: int) -> Confusion:
    """The same (C,C) matrix from pixels that are known to hold classes only."""
    cells = labels.long() * num_classes + predictions.long()
    counts = torch.bincount(cells.flatten(), minlength=num_classes**2)
    if counts.numel() > num_classes**2:
        raise ValueError(f"a prediction or a label lies outside the {num_classes} classes")
    return counts.reshape(num_classes, num_classes).cpu().numpy()


def check_labels(labels: Tensor, num_classes: int, *, ignore: int, where: str = "") -> None:
    """Refuse labels that are neither in [0, C) nor `ignore`: a DataError that lists the values and their pixels."""
    strange = labels[(labels != ignore) & ((labels < 0) | (labels >= num_classes))]
    if strange.numel() == 0:
        return
    values, counts = torch.unique(strange, return_counts=True)
    listed = ", ".join(
        f"{value} ({count} px)" for value, count in zip(values[:8].tolist(), counts.tolist(), strict=False)
    )
    more = f" and {len(values) - 8} more" if len(values) > 8 else ""
    raise DataError(
        f"{where + ': ' if where else ''}label values outside the {num_classes} classes: {listed}{more}",
        f"map them to a class 0..{num_classes - 1} or to the ignored value {ignore} in the dataset's id map",
    )


def iou(confusion: Confusion) -> Float64:
    """Intersection over union per class, (C,) in [0,1]; NaN (n/a) for a class without a ground-truth pixel.

    >>> iou(np.array([[3, 1, 0], [0, 4, 0], [0, 0, 0]])).tolist()
    [0.75, 0.8, nan]
    """
    hits = np.diagonal(confusion)
    pixels = confusion.sum(axis=1)
    return _ratio(hits, np.where(pixels > 0, pixels + confusion.sum(axis=0) - hits, 0))


def class_accuracy(confusion: Confusion) -> Float64:
    """The share of each true class that was found (recall), (C,) in [0,1]; NaN without a ground-truth pixel."""
    return _ratio(np.diagonal(confusion), confusion.sum(axis=1))


def class_precision(confusion: Confusion) -> Float64:
    """The share of the pixels predicted as each class that are of it, (C,) in [0,1]; NaN where never predicted."""
    return _ratio(np.diagonal(confusion), confusion.sum(axis=0))


def pixel_accuracy(confusion: Confusion) -> float:
    """The share of all labelled pixels that were predicted rightly, in [0,1]; NaN without a pixel."""
    return float(_ratio(np.trace(confusion), confusion.sum()))


def mean_iou(confusion: Confusion, classes: Sequence[int] | None = None) -> float:
    """The mean IoU over the classes that have ground-truth pixels, or over those of them in `classes`.

    A subset chooses which classes are averaged, and nothing else: every labelled pixel stays in the matrix, so a truck
    taken for a bus lowers the bus even where trucks are not averaged. It is how the literature reads SYNTHIA's 16 and
    13 classes off one Cityscapes evaluation, and what a person expects of a mean over some rows of the same table.
    """
    return _mean_of_known(iou(confusion), classes)


def mean_accuracy(confusion: Confusion, classes: Sequence[int] | None = None) -> float:
    """The mean class accuracy over the classes that have ground-truth pixels, or over those of them in `classes`."""
    return _mean_of_known(class_accuracy(confusion), classes)


def _mean_of_known(values: Float64, classes: Sequence[int] | None) -> float:
    chosen = values if classes is None else values[list(classes)]
    known = chosen[~np.isnan(chosen)]
    return float(known.mean()) if known.size else float("nan")


def _ratio(parts: NDArray[np.int64] | np.int64, wholes: NDArray[np.int64] | np.int64) -> Float64:
    whole = np.asarray(wholes, dtype=np.float64)
    ratio: Float64 = np.divide(parts, whole, out=np.full(whole.shape, np.nan), where=whole > 0)
    return ratio
