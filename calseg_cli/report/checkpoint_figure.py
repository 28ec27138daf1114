"""Owns the figure of a choice among checkpoints: their scores over training, the chosen one marked, refused hollow."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, MaxNLocator
from numpy.typing import NDArray

from calseg_cli.report.drawing import BLUE, GREY, INK, MUTED, RED, TEAL, lay_out, longest, new_figure, style, tick_names

_COLORS = (BLUE, TEAL)
_MOST_NAMES = 24
_MOST_STEPS = 8


@dataclass(frozen=True)
class CheckpointScores:
    """One score of every checkpoint: `values` (N,3) as value, low and high end, NaN where not known.

    `floor` is drawn where it is given: whoever is below is refused.
    """

    label: str
    better: Literal["lower", "higher"]
    values: NDArray[np.float64]
    floor: float | None = None


@dataclass(frozen=True)
class Course:
    """The checkpoints in the order of training, and one or two scores of them; the first score decided."""

    title: str
    names: tuple[str, ...]
    steps: tuple[int, ...]
    chosen: int | None
    refused: tuple[bool, ...]
    scores: tuple[CheckpointScores, ...]


def checkpoint_figure(course: Course) -> Figure:
    """A panel a score, one above the other: dots with upright intervals over the steps, or over names.

    Steps are the axis where they are known and differ. Refused checkpoints are hollow, the chosen one has a ring and
    an upright line. Checkpoints without a score are left out of its panel.
    """
    by_step = min(course.steps, default=-1) >= 0 and len(set(course.steps)) == len(course.steps)
    where = np.array(course.steps if by_step else range(len(course.steps)), np.float64)
    with style():
        named = not by_step and len(course.names) <= _MOST_NAMES
        below = 0.25 + (0.75 * longest(course.names) if named else 0.3)
        figure = new_figure(5.6, 0.95 + 1.9 * len(course.scores) + below)
        lay_out(figure, rows=len(course.scores), left=0.72, right=0.2, top=0.85, bottom=below, row_gap=0.34)
        panels = list(figure.subplots(len(course.scores), 1, sharex=True, squeeze=False)[:, 0])
        for axes, scores, color in zip(panels, course.scores, _COLORS, strict=False):
            _draw(axes, course, scores, where, color)
        _finish(figure, panels, course, where, by_step=by_step, named=named)
    return figure


def _draw(axes: Axes, course: Course, scores: CheckpointScores, where: NDArray[np.float64], color: str) -> None:
    value, low, high = scores.values.T
    hollow = np.array(course.refused, bool)
    axes.set_title(f"{scores.label} ({scores.better} is better)", fontsize=9)
    axes.plot(where[~np.isnan(value)], value[~np.isnan(value)], color=color, linewidth=1, alpha=0.35)
    axes.vlines(where, low, high, color=color, linewidth=1.4, alpha=0.8)
    for chosen, face in ((~hollow, color), (hollow, "white")):
        axes.plot(where[chosen], value[chosen], "o", color=color, markerfacecolor=face, markersize=5)
    if course.chosen is not None:
        axes.axvline(where[course.chosen], color=INK, linewidth=0.8, linestyle=":", zorder=0.5)
        axes.plot([where[course.chosen]], [value[course.chosen]], "o", color=INK, markerfacecolor="none", markersize=11)
    if scores.floor is not None:
        axes.axhline(scores.floor, color=RED, linewidth=1, linestyle="--", zorder=0.6)
    axes.margins(x=0.06, y=0.14)
    axes.yaxis.set_major_locator(MaxNLocator(5))
    if not (~np.isnan(value)).any():
        axes.text(0.5, 0.5, "not known", transform=axes.transAxes, ha="center", color=MUTED)


def _finish(
    figure: Figure, panels: Sequence[Axes], course: Course, where: NDArray[np.float64], *, by_step: bool, named: bool
) -> None:
    height = float(figure.get_size_inches()[1])
    figure.text(0.02, 1 - 0.1 / height, course.title, fontsize=10, fontweight="bold", color=INK, va="top")
    panels[0].legend(
        handles=_legend(panels[0], floor=any(scores.floor is not None for scores in course.scores)),
        loc="lower left",
        bbox_to_anchor=(0, 1.16),
        ncols=4,
        borderaxespad=0,
        borderpad=0,
        handletextpad=0.4,
        columnspacing=1.2,
    )
    last = panels[-1]
    if by_step:
        last.set_xlabel("training step")
        last.xaxis.set_major_locator(
            FixedLocator(where.tolist()) if len(where) <= _MOST_STEPS else MaxNLocator(8, integer=True)
        )
    elif named:
        tick_names(last, list(course.names), x=True, rotation=35)
    else:
        last.set_xlabel("checkpoint")
    if len(where) == 1:
        last.set_xlim(where[0] - 1, where[0] + 1)


def _legend(axes: Axes, *, floor: bool) -> list[object]:
    """The marks in ink or grey: the same in every panel."""
    marks = [("chosen", INK, "none", 9), ("sound", GREY, GREY, 5), ("refused", GREY, "white", 5)]
    handles: list[object] = [
        axes.plot([], [], "o", color=color, markerfacecolor=face, markersize=size, label=label)[0]
        for label, color, face, size in marks
    ]
    if floor:
        handles += axes.plot([], [], "--", color=RED, linewidth=1, label="floor on mIoU")
    return handles
