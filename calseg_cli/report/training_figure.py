"""Owns the picture of one moment of self-training: what teacher and student make of an image, with the maps' scales."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray

from calseg_cli.report.data import Color, Picture
from calseg_cli.report.drawing import MUTED, clean, lay_out, new_figure, style
from calseg_cli.report.pictures import HONEST, TOO_SURE, TOO_UNSURE, confidence_map, scale_to
from calseg_cli.report.pseudo_pictures import STRIPE, striped_labels

FURTHEST = 2.0
"""Temperatures from 1/FURTHEST to FURTHEST have colours of their own; beyond they have those of the ends."""
_WIDE, _PIXELS = 2.8, 560  # of a panel: inches, and pixels at the resolution that figures are saved in
_BAR, _GAP, _TITLE, _LEGEND_ROW = 0.09, 0.36, 0.24, 0.19  # inches
_PER_ROW = 7  # classes in a row of the legend, of four columns of panels


@dataclass(frozen=True)
class Panel:
    """One map of H x W: a picture (H,W,3); classes in their colours (H,W,3); confidence or temperatures (H,W)."""

    title: str
    values: NDArray[Any]
    kind: Literal["image", "classes", "confidence", "temperature"] = "image"


def temperature_map(temperatures: NDArray[Any]) -> Picture:
    """Temperatures (H,W) > 0 by their logarithm: nearly white at 1, red above (made less sure), teal below.

    The scale is the same for every picture.

    >>> temperature_map(np.array([[0.5, 1.0, 2.0, 9.0]]))[0].tolist()
    [[0, 105, 100], [247, 247, 246], [196, 8, 32], [196, 8, 32]]
    """
    far = np.clip(np.log(temperatures.astype(np.float64)) / np.log(FURTHEST), -1, 1)[..., None]
    white, red, teal = (np.array(color, dtype=np.float64) for color in (HONEST, TOO_SURE, TOO_UNSURE))
    colors = white + np.abs(far) * (np.where(far > 0, red, teal) - white)
    picture: Picture = np.rint(colors).astype(np.uint8)
    return picture


_COLORED: dict[str, Callable[[NDArray[Any]], Picture]] = {
    "confidence": confidence_map,
    "temperature": temperature_map,
}


def taught_classes(
    labels: NDArray[Any], weights: NDArray[Any], palette: Sequence[Color], ignore: int
) -> NDArray[np.uint8]:
    """Classes (H,W) in their colours; striped where the weight is 0, and so nothing is taught.

    >>> taught_classes(np.array([[0, 0]]), np.array([[0.5, 0.0]]), [(1, 2, 3)], 255)[0].tolist()
    [[1, 2, 3], [255, 255, 255]]
    """
    return striped_labels(np.where(weights == 0, ignore, labels), palette, ignore)


def training_figure(
    title: str, rows: Sequence[Sequence[Panel]], names: Sequence[str], palette: Sequence[Color]
) -> Figure:
    """Panels of one size in rows, a scale below each map that has one, and the classes' colours at the foot."""
    columns = max(len(row) for row in rows)
    height, width = rows[0][0].values.shape[:2]
    per_row = max(1, _PER_ROW * columns // 4)
    with style():
        tall = _WIDE * height / width
        below = 0.2 + _LEGEND_ROW * -(-(len(names) + 1) // per_row)
        inches = (0.2 + columns * (_WIDE + 0.12), 0.3 + len(rows) * (tall + _TITLE + _GAP) - _GAP + below)
        figure = new_figure(*inches)
        lay_out(
            figure,
            rows=len(rows),
            columns=columns,
            left=0.16,
            right=0.16,
            top=0.3 + _TITLE,
            bottom=below,
            row_gap=_GAP + _TITLE,
            column_gap=0.12,
        )
        axes = figure.subplots(len(rows), columns, squeeze=False)
        for row, places in zip(rows, axes, strict=True):
            for place in places:
                place.set_axis_off()
            for panel, place in zip(row, places, strict=False):
                _draw(place, panel, tall)
        figure.text(0.16 / inches[0], 1 - 0.12 / inches[1], clean(title, 90), va="top", weight="bold", size=10)
        patches = [
            Patch(facecolor=_hex(color), edgecolor=MUTED, linewidth=0.4, label=clean(name))
            for name, color in zip(names, palette, strict=False)
        ]
        patches.append(Patch(facecolor="white", edgecolor=_hex(STRIPE[1]), hatch="/////", label="not taught"))
        figure.legend(
            handles=patches,
            loc="lower left",
            bbox_to_anchor=(0.12 / inches[0], 0.0),
            ncols=per_row,
            handlelength=1.2,
            columnspacing=1.2,
        )
    return figure


def _hex(color: Color) -> str:
    return "#" + "".join(f"{value:02x}" for value in color)


def _draw(axes: Axes, panel: Panel, tall: float) -> None:
    colored = _COLORED.get(panel.kind)
    picture = panel.values if colored is None else colored(panel.values)
    axes.imshow(scale_to(picture, _PIXELS, smooth=panel.kind == "image"), aspect="auto", interpolation="nearest")
    axes.set_title(panel.title, fontsize=8.5, fontweight="normal", pad=3)
    if colored is not None:
        _scale(axes, panel.kind, colored, tall)


def _scale(axes: Axes, kind: str, colored: Callable[[NDArray[Any]], Picture], tall: float) -> None:
    """A strip of the colours below a panel, and what they stand for."""
    bar = axes.inset_axes((0.02, -(0.05 + _BAR) / tall, 0.96, _BAR / tall))
    if kind == "temperature":
        values, ticks = np.geomspace(1 / FURTHEST, FURTHEST, 257), [1 / FURTHEST, 2**-0.5, 1.0, 2**0.5, FURTHEST]
        places, told = np.log(ticks), [f"≤{ticks[0]:g}", "0.71", "1", "1.41", f"≥{ticks[-1]:g}"]
        ends = (float(np.log(values[0])), float(np.log(values[-1])))
    else:
        values, places, ends = np.linspace(0, 1, 257), np.linspace(0, 1, 5), (0.0, 1.0)
        told = [f"{tick:g}" for tick in places]
    bar.imshow(colored(values[None]), aspect="auto", extent=(*ends, 0.0, 1.0))
    bar.set_xticks(list(places), told, fontsize=7)
    bar.tick_params(pad=1)
    bar.set_yticks([])
    bar.grid(visible=False)
