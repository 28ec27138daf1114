"""Owns what is kept of each image: counts and sums small enough to hold for a whole dataset."""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from calseg_cli.errors import DataError

COARSE_BINS = 300
"""Bins of the histogram of one image; 10, 12, 15, 20, 25 and 30 divide it."""


@dataclass(frozen=True, eq=False)
class ImageRows:
    """A table with a row an image, sorted by `ids`: I images, C classes.

    `confusion` (I,C,C) int64, rows true; `coarse` (I,3,300) int64: pixels, right ones, fixed-point confidence by bin;
    `ignored` and `invalid` (I,) int64 pixels: without a class, and labelled but with a NaN or infinite logit;
    `nll`, `brier`, `brier_top` (I,) float64: sums over the valid pixels, which are all that is in the confusion matrix.
    """

    ids: tuple[str, ...]
    confusion: NDArray[np.int64]
    coarse: NDArray[np.int64]
    ignored: NDArray[np.int64]
    invalid: NDArray[np.int64]
    nll: NDArray[np.float64]
    brier: NDArray[np.float64]
    brier_top: NDArray[np.float64]

    def __post_init__(self) -> None:
        images, classes = len(self.ids), self.confusion.shape[-1]
        shapes = {"confusion": (images, classes, classes), "coarse": (images, 3, COARSE_BINS)}
        for name, array in self.arrays().items():
            if array.shape != shapes.get(name, (images,)):
                raise ValueError(f"{name} of {images} images and {classes} classes has the shape {array.shape}")

    @classmethod
    def zeros(cls, num_classes: int) -> "ImageRows":
        """A table without rows."""
        whole = np.zeros(0, np.int64)
        real = np.zeros(0, np.float64)
        empty = np.zeros((0, num_classes, num_classes), np.int64)
        return cls((), empty, np.zeros((0, 3, COARSE_BINS), np.int64), whole, whole, real, real, real)

    @property
    def num_classes(self) -> int:
        """How many classes the confusion matrices have."""
        return int(self.confusion.shape[-1])

    @property
    def valid(self) -> NDArray[np.int64]:
        """The pixels that were measured, (I,)."""
        pixels: NDArray[np.int64] = self.confusion.sum(axis=(1, 2))
        return pixels

    def arrays(self) -> dict[str, NDArray[np.int64] | NDArray[np.float64]]:
        """All columns but the ids, by name."""
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name != "ids"}


def stack(tables: Sequence[ImageRows]) -> ImageRows:
    """One table of all rows, sorted by id, so that any order of merging gives the same arrays.

    Raises DataError where an image is in two tables: it would be counted twice.
    """
    ids = np.array([name for table in tables for name in table.ids], dtype=object)
    order = row_order([table.ids for table in tables])
    ids = ids[order]
    twice = sorted({str(name) for name in ids[1:][ids[1:] == ids[:-1]]})
    if twice:
        raise DataError(
            f"{len(twice)} image(s) measured twice: {', '.join(twice[:5])}",
            "give each image one id and measure it once",
        )
    columns = {name: np.concatenate([table.arrays()[name] for table in tables])[order] for name in tables[0].arrays()}
    return ImageRows(tuple(ids.tolist()), **columns)


def row_order(ids: Sequence[Sequence[str]]) -> NDArray[np.intp]:
    """Where the rows of the stacked table come from: the order of all ids, sorted, in the tables one after another."""
    order: NDArray[np.intp] = np.argsort(np.array([name for one in ids for name in one], dtype=object), kind="stable")
    return order


def coarsen(array: NDArray[np.int64]) -> NDArray[np.int64]:
    """(G, 4800) counts as one row of coarse bins (300,), over all groups."""
    coarse: NDArray[np.int64] = array.sum(axis=0).reshape(COARSE_BINS, -1).sum(axis=1)
    return coarse
