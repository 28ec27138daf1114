"""Owns the figure of several reliability curves, one over the other, with how many pixels each has where."""

import textwrap
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from calseg_cli.report.calibration_figures import RARE_SHARE, log_shares
from calseg_cli.report.data import Compared, Reliability
from calseg_cli.report.drawing import AMBER, BLUE, INK, MUTED, RED, TEAL, VIOLET, clean, lay_out, new_figure, style
from calseg_cli.report.wording import number

_COLORS = (BLUE, AMBER, VIOLET, TEAL, RED, INK)
_MARKS = ("o", "s", "^", "D", "v", "P")  # colours alone do not tell curves apart on every printer


def overlay_figure(results: Sequence[Compared], convention: str = "") -> Figure:
    """Accuracy against confidence of each result, and below it the share of its pixels by bin on a logarithmic scale.

    Bins with fewer than 0.1 % of a result's pixels are pale and not joined. Results without `reliability` are left out.
    """
    curves = [(result, result.reliability) for result in results if result.reliability is not None]
    with style():
        lines = textwrap.wrap(convention, 104)
        above, below = 0.36 + 0.17 * len(curves), 0.13 * len(lines)
        figure = new_figure(5.0, 6.1 + above + below)
        lay_out(figure, rows=2, left=0.74, top=above, bottom=0.5 + below)
        diagram, counts = figure.subplots(2, 1, sharex=True, height_ratios=[3.4, 1.3])
        diagram.plot([0, 1], [0, 1], "--", color=MUTED, linewidth=1)
        for index, (result, reliability) in enumerate(curves):
            color, mark = _COLORS[index % len(_COLORS)], _MARKS[index % len(_MARKS)]
            _draw_curve(diagram, reliability, color, mark, _label(result))
            counts.stairs(
                _shares(reliability), np.append(reliability.lower, reliability.upper[-1]), color=color, linewidth=1.4
            )
        _finish(diagram, counts, [_shares(reliability) for _, reliability in curves])
        figure.text(0.02, 0.01, "\n".join(lines), fontsize=7, color=MUTED, va="bottom")
    return figure


def _label(result: Compared) -> str:
    return f"{clean(result.name, 48)}: ECE {number(result.scores.get('ece'))}"


def _shares(reliability: Reliability) -> NDArray[np.float64]:
    return reliability.count / max(int(reliability.count.sum()), 1)


def _draw_curve(axes: Axes, reliability: Reliability, color: str, mark: str, label: str) -> None:
    shares = _shares(reliability)
    common = shares >= RARE_SHARE
    # A line through a bin of two pixels would be the boldest stroke of the picture and mean nothing.
    axes.plot(reliability.confidence[common], reliability.accuracy[common], color=color, linewidth=1.2, alpha=0.35)
    for chosen, alpha, name in ((common, 1.0, label), ((shares > 0) & ~common, 0.35, None)):
        axes.plot(
            reliability.confidence[chosen],
            reliability.accuracy[chosen],
            mark,
            color=color,
            markersize=4.5,
            alpha=alpha,
            label=name,
        )


def _finish(diagram: Axes, counts: Axes, shares: Sequence[NDArray[np.float64]]) -> None:
    diagram.set(xlim=(0, 1), ylim=(0, 1), ylabel="accuracy")
    diagram.set_title("Reliability")
    if shares:
        diagram.legend(
            loc="lower left",
            bbox_to_anchor=(0.0, 1.075),
            borderaxespad=0.0,
            borderpad=0.0,
            handlelength=1.4,
            numpoints=1,
        )
    counts.set_title("Pixels (log scale)", fontsize=9)
    counts.set_xlabel("confidence")
    present = np.concatenate([row[row > 0] for row in shares]) if shares else np.zeros(0)
    if present.size:
        log_shares(counts, float(present.min()))
