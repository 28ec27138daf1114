"""Owns where each pixel of a label lies between the cells of a grid of logits, and the bilinear step between them."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Size = tuple[int, int]


@dataclass(frozen=True, eq=False)
class Taps:
    """For each of n positions along one side: the cells `low` and `high` (n,) int32, and their weights (n,) float32."""

    low: NDArray[np.int32]
    high: NDArray[np.int32]
    weight_low: NDArray[np.float32]
    weight_high: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.low)


@dataclass(frozen=True, eq=False)
class Grid:
    """How a label of `out_hw` pixels reads a grid of `native_hw` cells, by rows and by columns."""

    native_hw: Size
    rows: Taps
    columns: Taps

    @property
    def out_hw(self) -> Size:
        """Rows and columns of the label."""
        return len(self.rows), len(self.columns)

    @property
    def plain(self) -> bool:
        """Whether every pixel is a cell."""
        return self.native_hw == self.out_hw and all(
            np.array_equal(side.low, np.arange(len(side))) and not side.weight_high.any()
            for side in (self.rows, self.columns)
        )


def bilinear_grid(native_hw: Size, out_hw: Size, *, keep: Size | None = None, align_corners: bool = False) -> Grid:
    """The bilinear enlargement of `native_hw` cells to `out_hw` pixels, of which the first `keep` are wanted.

    Positions are those of `torch.nn.functional.interpolate`, worked out in float64 and rounded once.
    Raises ValueError for a side below 1.
    """
    if min(*native_hw, *out_hw) < 1:
        raise ValueError(f"cannot lay {native_hw} cells on {out_hw} pixels")
    kept = keep or out_hw
    rows, columns = (
        _taps(cells, pixels, wanted, align_corners)
        for cells, pixels, wanted in zip(native_hw, out_hw, kept, strict=True)
    )
    return Grid(native_hw, rows, columns)


def enlarge(logits: Tensor, grid: Grid, first: int = 0, last: int | None = None) -> Tensor:
    """Rows [first, last) of logits (C,h,w) at the label's size, (C,n,W) float32.

    Along the columns first, then along the rows, each product and sum rounded by itself: the order of the compiled
    road, and what makes every device give the same bits.
    """
    logits = logits.float()
    if grid.plain:
        return logits[:, first:last]
    part = slice(first, last)
    low, high = (torch.from_numpy(side[part].astype(np.int64)) for side in (grid.rows.low, grid.rows.high))
    if not len(low):
        return logits.new_empty((logits.shape[0], 0, len(grid.columns)))
    base, top = int(low.min()), int(high.max()) + 1
    wide = _lerp(logits[:, base:top], 2, grid.columns, slice(None))
    return _lerp(wide, 1, grid.rows, part, base)


def _lerp(values: Tensor, axis: int, taps: Taps, part: slice, base: int = 0) -> Tensor:
    device = values.device
    low, high = (
        torch.from_numpy(side[part].astype(np.int64) - base).to(device, non_blocking=True)
        for side in (taps.low, taps.high)
    )
    shape = [1, 1, 1]
    shape[axis] = len(low)
    weight_low, weight_high = (
        torch.from_numpy(side[part]).to(device, non_blocking=True).reshape(shape)
        for side in (taps.weight_low, taps.weight_high)
    )
    result = values.index_select(axis, low).mul_(weight_low)
    return result.add_(values.index_select(axis, high).mul_(weight_high))


def _taps(cells: int, pixels: int, wanted: int, align_corners: bool) -> Taps:
    place = np.arange(wanted, dtype=np.float64)
    if align_corners:
        place *= (cells - 1) / (pixels - 1) if pixels > 1 else 0.0
    else:
        place = np.maximum((place + 0.5) * (cells / pixels) - 0.5, 0.0)
    low = np.minimum(np.floor(place), cells - 1)
    high = np.minimum(low + 1, cells - 1)
    weight = np.where(high > low, place - low, 0.0).astype(np.float32)
    rest = (1.0 - weight.astype(np.float64)).astype(np.float32)
    return Taps(low.astype(np.int32), high.astype(np.int32), rest, weight)
