"""Owns the figure of which classes a network prefers, and how their logits lie against those of all classes."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from calseg_cli.report.data import LogitReport, LogitRow, LogitSpread
from calseg_cli.report.drawing import (
    AMBER,
    BLUE,
    INK,
    MUTED,
    RED,
    TEAL,
    lay_out,
    longest,
    new_figure,
    style,
    tick_names,
)
from calseg_cli.report.wording import is_missing, number

MOST_CLASSES = 24
_ROW, _RIDGE = 0.42, 0.86  # inches of a class, and how much of them its curves may fill
_ABOVE, _BELOW = 1.02, 0.5


def rank_by_bias(rows: Sequence[LogitRow]) -> tuple[list[LogitRow], list[LogitRow]]:
    """The classes with ground truth or a prediction, the most over-predicted first, and those that are not drawn.

    Of more than 24 those of the largest bias on either side are drawn.
    """
    known = sorted((row for row in rows if not is_missing(row.bias)), key=lambda row: -row.bias)
    far = sorted(known, key=lambda row: -abs(row.bias))[:MOST_CLASSES]
    drawn = [row for row in known if any(row is one for one in far)]
    return drawn, [row for row in rows if not any(row is one for one in drawn)]


def bias_figure(logits: LogitReport) -> Figure:
    """A row a class, the most over-predicted on top: at the left its logits over the anchors, at the right its bias.

    Filled curves are the class's logit on its own pixels and on those of other classes, dashed ones the anchors; each
    is drawn to the same height, so place and width are what compares. Bars are the measured bias, dots the bias that
    the distributions of logits alone imply.
    """
    rows, _ = rank_by_bias(logits.rows)
    beside = 0.25 + longest([row.name for row in rows] or ["n/a"])
    with style():
        figure = new_figure(beside + 8.6, _ABOVE + _BELOW + _ROW * max(len(rows), 1))
        lay_out(figure, columns=2, left=beside, right=0.2, top=_ABOVE, bottom=_BELOW, column_gap=0.3)
        ridges, bars = figure.subplots(1, 2, width_ratios=(2.3, 1), sharey=True)
        _draw_ridges(ridges, rows, logits)
        _draw_bias(bars, rows)
        ridges.set_ylim(max(len(rows), 1) - 0.5, -0.62)
        tick_names(ridges, [row.name for row in rows])
        if not rows:
            figure.text(0.5, 0.35, "no labelled pixels", ha="center", color=MUTED)
    return figure


def _draw_ridges(axes: Axes, rows: Sequence[LogitRow], logits: LogitReport) -> None:
    for place, row in enumerate(rows):
        for own, anchor, color in ((row.negative, logits.negative, AMBER), (row.positive, logits.positive, BLUE)):
            foot = place + 0.5 - 0.06
            axes.fill_between(
                logits.grid, foot, foot - _height(own), color=color, alpha=0.4, linewidth=0, zorder=2 + place
            )
            axes.plot(logits.grid, foot - _height(own), color=color, linewidth=0.9, zorder=2 + place)
            axes.plot(logits.grid, foot - _height(anchor), "--", color=INK, linewidth=0.7, alpha=0.7, zorder=2 + place)
            if not is_missing(own.mean):
                axes.plot([own.mean] * 2, [foot, foot - 0.2], color=color, linewidth=2.2, zorder=2.5 + place)
    axes.grid(visible=False, axis="y")
    axes.set_xlim(logits.grid[0], logits.grid[-1] if len(logits.grid) > 1 else logits.grid[0] + 1)
    axes.set_xlabel("logit")
    for anchor in (logits.negative, logits.positive):
        if not is_missing(anchor.mean):
            axes.axvline(anchor.mean, color=INK, linestyle=":", linewidth=1, alpha=0.55)
    axes.set_title("Logits of each class: further right than the anchors pushes a class up", pad=46)
    handles = [
        Patch(color=BLUE, alpha=0.5, label="on its own pixels (positive)"),
        Patch(color=AMBER, alpha=0.5, label="on pixels of other classes (negative)"),
        Line2D([], [], color=INK, linestyle="--", linewidth=0.8, label="the same of all classes together (anchors)"),
        Line2D([], [], color=MUTED, linewidth=2.2, label="mean (dotted line: of the anchor)"),
    ]
    axes.legend(handles=handles, loc="lower left", bbox_to_anchor=(0, 1), ncols=2, borderaxespad=0.3, borderpad=0)


def _height(spread: LogitSpread) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """The density with its peak at the height of a ridge; flat where there are no logits."""
    density = np.nan_to_num(spread.density)
    return density / (density.max() or 1.0) * _RIDGE


def _draw_bias(axes: Axes, rows: Sequence[LogitRow]) -> None:
    places, bias = np.arange(len(rows)), np.array([row.bias for row in rows])
    implied = np.array([row.bias_by_logits for row in rows])
    axes.barh(places, bias, color=[RED if value > 0 else TEAL for value in bias], alpha=0.75, height=0.5)
    axes.plot(implied, places, "o", color=INK, markersize=4, markeredgewidth=0)
    axes.axvline(0, color=MUTED, linewidth=0.8)
    side = float(np.nanmax(np.abs(np.concatenate([bias, implied, [0.01]])))) * 1.7
    axes.set_xlim(-side, side)
    for place, value in enumerate(bias):
        end = max(value, rows[place].bias_by_logits) if value > 0 else min(value, rows[place].bias_by_logits)
        axes.annotate(
            number(value, decimals=3, signed=True),
            (end, place),
            (7 if value > 0 else -7, 0),
            textcoords="offset points",
            ha="left" if value > 0 else "right",
            va="center",
            fontsize=7,
            color=MUTED,
        )
    axes.grid(visible=False, axis="y")
    axes.tick_params(labelleft=False)
    axes.xaxis.set_major_formatter(lambda value, _: number(value, decimals=2, signed=True))
    axes.set_xlabel("predicted too rarely  |  too often")
    axes.set_title("Bias", pad=46)
    handles = [
        Patch(color=RED, alpha=0.75, label="measured, over-predicted"),
        Patch(color=TEAL, alpha=0.75, label="measured, under-predicted"),
        Line2D([], [], color=INK, marker="o", linestyle="", markersize=4, label="implied by the logits"),
    ]
    axes.legend(handles=handles, loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0.3, borderpad=0)
