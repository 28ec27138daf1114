"""Rows for the terminal, CSV and JSON: n/a where nothing is, full precision where a machine reads."""

import csv
import dataclasses
import io
import json
import math
from collections.abc import Callable

import numpy as np
import pytest

from calseg_cli.errors import ConfigError
from calseg_cli.report.data import Compared, ReportData
from calseg_cli.report.tables import class_rows, comparison_rows, score_rows, to_csv, to_document, to_json


def test_each_report_shows_its_scores(report: ReportData) -> None:
    labels = {kind: [row[0] for row in score_rows(report, kind)[1]] for kind in ("iou", "ece", "full")}
    assert labels["iou"] == ["mIoU", "mAcc", "accuracy"]
    assert "ECE" in labels["ece"]
    assert set(labels["iou"]) | set(labels["ece"]) <= set(labels["full"])
    assert len(labels["full"]) == len(report.scores)


@pytest.mark.parametrize("kind", ["iou", "ece", "full"])
def test_tables_are_rectangular(report: ReportData, kind: str) -> None:
    for headers, rows in (score_rows(report, kind), class_rows(report, kind)):
        assert rows
        assert {len(row) for row in rows} == {len(headers)}


def test_class_columns_follow_the_report(report: ReportData) -> None:
    assert class_rows(report, "iou")[0] == ["class", "pixels", "IoU", "accuracy", "precision"]
    assert class_rows(report, "ece")[0] == ["class", "predicted", "precision", "confidence", "gap", "ECE"]
    assert set(class_rows(report, "iou")[0]) | set(class_rows(report, "ece")[0]) == set(class_rows(report, "full")[0])


def test_shares_of_pixels_add_up(report: ReportData) -> None:
    headers, rows = class_rows(report)
    for name in ("pixels", "predicted"):
        shares = [float(row[headers.index(name)].rstrip(" %")) for row in rows]
        assert sum(shares) == pytest.approx(100, abs=0.5)


@pytest.mark.parametrize("table", [score_rows, class_rows])
def test_an_unknown_report_is_refused(report: ReportData, table: Callable[..., object]) -> None:
    with pytest.raises(ConfigError, match="'eec'") as caught:
        table(report, "eec")
    assert caught.value.hint == "choose iou, ece, full or bias"


def test_missing_scores_are_not_available(make_report: Callable[..., ReportData]) -> None:
    empty = make_report(num_images=0)
    assert {row[1] for row in score_rows(empty)[1]} == {"n/a"}
    assert {cell for row in class_rows(empty)[1] for cell in row[1:]} == {"n/a"}


def test_the_sign_of_the_gap_is_always_shown(report: ReportData) -> None:
    value = next(row[1] for row in score_rows(report)[1] if row[0] == "signed gap")
    assert value.startswith("+")
    assert float(value) == pytest.approx(report.scores["signed_gap"], abs=5e-5)


def test_csv_holds_every_number_in_full(report: ReportData) -> None:
    rows = list(csv.DictReader(io.StringIO(to_csv(report))))
    found = {(row["scope"], row["name"], row["score"]): row["value"] for row in rows}
    assert len(found) == len(rows)
    for key, value in report.scores.items():
        assert float(found["dataset", "", key]) == value
    for item in report.classes:
        assert float(found["class", item.name, "iou"]) == item.iou
    for image in report.images:
        assert float(found["image", image["id"], "ece"]) == image["ece"]


def test_csv_leaves_missing_numbers_empty_and_quotes_names(make_report: Callable[..., ReportData]) -> None:
    plain = make_report(num_classes=1, num_images=1)
    row = dataclasses.replace(plain.classes[0], name='a,"b"', iou=math.nan)
    text = to_csv(dataclasses.replace(plain, classes=[row]))
    rows = list(csv.DictReader(io.StringIO(text)))
    assert next(row["value"] for row in rows if row["name"] == 'a,"b"' and row["score"] == "iou") == ""
    assert "nan" not in text


def test_json_gives_every_number_back(report: ReportData) -> None:
    read = json.loads(to_json(report))
    assert read == to_document(report)
    assert read["scores"] == dict(report.scores)
    assert read["num_images"] == len(report.images)
    assert np.array_equal(read["confusion"], report.confusion)
    assert read["reliability"]["count"] == report.reliability.count.tolist()


def test_json_has_null_for_what_is_missing(make_report: Callable[..., ReportData]) -> None:
    empty = make_report(num_images=0)
    read = json.loads(to_json(empty), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert set(read["scores"].values()) == {None}
    assert set(read["reliability"]["accuracy"]) == {None}


def test_json_takes_infinite_and_numpy_numbers(make_report: Callable[..., ReportData]) -> None:
    odd = {"nll": math.inf, "ece": np.float32(0.5), "images": np.int64(3)}
    data = make_report(num_images=1, scores=odd, provenance={"a": (1, None, {"b": math.nan})}, title="caf\udce9")
    read = json.loads(to_json(data).encode("utf-8"))
    assert read["scores"] == {"nll": None, "ece": 0.5, "images": 3}
    assert read["provenance"] == {"a": [1, None, {"b": None}]}
    assert [row[:2] for row in score_rows(data)[1]] == [["ECE", "0.5000"], ["NLL", "inf"], ["images", "3.0000"]]


def test_comparison_leaves_out_scores_that_nobody_has() -> None:
    headers, rows = comparison_rows([Compared("a", {"miou": 0.5, "ece": 0.1}), Compared("b", {"miou": 0.25})])
    assert headers == ["result", "mIoU", "ECE"]
    assert rows == [["a", "0.5000", "0.1000"], ["b", "0.2500", "n/a"]]
