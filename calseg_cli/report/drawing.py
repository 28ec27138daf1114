"""Owns how figures look and become SVG or PNG: one style, colours that follow the page, the same bytes every time."""

import io
import re
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from calseg_cli.artifacts.whole_file import write_whole
from calseg_cli.report.pictures import font

# Each colour stands for a variable of the page's style sheet, so that inline figures follow light and dark.
INK, MUTED, GRID, PAPER = "#1c2128", "#59636e", "#dfe3e8", "#fffffe"
BLUE, RED, TEAL, AMBER, VIOLET, GREY = "#2f6fde", "#d6453d", "#138d84", "#c98a08", "#8250df", "#9aa4b0"
VARIABLES = {
    INK: "ink",
    MUTED: "muted",
    GRID: "grid",
    PAPER: "paper",
    BLUE: "blue",
    RED: "red",
    TEAL: "teal",
    AMBER: "amber",
    VIOLET: "violet",
    GREY: "grey",
}
SERIES = (GREY, BLUE, AMBER, VIOLET, TEAL, RED)
_TAG = re.compile(r"<[^>]+>")
_LONG_NUMBER = re.compile(r"(?<![\w.])-?\d+\.\d{3,}(?![\w.])")
_TO_INLINE = [
    (re.compile(pattern, re.DOTALL), replacement)
    for pattern, replacement in (
        (r"<metadata>.*?</metadata>", ""),
        (r"<style.*?</style>", ""),  # it would rule the whole page; the page's own sheet says the same of figures
        (r'\sxmlns(:\w+)?="[^"]*"', ""),
        (r'(?<=<svg)([^>]*?)\s(?:width|height)="[\d.]+pt"([^>]*?)\s(?:width|height)="[\d.]+pt"', r"\1\2"),
        (r'<g id="[^"]*"/>', ""),
        (r'<g id="[^"]*"', "<g"),  # nothing points at a group
        (r' transform="rotate\(-0 [^"]*"', ""),
        (r"'DejaVu Sans'", "var(--font)"),
        (r"\s*\n\s*", " "),
        (r"> <", "><"),
    )
]
_STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9.0,
    "axes.titlesize": 10.0,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 9.0,
    "axes.edgecolor": GREY,
    "axes.labelcolor": MUTED,
    "axes.titlecolor": INK,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.linewidth": 0.8,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "text.color": INK,
    "text.parse_math": False,  # a dollar sign in a class name is a dollar sign
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.size": 0.0,
    "ytick.major.size": 0.0,
    "xtick.minor.size": 0.0,
    "ytick.minor.size": 0.0,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "lines.linewidth": 1.6,
    "figure.facecolor": "none",
    "svg.fonttype": "none",
    "svg.hashsalt": "calseg",
    "savefig.dpi": 200,
}


@contextmanager
def style() -> Iterator[None]:
    """The house style while a figure is made; the process's own settings stay as they were."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # whoever has a matplotlibrc gets the same bytes
        matplotlib.rcParams.update(_STYLE)
        yield


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, inches; made within `style()`.

    Its axes are placed by `lay_out`: matplotlib's own solvers do not give the same bytes in every process.
    """
    return Figure(figsize=(width, height))


def lay_out(
    figure: Figure,
    *,
    rows: int = 1,
    columns: int = 1,
    left: float = 0.62,
    right: float = 0.15,
    top: float = 0.3,
    bottom: float = 0.48,
    row_gap: float = 0.32,
    column_gap: float = 0.45,
) -> None:
    """Leave these margins (inches) around and between `rows` x `columns` axes."""
    width, height = figure.get_size_inches()
    cell_width = (width - left - right - (columns - 1) * column_gap) / columns
    cell_height = (height - top - bottom - (rows - 1) * row_gap) / rows
    figure.subplots_adjust(
        left=left / width,
        right=1 - right / width,
        top=1 - top / height,
        bottom=bottom / height,
        wspace=column_gap / cell_width,
        hspace=row_gap / cell_height,
    )


def longest(names: Iterable[str], size: float = 8.5) -> float:
    """How wide the widest of the names is, in inches, at a font size in points."""
    return max((font(100).getlength(clean(name)) for name in names), default=0.0) / 100 * size / 72 + 0.05


def clean(text: str, limit: int = 24) -> str:
    r"""A name fit for a figure: one line, no control characters, at most `limit` characters.

    >>> clean("a\nvery long name of a class", limit=10)
    'a very lo…'
    """
    line = " ".join("".join(sign if sign.isprintable() else " " for sign in text).split())
    return line if len(line) <= limit else f"{line[: limit - 1]}…"


def tick_names(axes: Axes, names: list[str], *, x: bool = False, rotation: float = 0.0) -> None:
    """Put names at 0, 1, 2 ... of an axis."""
    axis = axes.xaxis if x else axes.yaxis
    axis.set_ticks(range(len(names)))
    axis.set_ticklabels([clean(name) for name in names])
    if rotation:
        for label in axis.get_ticklabels():
            label.set(rotation=rotation, ha="left" if axis.get_ticks_position() == "top" else "right")
            label.set_rotation_mode("anchor")


def svg_text(figure: Figure, name: str, description: str) -> str:
    """The figure as an <svg> element to put into a page: text stays text, colours are the page's variables.

    `name` makes the element's ids unique within a page; `description` (plain text) is read to those who cannot see.
    """
    stream = io.StringIO()
    with style(), _quiet():
        figure.savefig(stream, format="svg", dpi=110, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    return _inline(stream.getvalue(), name, description)


def _inline(document: str, name: str, description: str) -> str:
    """An SVG document made fit to stand within HTML: no header, own ids, short numbers, the page's colours and font."""
    text = document[document.index("<svg") :].strip()
    for pattern, replacement in _TO_INLINE:
        text = pattern.sub(replacement, text)
    text = _TAG.sub(lambda tag: _LONG_NUMBER.sub(lambda digits: f"{float(digits[0]):.2f}", tag[0]), text)
    text = re.sub(r'(\sid="|url\(#|href="#)', rf"\g<1>{name}-", text)
    for color, variable in VARIABLES.items():
        text = text.replace(color, f"var(--{variable})")
    return text.replace("<svg", f'<svg role="img" aria-label="{_attribute(description)}"', 1)


def _attribute(text: str) -> str:
    return text.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;").replace(">", "&gt;")


def save_png(figure: Figure, path: Path) -> None:
    """Write the figure as a PNG on white, whole or not at all. Raises DiskFullError."""
    stream = io.BytesIO()
    with style(), _quiet():
        figure.savefig(stream, format="png", facecolor="white", metadata={"Software": None})
    write_whole(path, stream.getvalue())


@contextmanager
def _quiet() -> Iterator[None]:
    """A class name in a script that the measuring font lacks is still drawn by the reader's own font."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield
