"""Owns the figures about trust: the reliability diagram and the histogram of confidence."""

import math
import textwrap
from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from calseg_cli.report.data import ConfidenceHistogram, Intervals, Reliability
from calseg_cli.report.drawing import BLUE, GREY, INK, MUTED, PAPER, RED, TEAL, lay_out, new_figure, style
from calseg_cli.report.wording import is_missing, number, score_text, tendency

RARE_SHARE = 0.001


def reliability_figure(
    reliability: Reliability, scores: Mapping[str, float], convention: str = "", intervals: Intervals | None = None
) -> Figure:
    """Accuracy against confidence by bins with the gaps, what each bin adds to the ECE, and how many pixels it has.

    With `intervals` that have the bins' accuracy, each dot has its own.
    """
    with style():
        lines = [line for part in (convention, _interval_note(intervals)) for line in textwrap.wrap(part, 98)]
        below = 0.13 * len(lines)
        figure = new_figure(4.7, 6.6 + below)
        lay_out(figure, rows=3, bottom=0.5 + below)
        diagram, contribution, counts = figure.subplots(3, 1, sharex=True, height_ratios=[4.2, 1.25, 1.25])
        _draw_diagram(diagram, reliability, scores)
        if intervals is not None and intervals.bin_accuracy is not None:
            _draw_intervals(diagram, reliability, intervals.bin_accuracy)
        _draw_contribution(contribution, reliability)
        _draw_counts(counts, reliability, scores)
        counts.set(xlim=(0, 1), xlabel="confidence")
        figure.text(0.02, 0.01, "\n".join(lines), fontsize=7, color=MUTED, va="bottom")
    return figure


def _interval_note(intervals: Intervals | None) -> str:
    if intervals is None or intervals.bin_accuracy is None:
        return ""
    if np.isnan(intervals.bin_accuracy).all():
        return "No intervals: they need labelled pixels in two images or more."
    return f"Upright lines: {intervals.level * 100:.4g} % intervals of {intervals.resamples} resamples of whole images"


def _draw_intervals(axes: Axes, reliability: Reliability, accuracy: NDArray[np.float64]) -> None:
    known = ~np.isnan(accuracy[:, 0]) & (reliability.count > 0)
    rare = reliability.share() < RARE_SHARE
    for where, alpha in ((known & ~rare, 1.0), (known & rare, 0.35)):
        axes.vlines(reliability.confidence[where], *accuracy[where].T, color=INK, linewidth=1.3, alpha=alpha, zorder=3)
        for edge in accuracy[where].T:
            axes.plot(reliability.confidence[where], edge, "_", color=INK, markersize=4.5, alpha=alpha)


def _draw_diagram(axes: Axes, reliability: Reliability, scores: Mapping[str, float]) -> None:
    faded = np.where(reliability.share() < RARE_SHARE, 0.35, 1.0)
    center, width = _places(reliability)
    for where, alpha in ((faded == 1, 1.0), (faded < 1, 0.35)):
        some = where & (reliability.count > 0)
        accuracy, confidence = reliability.accuracy[some], reliability.confidence[some]
        shared = np.minimum(accuracy, confidence)
        for bottom, top, color, strength in (
            (np.zeros_like(shared), shared, BLUE, 0.75),
            (shared, confidence, RED, 0.3),
            (shared, accuracy, TEAL, 0.5),
        ):
            axes.bar(
                center[some],
                top - bottom,
                width[some],
                bottom=bottom,
                color=color,
                alpha=strength * alpha,
                edgecolor=PAPER,
                linewidth=0.8,
            )
        axes.plot(confidence, accuracy, "o", color=INK, markersize=3.2, alpha=alpha)
    axes.plot([0, 1], [0, 1], "--", color=MUTED, linewidth=1)
    axes.set(ylim=(0, 1), ylabel="accuracy", title="Reliability")
    axes.set_title(_summary(scores), loc="right", fontsize=8.5, fontweight="normal")
    if not reliability.count.any():
        _say_empty(axes, 0.7, 0.3)


def _say_empty(axes: Axes, x: float = 0.5, y: float = 0.5) -> None:
    axes.text(x, y, "no labelled pixels", transform=axes.transAxes, ha="center", va="center", color=MUTED)


def _places(bins: Reliability | ConfidenceHistogram) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    return (bins.lower + bins.upper) / 2, bins.upper - bins.lower


