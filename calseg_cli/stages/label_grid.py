"""Owns the way from stored logits to the pixels of a label: which grid they lie on.

Scores, pseudo-labels, pictures and exports go this way, so they agree on every pixel's class and confidence.
"""

from torch import Tensor

from calseg_cli.artifacts.geometry import Geometry
from calseg_cli.metrics.grid import Grid, bilinear_grid, enlarge


def label_grid(logits: Tensor, geometry: Geometry) -> tuple[Tensor, Grid]:
    """Logits (C,h,w) and how they lie on the label of `geometry.out_hw`.

    One bilinear step to the size the network saw, of which padding is left out. Where the label has another size than
    the network's input and there is padding, that step is done here, and the grid is of a second one.
    """
    height, width = (int(side) for side in logits.shape[-2:])
    corners = geometry.align_corners
    if geometry.pad == (0, 0):
        return logits, bilinear_grid((height, width), geometry.out_hw, align_corners=corners)
    grid = bilinear_grid((height, width), geometry.padded_hw, keep=geometry.in_hw, align_corners=corners)
    if geometry.out_hw == geometry.in_hw:
        return logits, grid
    return enlarge(logits, grid), bilinear_grid(geometry.in_hw, geometry.out_hw, align_corners=corners)
