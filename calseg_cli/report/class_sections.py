"""Owns the sections of the page that take a result apart: by class, by pair of classes, by image."""

import math

import numpy as np

from calseg_cli.report.accuracy_figures import confusion_figure, images_figure, row_shares
from calseg_cli.report.data import ClassRow, ReportData
from calseg_cli.report.drawing import svg_text
from calseg_cli.report.markup import Cell, chip, table, text
from calseg_cli.report.region_figure import boundary_figure, boundary_split
from calseg_cli.report.tables import region_rows
from calseg_cli.report.wording import BALANCED, NOT_AVAILABLE, is_missing, number, percent, quantity

MOST_IMAGES = 1000
BESIDE = 10


def classes(data: ReportData) -> str:
    """The table of classes, sortable, with colours and bars."""
    headers = [
        ("class", ""),
        ("pixels", "Share of the labelled pixels whose true class this is"),
        ("IoU", "Intersection over union"),
        ("accuracy", "Share of this true class that is found (recall)"),
        ("precision", "Share of the pixels called so that are right"),
        ("confidence", "Mean confidence of the pixels called so"),
        ("gap", "Confidence minus precision"),
        ("ECE", "Calibration error of the pixels called so; bars are relative to the worst class"),
    ]
    total = sum(row.pixels for row in data.classes)
    worst = max((row.ece for row in data.classes if not is_missing(row.ece)), default=0.0)
    rows = [_class_cells(row, total, worst) for row in data.classes]
    foot = [
        Cell("mean of the classes"),
        Cell(""),
        Cell(number(data.scores.get("miou"), decimals=3)),
        Cell(number(data.scores.get("macc"), decimals=3)),
        *[Cell("")] * 4,
    ]
    return (
        '<p class="guide">Pixels, IoU and accuracy go by the <b>true</b> class; precision, confidence, gap and ECE by '
        "the <b>predicted</b> one, because that is what a user of the prediction sees. A gap above zero: the class is "
        "claimed with too much confidence. n/a: the class does not occur (or is never predicted) and is left out of "
        f"the means.</p>{table(headers, rows, foot=foot, sortable=True)}"
    )


def _class_cells(row: ClassRow, total: int, worst: float) -> list[Cell]:
    share = row.pixels / total if total else math.nan
    tone = "none" if is_missing(row.gap) or abs(row.gap) < BALANCED else ("over" if row.gap > 0 else "under")
    return [
        Cell(f"{chip(row.color)}{text(row.name)}", row.name),
        Cell(percent(share), share),
        _score_cell(row.iou, bar=row.iou),
        _score_cell(row.accuracy),
        _score_cell(row.precision),
        _score_cell(row.mean_confidence),
        Cell(number(row.gap, decimals=3, signed=True), row.gap, tone=tone),
        _score_cell(row.ece, bar=row.ece / worst if worst else None, tone="warm"),
    ]


def _score_cell(value: float, *, bar: float | None = None, tone: str = "") -> Cell:
    if is_missing(value):
        return Cell(NOT_AVAILABLE, tone="none")
    return Cell(number(value, decimals=3), value, bar, tone)


def regions(data: ReportData) -> str:
    """The table of regions that were measured apart; empty without any."""
    if not data.regions:
        return ""
    headers, rows = region_rows(data)
    cells = [[Cell(text(value), tone="none" if value == NOT_AVAILABLE else "") for value in row] for row in rows]
    rule = text(str(data.protocol.get("regions", "")))
    return (
        '<p class="guide">Each region by itself: a network can be true on the whole and too sure along every edge. A '
        f'small region has a higher noise floor.</p><p class="convention">{rule}</p>'
        f"{table([(name, '') for name in headers], cells)}{_boundaries(data)}"
    )


