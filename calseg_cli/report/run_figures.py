"""Owns the figures about runs: how training went, and results side by side."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from calseg_cli.report.calibration_figures import RARE_SHARE
from calseg_cli.report.data import Compared
from calseg_cli.report.drawing import (
    AMBER,
    BLUE,
    INK,
    MUTED,
    RED,
    SERIES,
    clean,
    lay_out,
    longest,
    new_figure,
    style,
    tick_names,
)
from calseg_cli.report.wording import is_missing, score_label, score_text

COMPARED = ("miou", "ece", "nll")


def training_curves(records: Sequence[Mapping[str, Any]]) -> Figure:
    """Loss and its terms, learning rate, and validation mIoU and ECE against the step.

    `records` are the lines of a stage's log.jsonl: "step" events with loss, terms and lr, "validation" events with
    miou and ece. Whatever is absent or null is left out.
    """
    steps = [record for record in records if record.get("event") == "step"]
    checks = [record for record in records if record.get("event") == "validation"]
    with style():
        figure = new_figure(9.6, 2.6)
        lay_out(figure, columns=4, left=0.4, column_gap=0.62)
        loss, rate, accuracy, calibration = figure.subplots(1, 4)
        loss.set_title("loss")
        terms = sorted({name for record in steps for name in record.get("terms") or {}})
        _draw(loss, [(record["step"], record.get("loss")) for record in steps], INK, "sum" if len(terms) > 1 else "")
        for index, name in enumerate(terms if len(terms) > 1 else []):
            values = [(record["step"], (record.get("terms") or {}).get(name)) for record in steps]
            _draw(loss, values, SERIES[(index + 1) % len(SERIES)], clean(name))
        if len(terms) > 1:
            loss.legend()
        for axes, events, key, color, title in (
            (rate, steps, "lr", AMBER, "learning rate"),
            (accuracy, checks, "miou", BLUE, "validation mIoU"),
            (calibration, checks, "ece", RED, "validation ECE"),
        ):
            axes.set_title(title)
            _draw(axes, [(record["step"], record.get(key)) for record in events], color, "")
        rate.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        for axes in (loss, rate, accuracy, calibration):
            axes.set_xlabel("step")
            axes.locator_params(axis="x", nbins=4)
            axes.set_ylim(bottom=0)
    return figure


def _draw(axes: Axes, points: Sequence[tuple[int, Any]], color: str, label: str) -> None:
    kept = [(step, value) for step, value in points if not is_missing(value)]
    if not kept:
        axes.text(0.5, 0.5, "none", transform=axes.transAxes, ha="center", color=MUTED)
        return
    marker = "o" if len(kept) < 20 else ""
    axes.plot(*zip(*kept, strict=True), color=color, marker=marker, markersize=3.5, linewidth=1.3, label=label)


def comparison_figure(results: Sequence[Compared]) -> Figure:
    """Several results side by side: bars of mIoU, ECE and NLL, and their reliability curves where given."""
    curves = [result for result in results if result.reliability is not None]
    colors = {result.name: SERIES[index % len(SERIES)] for index, result in enumerate(results)}
    with style():
        height = max(3.0, 0.9 + 0.32 * len(results) * len(COMPARED))
        figure = new_figure(9.6, height)
        beside = 0.15 + longest((result.name for result in results), 9)
        lay_out(figure, rows=len(COMPARED), columns=2 if curves else 1, left=beside, column_gap=0.8)
        grid = figure.add_gridspec(len(COMPARED), 2 if curves else 1, width_ratios=[1.5, 1] if curves else [1])
        for index, key in enumerate(COMPARED):
            _draw_bars(figure.add_subplot(grid[index, 0]), results, key, [colors[result.name] for result in results])
        if curves:
            _draw_reliabilities(figure.add_subplot(grid[:, 1]), curves, colors)
    return figure


def _draw_bars(axes: Axes, results: Sequence[Compared], key: str, colors: Sequence[str]) -> None:
    values = [result.scores.get(key, np.nan) for result in results]
    places = range(len(results))
    axes.barh(places, np.nan_to_num(values), color=colors, height=0.62)
    longest = max([value for value in values if not is_missing(value)], default=0.0)
    for place, value in zip(places, values, strict=True):
        text = score_text(key, value)
        axes.text((0 if is_missing(value) else value) + longest * 0.015, place, text, va="center", fontsize=8.5)
    axes.set_xlim(0, longest * 1.15 or 1)
    axes.set_title({"miou": "mIoU, higher is better"}.get(key, f"{score_label(key)}, lower is better"), fontsize=9)
    axes.set_ylim(len(results) - 0.5, -0.5)
    tick_names(axes, [result.name for result in results])
    axes.grid(visible=False, axis="y")
    axes.set_xticks([])
    axes.spines["bottom"].set_visible(False)


def _draw_reliabilities(axes: Axes, results: Sequence[Compared], colors: Mapping[str, str]) -> None:
    axes.plot([0, 1], [0, 1], "--", color=MUTED, linewidth=1)
    for result in results:
        assert result.reliability is not None
        some = result.reliability.count > RARE_SHARE * result.reliability.count.sum()
        axes.plot(
            result.reliability.confidence[some],
            result.reliability.accuracy[some],
            "o-",
            markersize=3.2,
            color=colors[result.name],
        )
    axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="confidence", ylabel="accuracy", aspect="equal")
    axes.set_title("Reliability", fontsize=9)
