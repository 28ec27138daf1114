"""Owns which classes a network prefers: the bias of each class, and how unequally the classes fare.

BLDA (Li et al., ICML 2025), Eq. 4. Every true class counts alike, so how common a class is does not matter.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]


def prediction_shares(confusion: Int64 | Float64) -> Float64:
    """Each row of counts (...,C,C), rows true, divided by its sum; NaN in the rows of classes without a pixel."""
    total = np.asarray(confusion.sum(axis=-1, keepdims=True), np.float64)
    shares: Float64 = np.full(confusion.shape, np.nan)
    np.divide(confusion, total, out=shares, where=total > 0)
    return shares


def bias_of_shares(shares: Float64) -> Float64:
    """Of each class (...,C): how often it is predicted, every true class counting alike, minus its fair share.

    `shares` (...,C,C) is P(predicted | true), rows true, NaN where a true class does not occur. The fair share is
    1/P for the P classes that occur and 0 for any other, so the biases always add up to 0. Above 0 is over-predicted.
    A class that occurs has one in [-1/P, 1 - 1/P]; NaN where no class occurs.

    >>> bias_of_shares(np.array([[0.9, 0.1], [0.4, 0.6]])).round(3).tolist()
    [0.15, -0.15]
    """
    present = ~np.isnan(shares[..., 0])
    known = np.where(present[..., None], shares, 0.0)
    total = np.zeros(present.shape)
    for row in range(present.shape[-1]):  # in one order, so that a stack of matrices has the bits of each alone
        total += known[..., row, :]
    number = present.sum(axis=-1, keepdims=True)
    some = np.maximum(number, 1)
    return np.where(number > 0, total / some - present / some, np.nan)


def class_bias(confusion: Int64 | Float64) -> Float64:
    """The measured bias (...,C) of each class, from counts (...,C,C), rows true; see `bias_of_shares`.

    >>> class_bias(np.array([[90, 10], [4, 6]])).round(3).tolist()
    [0.15, -0.15]
    """
    return bias_of_shares(prediction_shares(confusion))


def over_classes(
    values: Float64, classes: Sequence[int] | None = None, statistic: Literal["mean", "std"] = "mean"
) -> Float64:
    """Mean or population standard deviation (b,) of rows (b,C) without their NaN, over `classes` or all; NaN of none.

    Rows that lack the same classes are worked off together, in the order of addition of a row alone: the same bits.
    """
    chosen = values if classes is None else values[:, list(classes)]
    known = ~np.isnan(chosen)
    found = np.full(len(chosen), np.nan)
    for pattern in np.unique(known, axis=0):
        if pattern.any():
            rows = (known == pattern).all(axis=1)
            block = np.ascontiguousarray(chosen[rows][:, pattern])
            found[rows] = block.mean(axis=1) if statistic == "mean" else block.std(axis=1)
    return found


def spread_scores(
    iou: Float64, accuracy: Float64, bias: Float64, classes: Sequence[int] | None = None
) -> dict[str, Float64]:
    """How unequally classes fare, each (b,), from rows (b,C) of their scores: NaN where there is none.

    Spreads are population standard deviations over the classes that occur.
    """
    occurring = np.where(np.isnan(accuracy), np.nan, bias)
    named = {"iou": iou, "accuracy": accuracy, "bias": occurring}
    return {f"{name}_spread": over_classes(values, classes, "std") for name, values in named.items()}


def group_scores(
    iou: Float64, accuracy: Float64, bias: Float64, classes: Sequence[int] | None = None
) -> dict[str, Float64]:
    """Means (b,) over the classes that are predicted more (`_over`) and less often (`_under`) than is fair.

    From rows (b,C) of the classes' scores; NaN where a group is empty. A class at exactly its fair share is in neither.
    """
    scores = {}
    for name, values in (("iou", iou), ("accuracy", accuracy)):
        scores[f"{name}_over"] = over_classes(np.where(bias > 0, values, np.nan), classes)
        scores[f"{name}_under"] = over_classes(np.where(bias < 0, values, np.nan), classes)
    return scores
