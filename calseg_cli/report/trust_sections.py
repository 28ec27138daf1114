"""Owns the sections of the page about trust in parts: risk against coverage, and calibration class by class."""

import numpy as np

from calseg_cli.report.class_figure import MOST_CLASSES, ClassCurve, class_figure, rank_classes
from calseg_cli.report.data import ReportData, Selection
from calseg_cli.report.drawing import svg_text
from calseg_cli.report.markup import Cell, table, text
from calseg_cli.report.selection_figure import selection_figure
from calseg_cli.report.wording import number, percent

_READ_AT = (0.5, 0.8, 0.9, 0.95, 1.0)
_MOST_NAMES = 12


def selection(data: ReportData) -> str:
    """The risk-coverage curve with readings of it; empty where it was not measured."""
    if data.selection is None:
        return ""
    told = f"AURC {number(data.scores.get('aurc'))}, risk at 80 % {number(data.scores.get('risk_80'))}"
    figure = svg_text(selection_figure(data.selection, data.scores), "selection", f"Risk against coverage: {told}")
    return (
        '<p class="guide">If only the surest pixels are answered and the rest is left to a person or a second look, '
        "how many of the answers are wrong? Confidence that <b>ranks</b> right before wrong keeps the blue curve near "
        "the teal one; a curve along the dashed line is no better than choosing pixels at random. The tinted area is "
        "what better ranking could still win. It says nothing of calibration: confidence can rank well and be far too "
        f'high.</p><div class="pair"><figure>{figure}</figure>{_readings(data.selection)}</div>'
    )


def _readings(selection: Selection) -> str:
    if not selection.risk.size:
        return ""
    perfect, rows = selection.perfect(), []
    for wanted in _READ_AT:
        place = int(np.abs(selection.coverage - wanted).argmin())
        values = (selection.coverage, selection.risk, perfect, selection.threshold)
        coverage, risk, best, threshold = (float(array[place]) for array in values)
        rows.append(
            [Cell(percent(coverage, 0)), Cell(percent(risk, 2)), Cell(percent(best, 2)), Cell(number(threshold))]
        )
    headers = [
        ("answered", "The surest share of the pixels"),
        ("wrong", "Share of wrong pixels among them"),
        ("at best", "The same if every wrong pixel came after every right one"),
        ("confidence above", "The confidence of the least sure among them, to 1/4800"),
    ]
    return table(headers, rows)


def class_calibration(data: ReportData) -> str:
    """A little reliability diagram for each class that was predicted; empty where they were not measured."""
    if not data.class_reliability:
        return ""
    names = [row.name for row in data.classes]
    curves, never = rank_classes(names, data.class_reliability, data.reliability.pixels)
    guide = (
        '<p class="guide">The pixels <b>predicted</b> as each class, in bins of their own: dots below the diagonal '
        "(red) are claimed with too much confidence, dots above it (teal) with too little. Under each name: its ECE, "
        "its gap (confidence minus precision) and its share of the pixels. Sorted by what a class adds to the ECE by "
        "predicted class (share times ECE), most first: a rare class with a large ECE stands further back. Pale bins "
        "hold fewer than 0.1 % of the class's pixels.</p>"
    )
    figure = class_figure(curves)
    drawn = svg_text(figure, "byclass", _description(curves))
    width = round(float(figure.get_size_inches()[0]) * 110)
    return f'{guide}<figure style="max-width:{width}px">{drawn}</figure>{_left_out(curves, never)}'


def _description(curves: list[ClassCurve]) -> str:
    told = ", ".join(f"{curve.name} ECE {number(curve.bins.ece, decimals=3)}" for curve in curves[:MOST_CLASSES])
    return f"Reliability of each predicted class: {told or 'none was predicted'}"


def _left_out(curves: list[ClassCurve], never: list[str]) -> str:
    """What has no panel, and why."""
    rest, notes = curves[MOST_CLASSES:], []
    if rest:
        whole = sum(curve.added for curve in curves)
        share = percent(sum(curve.added for curve in rest) / whole if whole else 0.0)
        left = "1 more class is" if len(rest) == 1 else f"{len(rest)} more classes are"
        notes.append(f"{left} left out and would add {share} of the error that all these classes add.")
    if never:
        more = f" and {len(never) - _MOST_NAMES} more" if len(never) > _MOST_NAMES else ""
        notes.append(f"Never predicted, so there is nothing to draw: {', '.join(never[:_MOST_NAMES])}{more}.")
    return f'<p class="convention">{text(" ".join(notes))}</p>' if notes else ""
