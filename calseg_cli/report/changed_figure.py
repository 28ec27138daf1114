"""Owns how pixels that changed class are shown: rows of from and to, a figure of the classes, marks on the image."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from calseg_cli.report.data import Color, Picture
from calseg_cli.report.drawing import INK, MUTED, RED, TEAL, clean, lay_out, longest, new_figure, style, tick_names
from calseg_cli.report.pictures import colorize
from calseg_cli.report.wording import percent

MOST_ROWS = 12
"""So many of the largest changes are in the figure."""
_UNKNOWN = 200  # grey where the image is not to be had
_PALE = 0.45  # how much of the image is left of pixels that stay
_GREY = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601 luma
_BAR = 0.2  # inches a bar


@dataclass(frozen=True)
class ChangeRow:
    """Pixels that went from one class to another: how many, as a share of all pixels and of those of the first."""

    before: str
    after: str
    pixels: int
    share: float
    of_before: float


def change_rows(counts: NDArray[np.int64], names: Sequence[str]) -> list[ChangeRow]:
    """The changes of pixels (C,C) from row to column, most pixels first; those that stay and those of none left out.

    >>> [(row.before, row.after, row.share) for row in change_rows(np.array([[2, 1], [0, 1]]), ["a", "b"])]
    [('a', 'b', 0.25)]
    """
    total = int(counts.sum())
    rows = [
        ChangeRow(
            names[one],
            names[other],
            int(counts[one, other]),
            int(counts[one, other]) / total,
            int(counts[one, other]) / int(counts[one].sum()),
        )
        for one, other in np.argwhere(counts > 0).tolist()
        if one != other
    ]
    return sorted(rows, key=lambda row: -row.pixels)


def changed_overlay(
    image: Picture | None, before: NDArray[Any], after: NDArray[Any], palette: Sequence[Color], ignore: int
) -> Picture:
    """Pixels whose class changed in the colour of their new class, the image (H,W,3) pale and grey elsewhere.

    >>> changed_overlay(None, np.array([[0, 0]]), np.array([[0, 1]]), [(9, 9, 9), (1, 2, 3)], 255).tolist()
    [[[200, 200, 200], [1, 2, 3]]]
    """
    if image is None:
        grey = np.full((*before.shape, 3), _UNKNOWN, np.uint8)
    else:
        pale = 255 - (255 - image @ _GREY) * _PALE
        grey = np.rint(pale).astype(np.uint8)[..., None].repeat(3, axis=-1)
    return np.where((before != after)[..., None], colorize(after, palette, ignore), grey)


def changed_figure(counts: NDArray[np.int64], names: Sequence[str]) -> Figure:
    """What each class lost and gained, in shares of all pixels (C,C), and the largest changes by name."""
    rows = change_rows(counts, names)[:MOST_ROWS]
    places = [index for index in range(len(names)) if counts[index].sum() or counts[:, index].sum()]
    with style():
        words = [f"{clean(row.before, 16)} → {clean(row.after, 16)}" for row in rows]
        left, between = longest([names[index] for index in places]) + 0.2, longest(words) + 0.75
        width, height = left + between + 2 * 2.6 + 0.6, 0.95 + _BAR * max(len(places), len(rows), 3)
        figure = new_figure(width, height)
        lay_out(figure, columns=2, left=left, right=0.55, top=0.45, bottom=0.45, column_gap=between)
        classes, changes = figure.subplots(1, 2)
        _draw_classes(classes, counts[np.ix_(places, places)], [names[index] for index in places])
        _draw_changes(changes, rows, words)
    return figure


def _draw_classes(axes: Axes, counts: NDArray[np.int64], names: list[str]) -> None:
    total = max(int(counts.sum()), 1)
    stays = counts.diagonal()
    lost, gained = (counts.sum(axis=1) - stays) / total, (counts.sum(axis=0) - stays) / total
    places = np.arange(len(names))
    axes.barh(places, -lost, color=RED, height=0.7, label="lost")
    axes.barh(places, gained, color=TEAL, height=0.7, label="gained")
    reach = max(float(max(lost.max(initial=0), gained.max(initial=0))), 1e-4) * 1.15
    axes.axvline(0, color=INK, linewidth=0.8)
    axes.set(xlim=(-reach, reach), ylim=(max(len(names), 1) - 0.5, -0.5), xlabel="share of all pixels")
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.xaxis.set_major_formatter(lambda share, _: f"{abs(share) * 100:.3g} %")
    axes.grid(visible=False, axis="y")
    tick_names(axes, names)
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, borderaxespad=0.3, borderpad=0)


def _draw_changes(axes: Axes, rows: Sequence[ChangeRow], words: Sequence[str]) -> None:
    longest_bar = max((row.share for row in rows), default=1e-4)
    places = np.arange(len(rows))
    axes.barh(places, [row.share for row in rows], color=TEAL, height=0.7)
    for place, row in enumerate(rows):
        axes.text(row.share + longest_bar * 0.02, place, percent(row.share, 2), va="center", fontsize=8, color=INK)
    axes.set(xlim=(0, longest_bar * 1.1), ylim=(max(len(rows), 1) - 0.5, -0.5), xlabel="share of all pixels")
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.xaxis.set_major_formatter(lambda share, _: f"{share * 100:.3g} %")
    axes.grid(visible=False, axis="y")
    axes.set_yticks(places, words)
    if not rows:
        axes.text(0.5, 0.5, "no pixel changes class", transform=axes.transAxes, ha="center", color=MUTED)
