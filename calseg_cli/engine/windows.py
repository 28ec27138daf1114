"""Owns inference by windows: a large image is answered piece by piece, and where pieces overlap logits are averaged."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from calseg_cli.artifacts.geometry import Size
from calseg_cli.engine.forward import pad_to_divisor
from calseg_cli.engine.network_shape import SegmentationNetwork
from calseg_cli.errors import ConfigError


@dataclass(frozen=True)
class Windows:
    """Windows of `size` (height, width) in pixels of the network's input; each shares at least `overlap` with the next.

    They begin at multiples of the network's stride and divisor, so that all their logits lie on the whole image's grid.
    The last of a row or column ends where the image does. `overlap` is a share of the window, 0 to below 1.
    """

    size: Size
    overlap: float = 1 / 3

    def describe(self) -> str:
        """How logits are made of several windows', for a protocol."""
        return f"mean over windows of {self.size[0]}x{self.size[1]}, overlap {self.overlap:g}"

    def hold(self, image: Tensor) -> bool:
        """Whether an image (...,H,W) is not larger than one window."""
        return image.shape[-2] <= self.size[0] and image.shape[-1] <= self.size[1]

    def check(self, network: SegmentationNetwork) -> None:
        """Raise ConfigError for a size whose windows would not fill whole cells of the network's grid."""
        unit = _unit(network)
        wrong = [side for side in self.size if side % unit and not _is_aligned(side, network)]
        if wrong:
            near = [max(unit, round(side / unit) * unit) for side in self.size]
            raise ConfigError(
                f"predict.window [{self.size[0]}, {self.size[1]}]: this network's windows are multiples of {unit}",
                f"predict.window=[{near[0]},{near[1]}]",
            )

    def places(self, height: int, width: int, network: SegmentationNetwork) -> list[tuple[slice, slice]]:
        """Rows and columns of every window of a padded image, the bottom right one first."""
        unit = _unit(network)
        rows, columns = (
            [slice(start, min(start + side, whole)) for start in _starts(whole, side, self.overlap, unit)]
            for whole, side in zip((height, width), self.size, strict=True)
        )
        return [(row, column) for row in reversed(rows) for column in reversed(columns)]


def window_logits(network: SegmentationNetwork, image: Tensor, windows: Windows, device: torch.device) -> Tensor:
    """Logits (1,C,h,w) float32 on `device`, on the grid that the whole image (1,3,H,W) has.

    The plain mean of the logits of all windows that hold a grid point. Of the image, one window at a time is moved to
    the device; only the sum of logits grows with the image. Raises ConfigError: a size that does not fit the network,
    or a network whose windows do not lie on one grid.
    """
    windows.check(network)
    padded, _ = pad_to_divisor(image, network.divisor)
    height, width = padded.shape[-2:]
    total, count = torch.zeros(0), torch.zeros(0)
    for rows, columns in windows.places(height, width, network):
        logits = network(padded[..., rows, columns].to(device)).float()
        top, left = rows.start // network.stride, columns.start // network.stride
        _check_grid(network, rows, int(logits.shape[-2]))
        _check_grid(network, columns, int(logits.shape[-1]))
        if not total.numel():  # the bottom right window, which says how large the grid is
            grid = (top + logits.shape[-2], left + logits.shape[-1])
            total, count = logits.new_zeros(*logits.shape[:2], *grid), logits.new_zeros(grid)
        inside = logits[..., : _cells(rows, height, network), : _cells(columns, width, network)]
        place = (..., slice(top, top + inside.shape[-2]), slice(left, left + inside.shape[-1]))
        total[place] += inside
        count[place] += 1
    return total / count


def window_grid(network: SegmentationNetwork, image: Tensor, windows: Windows, device: torch.device) -> Size:
    """The size of what `window_logits` returns, from one window."""
    padded, _ = pad_to_divisor(image, network.divisor)
    rows, columns = windows.places(int(padded.shape[-2]), int(padded.shape[-1]), network)[0]
    height, width = network(padded[..., rows, columns].to(device)).shape[-2:]
    return rows.start // network.stride + int(height), columns.start // network.stride + int(width)


def _unit(network: SegmentationNetwork) -> int:
    return math.lcm(network.stride, network.divisor)


def _is_aligned(side: int, network: SegmentationNetwork) -> bool:
    """Whether the last point of an aligned grid lies on the window's last pixel, as with 513 at stride 8."""
    return network.align_corners and side % network.divisor == 0 and side % network.stride == 1


def _starts(whole: int, side: int, overlap: float, unit: int) -> Iterator[int]:
    step = max(unit, int(side * (1 - overlap)) // unit * unit)
    last = max(0, -(-(whole - side) // unit) * unit)
    yield from range(0, last, step)
    yield last


def _cells(taken: slice, whole: int, network: SegmentationNetwork) -> int | None:
    """How many cells of a window's answer lie within it; all (None) where it ends with the image."""
    return None if taken.stop == whole else -(-(taken.stop - taken.start) // network.stride)


def _check_grid(network: SegmentationNetwork, taken: slice, cells: int) -> None:
    """An aligned grid may have one point more than there are whole cells; nothing else keeps to one grid."""
    if cells - -(-(taken.stop - taken.start) // network.stride) not in (0, 1):
        raise ConfigError(
            f"this network answers {cells} cells to {taken.stop - taken.start} pixels, not one every {network.stride}: "
            "its windows cannot be laid together",
            "predict.window=null shows it the whole image",
        )
