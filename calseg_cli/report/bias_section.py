"""Owns the section of the page about which classes a network prefers."""

from collections.abc import Sequence

from calseg_cli.report.bias_figure import MOST_CLASSES, bias_figure, rank_by_bias
from calseg_cli.report.data import LogitRow, ReportData
from calseg_cli.report.drawing import svg_text
from calseg_cli.report.markup import Cell, table, text
from calseg_cli.report.tables import class_rows
from calseg_cli.report.wording import NOT_AVAILABLE, number

_MEANINGS = {
    "pixels": "Share of the labelled pixels whose true class this is",
    "IoU": "Intersection over union",
    "accuracy": "Share of this true class that is found (recall)",
    "bias": "How often it is predicted, every true class counting alike, minus its fair share",
    "by logits": "The bias that the distributions of logits alone imply, as if logits did not depend on each other",
    "own logit": "Mean of the class's logit on its own pixels",
    "others' logit": "Mean of the class's logit on the pixels of the other classes, each class counting alike",
    "own to anchor": "Wasserstein distance of its logits on its own pixels from those of all classes together",
    "others' to anchor": "Mean Wasserstein distance of its logits on each other class's pixels from the anchor",
}


def bias(data: ReportData) -> str:
    """The picture of logits and bias and its table; empty where logits were not counted."""
    if data.logits is None:
        return ""
    figure = bias_figure(data.logits)
    width = round(float(figure.get_size_inches()[0]) * 110)
    drawn, left = rank_by_bias(data.logits.rows)
    headers, rows = class_rows(data, "bias")
    shown = [(name, _MEANINGS.get(name, "")) for name in headers]
    cells = [
        [Cell(text(value), _sortable(value), tone="none" if value == NOT_AVAILABLE else "") for value in row]
        for row in rows
    ]
    return (
        '<p class="guide">A class is <b>over-predicted</b> (red) where the network calls more pixels so than is fair, '
        "with every true class counting alike, and <b>under-predicted</b> (teal) where it calls fewer. At the left is "
        "why: the logit of each class on its own pixels (blue) and on those of other classes (amber). If every class "
        "had its blue curve on the right dashed line, and its amber curve on the left one, no class would be "
        "preferred; <b>curves further right than the dashed ones push a class up</b>. Each curve has a height of its "
        "own. Dots are the bias that these curves alone imply; where they are far from the bars, it lies in how the "
        f'logits of a pixel depend on each other.</p><figure style="max-width:{width}px">'
        f"{svg_text(figure, 'bias', _description(drawn))}</figure>{_left_out(left)}"
        f"{table(shown, cells, sortable=True)}"
    )


def _sortable(value: str) -> str | float:
    try:
        return float(value.removesuffix(" %").lstrip("<"))
    except ValueError:
        return value


def _description(rows: Sequence[LogitRow]) -> str:
    told = ", ".join(f"{row.name} {number(row.bias, decimals=3, signed=True)}" for row in rows)
    return f"Bias of each class and its logits: {told or 'nothing measured'}"


def _left_out(rows: Sequence[LogitRow]) -> str:
    if not rows:
        return ""
    told = f"{len(rows)} classes are not drawn: of a smaller bias than the {MOST_CLASSES} drawn, or without any bias."
    return f'<p class="convention">{text(told)}</p>'
