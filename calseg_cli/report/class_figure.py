"""Owns the figure of one little reliability diagram a class, by predicted class, the worst ones first."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from calseg_cli.report.calibration_figures import RARE_SHARE
from calseg_cli.report.data import Reliability
from calseg_cli.report.drawing import INK, MUTED, RED, TEAL, clean, lay_out, longest, new_figure, style
from calseg_cli.report.wording import number, percent

MOST_CLASSES, COLUMNS = 24, 6
_SIDE, _BESIDE, _ABOVE = 1.25, 0.27, 0.66  # inches: a panel, the room between two, and that for its words


@dataclass(frozen=True)
class ClassCurve:
    """The bins of the pixels predicted as one class, and the `share` in [0,1] they are of all pixels."""

    name: str
    bins: Reliability
    share: float

    @property
    def added(self) -> float:
        """What the class adds to the ECE by predicted class: its share of the pixels times its own ECE."""
        return self.share * self.bins.ece

    @property
    def gap(self) -> float:
        """Mean confidence minus precision, in [-1,1]."""
        return float(self.bins.contribution().sum())


def rank_classes(names: Sequence[str], bins: Sequence[Reliability], pixels: int) -> tuple[list[ClassCurve], list[str]]:
    """The classes that were predicted, those that add most to the ECE first; and the names of those that never were.

    `pixels` are all that were measured.
    """
    pairs = list(zip(names, bins, strict=True))
    curves = [ClassCurve(name, one, one.pixels / pixels) for name, one in pairs if one.pixels]
    return sorted(curves, key=lambda curve: -curve.added), [name for name, one in pairs if not one.pixels]


def class_figure(curves: Sequence[ClassCurve]) -> Figure:
    """A reliability curve a class in the order given, at most 24: dots are bins, coloured lines their gaps.

    Bins with fewer than 0.1 % of the class's pixels are pale. Each panel says the class's ECE, gap and share of pixels.
    """
    shown = curves[:MOST_CLASSES]
    columns = max(min(len(shown), COLUMNS), 1)
    rows = max(math.ceil(len(shown) / columns), 1)
    with style():
        figure = new_figure(
            0.62 + columns * (_SIDE + _BESIDE) - _BESIDE + 0.4, 0.5 + rows * (_SIDE + _ABOVE) + (0 if shown else 0.2)
        )
        lay_out(
            figure, rows=rows, columns=columns, right=0.4, top=_ABOVE, bottom=0.5, row_gap=_ABOVE, column_gap=_BESIDE
        )
        panels = figure.subplots(rows, columns, squeeze=False)
        for place, axes in enumerate(panels.flat):
            if place < len(shown):
                _draw_panel(axes, shown[place])
                _name_ticks(axes, left=place % columns == 0, lowest=place + columns >= len(shown))
            else:
                axes.set_visible(False)
        if not shown:
            figure.text(0.5, 0.5, "no class was predicted", ha="center", color=MUTED)
    return figure


def _draw_panel(axes: Axes, curve: ClassCurve) -> None:
    axes.plot([0, 1], [0, 1], "--", color=MUTED, linewidth=0.8)
    share = curve.bins.share()
    common = share >= RARE_SHARE
    axes.plot(curve.bins.confidence[common], curve.bins.accuracy[common], color=INK, linewidth=0.8, alpha=0.35)
    for where, alpha in ((common, 1.0), ((share > 0) & ~common, 0.35)):
        _draw_bins(axes, curve.bins, where, alpha)
    axes.set(xlim=(0, 1), ylim=(0, 1), xticks=(0, 0.5, 1), yticks=(0, 0.5, 1))
    _write(axes, 25, _fitting(curve.name), fontweight="bold", fontsize=8, color=INK)
    gap = number(curve.gap, decimals=3, signed=True)
    _write(axes, 14, f"ECE {number(curve.bins.ece, decimals=3)} · gap {gap}")
    _write(axes, 4, f"{percent(curve.share)} of pixels")


def _write(axes: Axes, points: float, text: str, **look: Any) -> None:
    """A line of text so many points above a panel."""
    kwargs: dict[str, Any] = {"fontsize": 7, "color": MUTED, **look}
    axes.annotate(text, (0, 1), (0, points), xycoords="axes fraction", textcoords="offset points", **kwargs)


def _draw_bins(axes: Axes, bins: Reliability, where: NDArray[np.bool_], alpha: float) -> None:
    confidence, accuracy = bins.confidence[where], bins.accuracy[where]
    for over, color in ((confidence > accuracy, RED), (confidence <= accuracy, TEAL)):
        axes.vlines(confidence[over], accuracy[over], confidence[over], color=color, linewidth=2.6, alpha=0.55 * alpha)
    axes.plot(
        confidence, accuracy, "o", color=INK, markersize=2.4, markeredgewidth=0, alpha=alpha, clip_on=False, zorder=3
    )


def _name_ticks(axes: Axes, *, left: bool, lowest: bool) -> None:
    axes.tick_params(labelsize=7, labelleft=left, labelbottom=lowest)
    axes.set_ylabel("accuracy" if left else "", fontsize=7.5)
    axes.set_xlabel("confidence" if lowest else "", fontsize=7.5)


def _fitting(name: str) -> str:
    """As much of a name as fits above a panel, in bold letters."""
    for limit in range(24, 1, -1):
        if longest([clean(name, limit)], 8) * 1.13 <= _SIDE + _BESIDE - 0.08:
            return clean(name, limit)
    return ""
