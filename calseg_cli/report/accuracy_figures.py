"""Owns the figures about right and wrong: the confusion matrix, and mIoU against ECE image by image."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from numpy.typing import NDArray

from calseg_cli.report.drawing import (
    BLUE,
    GREY,
    INK,
    MUTED,
    PAPER,
    RED,
    TEAL,
    clean,
    lay_out,
    longest,
    new_figure,
    style,
    tick_names,
)
from calseg_cli.report.wording import is_missing

MOST_NUMBERS = 20
_RASTER_ABOVE = 1500


def confusion_figure(confusion: NDArray[np.int64], class_names: Sequence[str]) -> Figure:
    """The confusion matrix as percentages of each true class (row); blue is right, red is wrong.

    Colour grows with the square root of the share, so that small confusions can be seen. Up to 20 classes have their
    numbers written in; rows of classes that do not occur stay grey.
    """
    num_classes = len(class_names)
    cell = 0.36 if num_classes <= MOST_NUMBERS else 0.235
    with style():
        side = max(num_classes * cell, 1.6)
        size = 8.5 if num_classes <= MOST_NUMBERS else 7
        beside, above = 0.3 + longest(class_names, size), 0.4 + 0.75 * longest(class_names, size)
        figure = new_figure(beside + side + 0.75 * longest(class_names[-1:], size), above + side + 0.1)
        lay_out(figure, left=beside, top=above, bottom=0.1, right=0.75 * longest(class_names[-1:], size))
        axes = figure.subplots()
        shares = row_shares(confusion)
        axes.imshow(_confusion_colors(shares), interpolation="none", aspect="equal")
        axes.grid(visible=False)
        for line in np.arange(num_classes + 1) - 0.5:
            axes.axhline(line, color=PAPER, linewidth=1)
            axes.axvline(line, color=PAPER, linewidth=1)
        axes.xaxis.tick_top()
        axes.xaxis.set_label_position("top")
        axes.set(xlabel="predicted class", ylabel="true class (rows add up to 100 %)")
        axes.spines[:].set_visible(False)
        tick_names(axes, list(class_names))
        tick_names(axes, list(class_names), x=True, rotation=45)
        axes.tick_params(labelsize=size)
        if num_classes <= MOST_NUMBERS:
            _write_shares(axes, shares)
    return figure


def row_shares(confusion: NDArray[np.int64]) -> NDArray[np.float64]:
    """Each row of (C,C) divided by its sum; NaN where a class does not occur.

    >>> row_shares(np.array([[3, 1], [0, 0]])).tolist()
    [[0.75, 0.25], [nan, nan]]
    """
    total = confusion.sum(axis=1, keepdims=True)
    return np.where(total > 0, confusion / np.maximum(total, 1), np.nan)


def _confusion_colors(shares: NDArray[np.float64]) -> NDArray[np.float64]:
    """RGBA (C,C,4): see-through where small, so that it suits light and dark paper."""
    colors = np.empty((*shares.shape, 4))
    colors[..., :3] = to_rgb(RED)
    colors[np.eye(len(shares), dtype=bool), :3] = to_rgb(BLUE)
    colors[..., 3] = np.sqrt(np.nan_to_num(shares))
    colors[np.isnan(shares)] = (*to_rgb(GREY), 0.25)
    return colors


def _write_shares(axes: Axes, shares: NDArray[np.float64]) -> None:
    for (row, column), share in np.ndenumerate(shares):
        if share >= 0.005:
            color = "white" if share > 0.36 else INK
            axes.text(column, row, f"{share * 100:.0f}", ha="center", va="center", fontsize=7.5, color=color)
        elif np.isnan(share) and row == column:
            axes.text(column, row, "n/a", ha="center", va="center", fontsize=7, color=MUTED)


def images_figure(
    images: Sequence[Mapping[str, Any]], scores: Mapping[str, float], marked: Mapping[str, str] | None = None
) -> Figure:
    """One dot an image: its mIoU against its own ECE, red where over-confident, teal where under-confident.

    `marked` maps ids of images to a word; their dots get a ring, and the first of each word has it beside.
    """
    drawn = [row for row in images if not is_missing(row.get("miou")) and not is_missing(row.get("ece"))]
    with style():
        figure = new_figure(6.4, 4.2)
        lay_out(figure)
        axes = figure.subplots()
        for over, color, name in ((True, RED, "over-confident"), (False, TEAL, "under-confident")):
            some = [row for row in drawn if _is_over(row) is over]
            if some:
                axes.plot(
                    [row["miou"] for row in some],
                    [row["ece"] for row in some],
                    "o",
                    color=color,
                    alpha=0.65,
                    markersize=4.5,
                    markeredgewidth=0,
                    label=f"{name} ({len(some)})",
                    rasterized=len(some) > _RASTER_ABOVE,
                )
        _draw_dataset_lines(axes, scores)
        _mark(axes, drawn, marked or {})
        axes.set(xlabel="mIoU of the image", ylabel="ECE of the image")
        axes.set_xlim(left=max(axes.get_xlim()[0], 0), right=min(axes.get_xlim()[1], 1.02))
        axes.set_ylim(bottom=0, top=max([row["ece"] for row in drawn], default=1.0) * 1.12 or 0.01)
        if drawn:
            axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, borderaxespad=0.2)
        else:
            axes.text(0.5, 0.5, "no image with labelled pixels", transform=axes.transAxes, ha="center", color=MUTED)
    return figure


def _is_over(row: Mapping[str, Any]) -> bool:
    return bool(row.get("confidence", 0) >= row.get("accuracy", 0))


def _draw_dataset_lines(axes: Axes, scores: Mapping[str, float]) -> None:
    ece, miou = scores.get("ece"), scores.get("miou")
    if ece is not None and not is_missing(ece):
        axes.axhline(ece, color=MUTED, linestyle="--", linewidth=1, label="dataset")
    if miou is not None and not is_missing(miou):
        axes.axvline(miou, color=MUTED, linestyle="--", linewidth=1)


def _mark(axes: Axes, images: Sequence[Mapping[str, Any]], marked: Mapping[str, str]) -> None:
    """A ring around every image of `marked`; the word beside the first of each, as they lie close together."""
    rows = {row["id"]: row for row in images}
    told: set[str] = set()
    for name, word in marked.items():
        if name in rows:
            place = (rows[name]["miou"], rows[name]["ece"])
            axes.plot(*place, "o", markersize=8, markerfacecolor="none", markeredgecolor=INK)
            if word not in told:
                axes.annotate(clean(word), place, (6, 5), textcoords="offset points", fontsize=8)
            told.add(word)
