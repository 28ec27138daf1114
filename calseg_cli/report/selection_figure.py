"""Owns the figure of selective prediction: the risk that is left where only the surest pixels are answered."""

import math
from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from calseg_cli.report.data import Selection
from calseg_cli.report.drawing import BLUE, GREY, INK, MUTED, RED, TEAL, lay_out, new_figure, style
from calseg_cli.report.wording import is_missing, number

_COVERAGE, _RISK = 0.8, 0.05  # where `risk_80` and `coverage_5` lie


def selection_figure(selection: Selection, scores: Mapping[str, float]) -> Figure:
    """Risk against coverage between the two orders that bound it: a random one and a perfect one.

    `risk_80` and `coverage_5` of the scores are marked; AURC and AUGRC stand in the title.
    """
    with style():
        figure = new_figure(5.4, 4.5)
        lay_out(figure, left=0.72, right=0.28, top=1.0)
        axes = figure.subplots()
        axes.set(xlim=(0, 1), xlabel="coverage: share of pixels answered, the surest first", ylabel="risk: share wrong")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(lambda share, _: f"{share * 100:.3g} %")
        highest = float(selection.risk.max()) if selection.risk.size else 0.0
        axes.set_ylim(0, highest * 1.08 or 0.01)
        axes.set_title("Selective prediction", pad=50)
        told = f"AURC {number(scores.get('aurc'))} · AUGRC {number(scores.get('augrc'))}"
        axes.set_title(told, loc="right", fontsize=8.5, fontweight="normal", pad=50)
        if selection.risk.size:
            _draw_orders(axes, selection)
            _mark(axes, selection, scores)
            axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, borderaxespad=0.3, borderpad=0)
        else:
            axes.text(0.5, 0.5, "no labelled pixels", transform=axes.transAxes, ha="center", color=MUTED)
    return figure


def _draw_orders(axes: Axes, selection: Selection) -> None:
    coverage, perfect = selection.coverage, selection.perfect()
    axes.fill_between(coverage, perfect, selection.risk, color=RED, alpha=0.12, linewidth=0)
    axes.plot(coverage, selection.risk, color=BLUE, linewidth=2, label="by confidence")
    axes.plot(coverage, perfect, color=TEAL, linewidth=1.4, label="perfect order, errors last")
    random = np.full_like(coverage, selection.error_rate())
    axes.plot(coverage, random, "--", color=GREY, linewidth=1.4, label="random order")


def _mark(axes: Axes, selection: Selection, scores: Mapping[str, float]) -> None:
    """Both scores as dots; the label says the number, and no dot is drawn where there is none."""
    risk, coverage = scores.get("risk_80", math.nan), scores.get("coverage_5", math.nan)
    reached = min(_RISK, selection.error_rate()) if coverage == 1 else _RISK
    for mark, x, y, text in (
        ("o", _COVERAGE, risk, f"risk at 80 %: {number(risk)}"),
        ("D", coverage, reached, f"coverage at 5 %: {number(coverage)}"),
    ):
        if not is_missing(x) and not is_missing(y):
            axes.plot([x], [y], mark, color=INK, markersize=5.5, label=text, clip_on=y > axes.get_ylim()[1])
