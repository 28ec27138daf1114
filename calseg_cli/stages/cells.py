"""Owns which pixel of a label each cell of the logits' own grid stands for: the one at the cell's centre."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from calseg_cli.artifacts.geometry import Geometry
from calseg_cli.data.catalog import IGNORE

Centres = NDArray[np.float64]


def cell_labels(label: NDArray[np.uint8], geometry: Geometry, cells_hw: tuple[int, int]) -> Tensor:
    """Labels (h,w) int64 of cells: that of the pixel (H,W) under the cell's centre, 255 where padding is.

    Raises ValueError for a label that is not of `geometry.out_hw`.
    """
    if label.shape != geometry.out_hw:
        raise ValueError(f"a label of {label.shape} for logits of an image of {geometry.out_hw}")
    centres = [
        cell_centres(cells, padded, geometry.align_corners)
        for cells, padded in zip(cells_hw, geometry.padded_hw, strict=True)
    ]
    rows, columns = (
        pixels_under(at, inside, outside)
        for at, inside, outside in zip(centres, geometry.in_hw, geometry.out_hw, strict=True)
    )
    inside = (centres[0] < geometry.in_hw[0])[:, None] & (centres[1] < geometry.in_hw[1])[None]
    return torch.from_numpy(np.where(inside, label[np.ix_(rows, columns)], IGNORE).astype(np.int64))


def cell_centres(cells: int, padded: int, align_corners: bool) -> Centres:
    """Where each cell's centre is along one side, in pixels from the edge of what the network saw."""
    place = np.arange(cells, dtype=np.float64)
    if align_corners:
        return place * ((padded - 1) / max(cells - 1, 1)) + 0.5
    return (place + 0.5) * (padded / cells)


def pixels_under(centres: Centres, inside: int, outside: int) -> NDArray[np.int64]:
    """On which of the `outside` pixels of the image the centres lie, in pixels of the `inside` that the network saw."""
    pixels: NDArray[np.int64] = np.minimum((centres * (outside / inside)).astype(np.int64), outside - 1)
    return pixels
