"""Owns the figure of where in the image errors sit: how much of them falls to the boundaries of classes."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from calseg_cli.report.data import RegionRow
from calseg_cli.report.drawing import AMBER, BLUE, INK, MUTED, lay_out, new_figure, style, tick_names
from calseg_cli.report.wording import percent

_SPLIT = ("boundary", "interior")


def boundary_split(regions: Sequence[RegionRow]) -> dict[str, tuple[float, float]]:
    """How pixels, wrong pixels and calibration error divide between boundary and interior: (boundary, interior) sums.

    The calibration error of a region is its ECE times its pixels, so both together are that of an ECE with a histogram
    for each of the two. Empty unless both were measured. A region without a pixel adds nothing.
    """
    rows = {row.name: row for row in regions}
    if not set(_SPLIT) <= set(rows):
        return {}
    both = [rows[name] for name in _SPLIT]
    parts = {
        "pixels": [1.0 for _ in both],
        "wrong pixels": [1 - row.accuracy for row in both],
        "calibration error": [row.ece for row in both],
    }
    sums = {
        name: [row.pixels * value if row.pixels else 0.0 for row, value in zip(both, values, strict=True)]
        for name, values in parts.items()
    }
    return {name: (near, far) for name, (near, far) in sums.items()}


def boundary_figure(split: dict[str, tuple[float, float]]) -> Figure:
    """A bar for each of the sums of `boundary_split`, all of one length, the boundary's part before the interior's."""
    with style():
        figure = new_figure(6.4, 1.55)
        lay_out(figure, left=1.35, right=0.3, top=0.42, bottom=0.3)
        axes = figure.subplots()
        shares = [near / (near + far) if near + far else np.nan for near, far in split.values()]
        near = np.nan_to_num(np.array(shares))
        places = np.arange(len(shares))
        far = np.where(np.isnan(shares), 0.0, 1 - near)
        axes.barh(places, near, color=AMBER, height=0.62, label="boundary")
        axes.barh(places, far, left=near, color=BLUE, alpha=0.35, height=0.62, label="interior")
        _write_shares(axes, shares)
        axes.set(xlim=(0, 1), ylim=(len(shares) - 0.5, -0.5))
        axes.xaxis.set_major_formatter(lambda share, _: f"{share * 100:.0f} %")
        axes.grid(visible=False, axis="y")
        tick_names(axes, list(split))
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, borderaxespad=0.3, borderpad=0)
    return figure


def _write_shares(axes: Axes, shares: Sequence[float]) -> None:
    for place, share in enumerate(shares):
        if np.isnan(share):
            axes.text(0.01, place, "none", va="center", fontsize=8, color=MUTED)
        else:
            axes.text(min(share + 0.01, 0.9), place, percent(share), va="center", fontsize=8, color=INK)