def _boundaries(data: ReportData) -> str:
    """How much of the errors the boundaries hold; empty unless they were measured."""
    split = boundary_split(data.regions)
    if not split:
        return ""
    told = ", ".join(
        f"{percent(near / (near + far))} of the {name}" for name, (near, far) in split.items() if near + far
    )
    figure = svg_text(boundary_figure(split), "boundaries", f"At boundaries: {told or 'no labelled pixels'}")
    return (
        '<h3>Where the errors sit</h3><p class="guide">The three bars have one length each: where the boundary\'s part '
        "of the wrong pixels or of the calibration error (ECE times pixels) is longer than its part of the pixels, "
        f'errors gather at the edges of things.</p><figure style="max-width:760px">{figure}</figure>'
    )


def confusion(data: ReportData) -> str:
    """The confusion matrix and its largest confusions."""
    figure = svg_text(confusion_figure(data.confusion, data.class_names), "confusion", "Confusion matrix")
    side = min(300 + 34 * len(data.class_names), 1080)
    layout = "pair" if len(data.class_names) <= BESIDE else ""
    return (
        '<p class="guide">Each row is a true class and adds up to 100 %: the diagonal (blue) is the share that was '
        "found, red cells are what the rest was taken for. Colour grows with the square root of the share, so that "
        f'small confusions can be seen; grey rows do not occur.</p><div class="{layout}">'
        f'<figure style="max-width:{side}px">{figure}</figure>{_largest_confusions(data)}</div>'
    )


def _largest_confusions(data: ReportData, most: int = 8) -> str:
    errors = data.confusion.copy()
    np.fill_diagonal(errors, 0)
    shares, total = row_shares(data.confusion), max(int(errors.sum()), 1)
    order = np.argsort(-errors, axis=None, kind="stable")[:most]
    pairs = [np.unravel_index(index, errors.shape) for index in order if errors.flat[index] > 0]
    if not pairs:
        return ""
    rows = [
        [
            Cell(f"{text(data.class_names[true])} → {text(data.class_names[taken])}"),
            Cell(quantity(int(errors[true, taken]))),
            Cell(percent(errors[true, taken] / total)),
            Cell(percent(shares[true, taken])),
        ]
        for true, taken in pairs
    ]
    headers = [
        ("true → predicted", ""),
        ("pixels", ""),
        ("of all errors", ""),
        ("of the class", "Share of the true class"),
    ]
    return f"<div><h3>Largest confusions</h3>{table(headers, rows)}</div>"


def images(data: ReportData) -> str:
    """Image by image: the scatter of ECE against mIoU and the sortable list."""
    if not data.images:
        return ""
    marked = {example.id: example.role for example in data.examples} if len(data.examples) <= 12 else {}
    figure = svg_text(images_figure(data.images, data.scores, marked), "images", "ECE against mIoU, one dot an image")
    ranked = sorted(data.images, key=lambda row: math.inf if is_missing(row.get("miou")) else row["miou"])
    shown = ranked[:MOST_IMAGES]
    rows = [
        [Cell(text(row["id"]), row["id"]), *(_image_cell(row.get(key)) for key in _IMAGE_COLUMNS.values())]
        for row in shown
    ]
    headers = [("image", ""), *((name, "") for name in _IMAGE_COLUMNS)]
    count = f"all {len(shown)} images" if len(shown) == len(data.images) else f"the {len(shown)} images of lowest mIoU"
    return (
        '<p class="guide">One dot an image; dashed lines are the whole dataset. Images to the lower right are good. '
        "<b>An image to the upper left in red is wrong and does not know it.</b> An image's own ECE is always "
        "noisier, and on average higher, than that of the dataset: over- and under-confident images cannot cancel."
        f'</p><figure style="max-width:760px">{figure}</figure><details><summary>List {count}</summary>'
        f"{table(headers, rows, sortable=True)}</details>"
    )


_IMAGE_COLUMNS = {"mIoU": "miou", "accuracy": "accuracy", "confidence": "confidence", "ECE": "ece"}


def _image_cell(value: float | None) -> Cell:
    return _score_cell(math.nan if value is None else value)
