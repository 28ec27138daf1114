"""The bias report: classes in order of their bias, what is not drawn is said, and emptiness does no harm."""

import csv
import dataclasses
import io
import json
import math
from collections.abc import Callable

import numpy as np
import pytest

from calseg_cli.report.bias_figure import MOST_CLASSES, bias_figure, rank_by_bias
from calseg_cli.report.data import LogitReport, LogitRow, LogitSpread, ReportData
from calseg_cli.report.drawing import svg_text
from calseg_cli.report.page import render_page
from calseg_cli.report.tables import class_rows, logit_note, region_rows, score_rows, to_csv, to_document, to_json

NAN = math.nan
GRID = np.linspace(-8, 8, 33)


def spread(mean: float, distance: float = 0.0) -> LogitSpread:
    density = np.exp(-((GRID - mean) ** 2) / 4) if not math.isnan(mean) else np.full(33, NAN)
    return LogitSpread(mean, mean + np.array([-2.0, -1, 0, 1, 2]), density, distance)


def row(name: str, bias: float, implied: float = 0.01) -> LogitRow:
    return LogitRow(name, 10, bias, implied, spread(4 + 10 * bias, 0.25), spread(10 * bias - 3, 0.75))


def logits_of(rows: list[LogitRow]) -> LogitReport:
    return LogitReport(GRID, 0.0625, rows, spread(4), spread(-3))


def biased(report: ReportData, names: list[str] | None = None) -> ReportData:
    """The report with biases that fall from class to class, in another order than the classes'."""
    values = [0.1 - 0.03 * ((3 * place) % len(report.classes)) for place in range(len(report.classes))]
    named = names or [one.name for one in report.classes]
    classes = [
        dataclasses.replace(one, name=name, bias=value)
        for one, name, value in zip(report.classes, named, values, strict=True)
    ]
    rows = [row(one.name, one.bias) for one in classes]
    return dataclasses.replace(report, classes=classes, logits=logits_of(rows))


def test_the_table_has_the_most_over_predicted_first(report: ReportData) -> None:
    data = biased(report)
    headers, rows = class_rows(data, "bias")
    assert headers[:5] == ["class", "pixels", "IoU", "accuracy", "bias"]
    assert headers[5:] == ["by logits", "own logit", "others' logit", "own to anchor", "others' to anchor"]
    assert {len(cells) for cells in rows} == {len(headers)}
    shown = [float(cells[4]) for cells in rows]
    assert shown == sorted(shown, reverse=True)
    assert len(rows) == len(data.classes)
    first = dict(zip(headers, rows[0], strict=True))
    assert (first["bias"], first["own logit"], first["others' logit"]) == ("+0.1000", "+5.00", "-2.00")
    assert (first["own to anchor"], first["others' to anchor"], first["by logits"]) == ("0.25", "0.75", "+0.0100")


def test_without_logits_there_is_the_measured_bias(report: ReportData) -> None:
    data = dataclasses.replace(biased(report), logits=None)
    assert class_rows(data, "bias")[0] == ["class", "pixels", "IoU", "accuracy", "bias"]
    assert (logit_note(data), region_rows(data, "bias")[0]) == ("", ["region", "pixels", "accuracy"])
    assert "logits" not in to_document(data)
    assert 'id="bias"' not in render_page(data)


def test_scores_of_the_bias_report(report: ReportData) -> None:
    scores = {**report.scores, "bias_spread": 0.05, "iou_over": 0.6, "accuracy_under": 0.4}
    labels = [cells[0] for cells in score_rows(dataclasses.replace(report, scores=scores), "bias")[1]]
    assert labels == ["mIoU", "mAcc", "spread of bias", "mIoU, over-predicted", "mAcc, under-predicted", "accuracy"]


def test_json_and_csv_hold_every_number(report: ReportData) -> None:
    data = biased(report)
    read = json.loads(to_json(data))["logits"]
    assert read["anchors"]["negative"]["mean"] == -3
    assert read["bin_width"] == 0.0625
    assert [one["name"] for one in read["classes"]] == [one.name for one in data.classes]
    for found, given in zip(read["classes"], data.logits.rows if data.logits else (), strict=True):
        assert found["bias_by_logits"] == given.bias_by_logits
        assert found["positive"]["mean"] == given.positive.mean
        assert len(found["negative"]["quantiles"]) == len(read["quantile_levels"])
        assert found["negative"]["distance"] == 0.75
    rows = {(cells["name"], cells["score"]): cells["value"] for cells in csv.DictReader(io.StringIO(to_csv(data)))}
    name = data.classes[0].name
    assert float(rows[name, "bias"]) == data.classes[0].bias
    assert float(rows[name, "positive_logit"]) == 5.0
    assert float(rows[name, "negative_distance"]) == 0.75


def test_the_figure_draws_classes_where_they_belong() -> None:
    rows = [row("few", -0.2, -0.1), row("many", 0.3, 0.25), row("none", NAN, NAN), row("fair", 0.0, 0.0)]
    ridges, bars = bias_figure(logits_of(rows)).axes
    assert [label.get_text() for label in ridges.get_yticklabels()] == ["many", "fair", "few"]
    assert [bar.get_width() for bar in bars.patches] == [0.3, 0.0, -0.2]
    assert bars.lines[0].get_xydata().tolist() == [[0.25, 0], [0, 1], [-0.1, 2]]
    for place, one in enumerate((rows[1], rows[3], rows[0])):
        means = [line.get_xdata()[0] for line in ridges.lines if len(line.get_xdata()) == 2 and on_row(line, place)]
        assert means == [one.negative.mean, one.positive.mean]


def on_row(line: object, place: int) -> bool:
    low, high = sorted(line.get_ydata())  # type: ignore[attr-defined]
    return place - 0.5 < low < high < place + 0.5


def test_of_many_classes_those_of_the_largest_bias_are_drawn_and_the_rest_is_told(
    make_report: Callable[..., ReportData],
) -> None:
    rows = [row(f"c{index}", (-1) ** index * index / 100) for index in range(MOST_CLASSES + 5)]
    drawn, left = rank_by_bias(rows)
    assert {one.name for one in left} == {f"c{index}" for index in range(5)}
    assert [one.bias for one in drawn] == sorted((one.bias for one in drawn), reverse=True)
    page = render_page(dataclasses.replace(make_report(num_classes=2, num_images=1), logits=logits_of(rows)))
    assert "5 classes are not drawn" in page


def test_the_page_shows_picture_and_table_and_escapes_names(report: ReportData) -> None:
    names = ["<b>x</b>", *(f"name {index}" for index in range(1, len(report.classes)))]
    page = render_page(biased(report, names))
    section = page.partition('<h2 id="bias">')[2].partition("</section>")[0]
    assert "<svg" in section
    assert "over-predicted" in section
    assert "&lt;b&gt;x&lt;/b&gt;" in section
    assert "<b>x</b>" not in section
    assert section.count("<tr>") == len(report.classes) + 1


@pytest.mark.parametrize("rows", [[], [row("only", 0.0)], [row("absent", NAN, NAN)]])
def test_little_or_nothing_is_drawn_without_trouble(rows: list[LogitRow]) -> None:
    nothing = LogitSpread(NAN, np.full(5, NAN), np.full(1, NAN))
    assert "<svg" in svg_text(bias_figure(LogitReport(np.zeros(1), 1.0, [], nothing, nothing)), "a", "")
    assert svg_text(bias_figure(logits_of(rows)), "a", "") == svg_text(bias_figure(logits_of(rows)), "a", "")
