"""Reliability curves over one another; and intervals beside scores."""

import dataclasses
import math

import numpy as np
import pytest

from calseg_cli.report import drawing
from calseg_cli.report.data import Compared, Intervals, Reliability, ReportData
from calseg_cli.report.overlay_figure import overlay_figure
from calseg_cli.report.tables import score_rows, to_document


def curve(accuracy, count):
    edges = np.linspace(0, 1, len(count) + 1)
    middle = (edges[:-1] + edges[1:]) / 2
    return Reliability(edges[:-1], edges[1:], np.array(count), middle, np.array(accuracy, float))


@pytest.fixture
def results():
    return [
        Compared("day", {"ece": 0.125}, curve([0.2, 0.5, 0.8], [2, 4000, 6000])),
        Compared("dusk", {"ece": math.nan}, curve([0.1, 0.4, 0.7], [3000, 3000, 4000])),
    ]


def test_each_curve_is_drawn_where_its_bins_are(results):
    figure = overlay_figure(results, "the convention")
    diagram, counts = figure.axes
    points = {line.get_label(): line.get_xydata() for line in diagram.lines}
    np.testing.assert_allclose(points["day: ECE 0.1250"], [[0.5, 0.5], [5 / 6, 0.8]])
    np.testing.assert_allclose(points["dusk: ECE n/a"], [[1 / 6, 0.1], [0.5, 0.4], [5 / 6, 0.7]])
    pale = [
        line.get_xydata().tolist() for line in diagram.lines if line.get_alpha() == 0.35 and line.get_marker() == "o"
    ]
    np.testing.assert_allclose(pale, [[[1 / 6, 0.2]]])  # two of ten thousand pixels
    shares = [patch.get_data().values for patch in counts.patches]
    np.testing.assert_allclose(shares, [[0.0002, 0.3999, 0.5999], [0.3, 0.3, 0.4]], atol=1e-4)
    assert counts.get_yscale() == "log"
    assert [text.get_text() for text in diagram.get_legend().get_texts()] == ["day: ECE 0.1250", "dusk: ECE n/a"]
    assert figure.texts[0].get_text() == "the convention"


def test_the_picture_is_the_same_every_time(results, tmp_path):
    for name in ("a.png", "b.png"):
        drawing.save_png(overlay_figure(results), tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_nothing_to_draw(results):
    empty = Compared("empty", {}, curve([math.nan] * 3, [0, 0, 0]))
    bare = Compared("bare", {})
    for some in ([empty], [bare], [empty, *results, bare], results * 8):
        drawing.svg_text(overlay_figure(some), "name", "text")
    assert len(overlay_figure([bare, *results]).axes[0].get_legend().get_texts()) == 2


def test_intervals_stand_beside_their_scores(report: ReportData) -> None:
    assert "intervals" not in to_document(report)
    given = Intervals(0.9, 500, 3, {"miou": (0.1, 0.2), "signed_gap": (-0.1, 0.2), "ece": (math.nan, math.nan)})
    shown = dataclasses.replace(report, intervals=given)
    headers, rows = score_rows(shown)
    assert headers == ["score", "value", "90 % interval", "better"]
    cells = {row[0]: row[2] for row in rows}
    assert cells["mIoU"] == "0.1000 to 0.2000"
    assert cells["signed gap"] == "-0.1000 to +0.2000"
    assert cells["ECE"] == cells["NLL"] == "n/a"
    assert {len(row) for row in rows} == {4}
    document = to_document(shown)["intervals"]
    assert document["scores"] == {"miou": [0.1, 0.2], "signed_gap": [-0.1, 0.2], "ece": [None, None]}
    assert (document["level"], document["resamples"], document["seed"]) == (0.9, 500, 3)
