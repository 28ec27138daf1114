"""Owns the figure of a value net: the calibration error that it expects of images against the one they have."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from calseg_cli.report.drawing import (
    AMBER,
    BLUE,
    GREY,
    INK,
    MUTED,
    RED,
    TEAL,
    VIOLET,
    clean,
    lay_out,
    longest,
    new_figure,
    style,
)

_COLORS = (INK, BLUE, AMBER, VIOLET, TEAL, RED, GREY)
_MARKS = ("o", "s", "^", "D", "v", "P", "X")  # colours alone do not tell groups apart on every printer
_MOST = len(_COLORS)


@dataclass(frozen=True)
class Group:
    """Images that were changed alike: what was `expected` of each (N,) and what is `true` (N,), both 0 to 1."""

    name: str
    expected: NDArray[np.float64]
    true: NDArray[np.float64]


def value_figure(groups: Sequence[Group], subtitle: str, error: str = "calibration error (ECE)") -> Figure:
    """A dot an image and change, on equal axes; on the dashed line the value net is right."""
    with style():
        names = [clean(group.name) for group in groups]
        width = 4.9 + longest(names) + 0.35
        figure = new_figure(width, 4.9)
        lay_out(figure, left=0.72, right=longest(names) + 0.5, top=0.62, bottom=0.55)
        axes = figure.subplots()
        reach = _reach(groups)
        axes.set(xlim=(0, reach), ylim=(0, reach), xlabel=f"true {error}", ylabel="expected by the value net")
        axes.set_aspect("equal", adjustable="box", anchor="SW")
        axes.plot([0, reach], [0, reach], "--", color=MUTED, linewidth=1)
        axes.set_title("Expected against true calibration error", pad=22)
        axes.text(0, 1.025, subtitle, transform=axes.transAxes, fontsize=8.5, color=MUTED)
        _draw(axes, groups, names)
    return figure


def _draw(axes: Axes, groups: Sequence[Group], names: Sequence[str]) -> None:
    for number, (group, name) in enumerate(zip(groups, names, strict=True)):
        axes.plot(
            group.true,
            group.expected,
            _MARKS[number % _MOST],
            color=_COLORS[number % _MOST],
            markersize=3.6,
            alpha=0.6,
            markeredgewidth=0,
            label=name,
            clip_on=False,
        )
    if any(group.true.size for group in groups):
        axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), borderaxespad=0.0, handletextpad=0.3, markerscale=1.4)
    else:
        axes.text(0.5, 0.5, "no labelled images", transform=axes.transAxes, ha="center", color=MUTED)


def _reach(groups: Sequence[Group]) -> float:
    """The end of both axes: a little beyond the largest value."""
    values = [float(part.max()) for group in groups for part in (group.expected, group.true) if part.size]
    return min(max(values, default=0.1) * 1.06, 1.0) or 0.01
