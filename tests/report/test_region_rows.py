"""Regions in the table, the CSV, the JSON and the page; and nothing of them where none was measured."""

import csv
import io
import json
import math
from collections.abc import Callable

import pytest

from calseg_cli.errors import ConfigError
from calseg_cli.report.data import RegionRow, ReportData
from calseg_cli.report.page import render_page
from calseg_cli.report.tables import region_rows, to_csv, to_json

EDGE = RegionRow("boundary", 120, 0.5, 0.75, 0.25, 0.2625, 0.001)
NONE = RegionRow("fg-true", 0, math.nan, math.nan, math.nan, math.nan, math.nan)


@pytest.fixture
def parted(make_report: Callable[..., ReportData]) -> ReportData:
    return make_report(regions=[EDGE, NONE], protocol={"regions": "boundary: within <3> px"})


def test_a_region_is_a_row(parted: ReportData) -> None:
    headers, rows = region_rows(parted)
    assert headers == ["region", "pixels", "accuracy", "confidence", "gap", "ECE", "noise floor"]
    assert rows[0][0] == "boundary"
    assert rows[0][2:] == ["0.5000", "0.7500", "+0.2500", "0.2625", "0.0010"]
    assert rows[1][0] == "fg-true"
    assert rows[1][2:] == ["n/a"] * 5
    share = 120 / parted.reliability.count.sum() * 100
    assert rows[0][1] == f"{share:.1f} %"
    assert region_rows(parted, "iou")[0] == ["region", "pixels", "accuracy"]
    with pytest.raises(ConfigError, match="'eec'"):
        region_rows(parted, "eec")


def test_files_hold_all_digits(parted: ReportData) -> None:
    read = json.loads(to_json(parted))["regions"]
    assert read["boundary"] == {
        "pixels": 120, "accuracy": 0.5, "confidence": 0.75, "signed_gap": 0.25, "ece": 0.2625, "noise_floor": 0.001
    }  # fmt: skip
    assert read["fg-true"]["ece"] is None
    lines = [line for line in csv.reader(io.StringIO(to_csv(parted))) if line[0] == "region"]
    assert ["region", "boundary", "ece", "0.2625"] in lines
    assert ["region", "fg-true", "ece", ""] in lines
    assert len(lines) == 12


def test_the_page_tells_the_rule(parted: ReportData) -> None:
    page = render_page(parted)
    assert '<h2 id="regions">Regions</h2>' in page
    assert "within &lt;3&gt; px" in page
    assert "+0.2500" in page


def test_nothing_is_said_of_regions_that_were_not_measured(report: ReportData) -> None:
    assert "regions" not in json.loads(to_json(report))
    assert 'id="regions"' not in render_page(report)
    assert region_rows(report)[1] == []