def _summary(scores: Mapping[str, float]) -> str:
    gap = scores.get("signed_gap", math.nan)
    word = "" if is_missing(gap) else f" ({tendency(gap)})"
    return f"ECE {number(scores.get('ece'))} · signed gap {score_text('signed_gap', gap)}{word}"


def _draw_contribution(axes: Axes, reliability: Reliability) -> None:
    center, width = _places(reliability)
    added = reliability.contribution()
    colors = [RED if value > 0 else TEAL for value in added]
    axes.bar(center, added, width * 0.92, color=colors)
    axes.axhline(0, color=GREY, linewidth=0.8)
    axes.set_title("What each bin adds to the ECE", fontsize=9)
    axes.margins(y=0.15)
    axes.locator_params(axis="y", nbins=4)
    if not added.any():
        axes.set_ylim(-0.01, 0.01)


def _draw_counts(axes: Axes, reliability: Reliability, scores: Mapping[str, float]) -> None:
    total = int(reliability.count.sum())
    center, width = _places(reliability)
    axes.set_title("Pixels (log scale)", fontsize=9)
    if total:
        some = reliability.count > 0
        axes.bar(center[some], reliability.count[some] / total, width[some] * 0.92, color=GREY)
        log_shares(axes, float(reliability.count[some].min()) / total)
    for key, line, name in (("accuracy", "-", "accuracy"), ("mean_confidence", "--", "mean confidence")):
        value = scores.get(key)
        if value is not None and not is_missing(value):
            axes.axvline(value, color=INK, linestyle=line, linewidth=1.2, label=name)
    if axes.get_legend_handles_labels()[0]:
        _legend_above(axes)


def log_shares(axes: Axes, smallest: float) -> None:
    """Make the vertical axis one of shares of pixels on a logarithmic scale, down to the smallest share above 0."""
    axes.set_yscale("log")
    axes.set_ylim(max(10.0 ** math.floor(math.log10(smallest) - 0.01), 1e-9), 3)
    axes.set_yticks([tick for tick in (1e-8, 1e-6, 1e-4, 1e-2, 1) if tick >= axes.get_ylim()[0]])
    axes.yaxis.set_major_formatter(_share_text)
    axes.minorticks_off()


def _legend_above(axes: Axes) -> None:
    """A legend beside the title, where no bar can reach it."""
    axes.legend(
        loc="lower right",
        bbox_to_anchor=(1, 1),
        ncols=2,
        borderaxespad=0.0,
        borderpad=0.2,
        handlelength=1.4,
        fontsize=8,
    )


def _share_text(share: float, _: float) -> str:
    return f"{share * 100:g} %"


def confidence_figure(histogram: ConfidenceHistogram) -> Figure:
    """How many right and wrong pixels have which confidence: stacked on a linear scale, apart on a logarithmic one."""
    with style():
        figure = new_figure(4.7, 6.6)
        lay_out(figure, rows=2, left=0.72, bottom=0.5)
        stacked, apart = figure.subplots(2, 1, sharex=True)
        total = max(int((histogram.correct + histogram.wrong).sum()), 1)
        right, wrong = histogram.correct / total, histogram.wrong / total
        center, width = _places(histogram)
        stacked.bar(center, right, width, color=BLUE, alpha=0.8, label="right")
        stacked.bar(center, wrong, width, bottom=right, color=RED, label="wrong")
        stacked.yaxis.set_major_formatter(_share_text)
        stacked.set_title("Pixels, stacked (linear scale)")
        _draw_apart(apart, histogram, right, wrong)
        if right.any() or wrong.any():
            _legend_above(stacked)
        else:
            stacked.set_ylim(0, 1)
            for axes in (stacked, apart):
                _say_empty(axes)
                axes.set_yticks([])
        apart.set(xlim=(0, 1), xlabel="confidence")
    return figure


def _draw_apart(
    axes: Axes, histogram: ConfidenceHistogram, right: NDArray[np.float64], wrong: NDArray[np.float64]
) -> None:
    axes.set_title("Pixels, apart (log scale)")
    edges = np.append(histogram.lower, histogram.upper[-1])
    present = np.concatenate([right, wrong])
    if present.any():
        axes.stairs(right, edges, color=BLUE, linewidth=1.6, label="right")
        axes.stairs(wrong, edges, color=RED, linewidth=1.6, label="wrong")
        log_shares(axes, float(present[present > 0].min()))
        _legend_above(axes)
