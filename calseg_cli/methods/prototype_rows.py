"""Owns matrices of prototypes (C,C), a class a row: means of sums, what they begin with, and how two domains differ."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.float64]
Known = NDArray[np.bool_]

_SLACK = 1e-3  # a soft label adds up to 1 but for float32's rounding


def mean_rows(
    sums: Rows,
    weights: Rows,
    pixels: NDArray[np.int64],
    *,
    prior: float = 0.0,
    prior_rows: Rows | None = None,
    min_pixels: int = 0,
) -> tuple[Rows, Known]:
    """c_k = S_k / W_k, (C,C), zeros where there is none; and which classes have one, (C,) bool.

    `prior` is added first as weight of the rows of `prior_rows` (C,C); of one-hot labels where such a row is NaN, and
    without any. A class of fewer than `min_pixels` has no prototype.
    """
    whole = weights + prior
    valid = (whole > 0) & (pixels >= min_pixels)
    mixed = sums + prior * _beginning(len(weights), prior_rows)
    rows = np.divide(mixed, whole[:, None], out=np.zeros_like(mixed), where=valid[:, None])
    return rows, valid


def shrunk(rows: Rows, valid: Known, share: float) -> Rows:
    """(1 - share) rows + share I, for classes that have a prototype; at 1 exactly I."""
    identity = np.eye(len(rows))
    if share == 1:
        return identity
    mixed: Rows = np.where(valid[:, None], (1 - share) * rows + share * identity, 0.0)
    return mixed


def known_rows(rows: Rows) -> Known:
    """Which classes have a row (C,): that of one without is NaN."""
    return np.array([np.isfinite(row).all() for row in rows], np.bool_)


def rows_in(arrays: Mapping[str, NDArray[Any]], name: str, num_classes: int) -> Rows | None:
    """Another domain's rows (C,C), NaN where it knows no class; None where there are none.

    Raises ValueError for what is no matrix of soft labels of these classes.
    """
    rows = arrays.get(name)
    if rows is None:
        return None
    if rows.shape != (num_classes, num_classes) or rows.dtype != np.float64:
        raise _no_soft_labels()
    told = rows[~np.isnan(rows).any(axis=1)]
    if not np.isfinite(told).all() or (told < 0).any() or (np.abs(told.sum(axis=1) - 1) > _SLACK).any():
        raise _no_soft_labels()
    return rows


@dataclass(frozen=True)
class ClassShift:
    """How much of a class's prototype is the class itself, [0,1] in each domain, and where what it lost went.

    NaN where the class was not seen. `taker` is the class whose share in the prototype grew most, by `taken` in [0,1];
    None and NaN where none grew.
    """

    source: float
    target: float
    taker: int | None
    taken: float

    @property
    def difference(self) -> float:
        """Target less source, [-1,1]."""
        return self.target - self.source


def shifts(source: Rows, target: Rows) -> list[ClassShift]:
    """C_target - C_source by class, from two matrices (C,C) with NaN rows for classes not seen.

    >>> shifts(np.array([[0.75, 0.25], [0.5, 0.5]]), np.array([[0.5, 0.5], [np.nan, np.nan]]))[0]
    ClassShift(source=0.75, target=0.5, taker=1, taken=0.25)
    """
    grown = target - source
    return [
        ClassShift(float(source[index, index]), float(target[index, index]), *_taker(row, index))
        for index, row in enumerate(grown)
    ]


def _taker(grown: Rows, own: int) -> tuple[int | None, float]:
    """The other class that grew most, of equals the first, and by how much. NaN is above nothing."""
    others = np.where(np.arange(len(grown)) == own, -np.inf, grown)
    first = int(others.argmax())
    return (first, float(others[first])) if others[first] > 0 else (None, float("nan"))


def _beginning(num_classes: int, rows: Rows | None) -> Rows:
    identity = np.eye(num_classes)
    return identity if rows is None else np.where(known_rows(rows)[:, None], rows, identity)


def _no_soft_labels() -> ValueError:
    return ValueError("the source's prototypes are no soft labels of these classes")
