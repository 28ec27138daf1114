"""Figures of trust in parts: they draw the numbers they are given, say what they leave out, and stand emptiness."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from calseg_cli.report import drawing
from calseg_cli.report.calibration_figures import reliability_figure
from calseg_cli.report.class_figure import MOST_CLASSES, class_figure, rank_classes
from calseg_cli.report.data import Intervals, RegionRow, Reliability, ReportData, Selection
from calseg_cli.report.page import render_page
from calseg_cli.report.region_figure import boundary_figure, boundary_split
from calseg_cli.report.selection_figure import selection_figure

NAN = math.nan


def bins_of(count: list[int], accuracy: list[float], confidence: list[float] | None = None) -> Reliability:
    edges = np.linspace(0, 1, len(count) + 1)
    middle = (edges[:-1] + edges[1:]) / 2
    means = middle if confidence is None else np.array(confidence)
    filled = np.array(count) > 0
    return Reliability(
        edges[:-1], edges[1:], np.array(count), np.where(filled, means, NAN), np.where(filled, accuracy, NAN)
    )


def lines(figure: Any) -> dict[str, Any]:
    return {line.get_label(): line.get_xydata() for line in figure.axes[0].lines}


def segments(axes: Any) -> list[Any]:
    return [part.tolist() for drawn in axes.collections for part in drawn.get_segments()]


def test_each_interval_stands_at_its_dot_and_rare_bins_are_pale() -> None:
    bins = bins_of([1, 5000, 5000, 0], [1.0, 0.3, 0.6, NAN])
    given = Intervals(0.9, 500, 0, {}, np.array([[0.1, 0.9], [0.25, 0.4], [NAN, NAN], [0.2, 0.3]]))
    figure = reliability_figure(bins, {}, "", given)
    plain, pale = figure.axes[0].collections
    np.testing.assert_allclose(plain.get_segments(), [[[0.375, 0.25], [0.375, 0.4]]])
    np.testing.assert_allclose(pale.get_segments(), [[[0.125, 0.1], [0.125, 0.9]]])
    assert (plain.get_alpha(), pale.get_alpha()) == (1.0, 0.35)
    assert figure.texts[0].get_text() == "Upright lines: 90 % intervals of 500 resamples of whole images"


def test_without_intervals_nothing_is_drawn_or_said_of_them(report: ReportData) -> None:
    bare = dataclasses.replace(report, intervals=Intervals(0.9, 500, 0, {}))
    assert drawing.svg_text(
        reliability_figure(bare.reliability, bare.scores, "", bare.intervals), "a", ""
    ) == drawing.svg_text(reliability_figure(bare.reliability, bare.scores), "a", "")
    unknown = Intervals(0.9, 500, 0, {}, np.full((15, 2), NAN))
    figure = reliability_figure(report.reliability, report.scores, "", unknown)
    assert "two images or more" in figure.texts[0].get_text()


def test_the_bounds_of_a_ranking_are_those_of_pixels_put_in_order() -> None:
    rng = np.random.default_rng(3)
    wrong = rng.random(200) < 0.35
    perfect = np.cumsum(np.sort(wrong)) / np.arange(1, 201)
    whole = Selection(np.arange(1, 201) / 200, np.cumsum(wrong) / np.arange(1, 201), np.zeros(200))
    np.testing.assert_allclose(whole.perfect(), perfect, atol=1e-12)
    assert whole.error_rate() == pytest.approx(wrong.mean())
    assert (whole.perfect() <= whole.risk + 1e-12).all()


def test_curve_references_and_marks_are_where_the_numbers_say() -> None:
    curve = Selection(np.array([0.25, 0.5, 0.75, 1.0]), np.array([0.0, 0.1, 0.2, 0.4]), np.zeros(4))
    scores = {"aurc": 0.175, "augrc": 0.1, "risk_80": 0.24, "coverage_5": 0.4}
    figure = selection_figure(curve, scores)
    drawn = lines(figure)
    np.testing.assert_allclose(drawn["by confidence"], [[0.25, 0.0], [0.5, 0.1], [0.75, 0.2], [1.0, 0.4]])
    np.testing.assert_allclose(drawn["random order"][:, 1], 0.4)
    np.testing.assert_allclose(drawn["perfect order, errors last"][:, 1], [0, 0, 0.2, 0.4], atol=1e-12)
    assert drawn["risk at 80 %: 0.2400"].tolist() == [[0.8, 0.24]]
    assert drawn["coverage at 5 %: 0.4000"].tolist() == [[0.4, 0.05]]
    assert figure.axes[0].get_title("right") == "AURC 0.1750 · AUGRC 0.1000"


def test_a_network_of_few_errors_has_its_mark_at_the_end_of_the_curve() -> None:
    curve = Selection(np.array([0.5, 1.0]), np.array([0.0, 0.02]), np.zeros(2))
    drawn = lines(selection_figure(curve, {"risk_80": 0.01, "coverage_5": 1.0}))
    assert drawn["coverage at 5 %: 1.0000"].tolist() == [[1.0, 0.02]]


@pytest.mark.parametrize("scores", [{}, {"aurc": NAN, "risk_80": NAN, "coverage_5": NAN}])
def test_a_curve_of_nothing_says_so(scores: dict[str, float]) -> None:
    figure = selection_figure(Selection(np.zeros(0), np.zeros(0), np.zeros(0)), scores)
    assert [text.get_text() for text in figure.axes[0].texts] == ["no labelled pixels"]
    perfect = Selection(np.array([0.5, 1.0]), np.zeros(2), np.zeros(2))
    assert "risk at 80 %: n/a" not in lines(selection_figure(perfect, scores))


def test_classes_come_by_what_they_add_to_the_error() -> None:
    loud = bins_of([0, 10], [NAN, 0.0], [NAN, 0.9])  # off by 0.9 on 10 of 1000 pixels
    common = bins_of([500, 490], [0.25, 0.85])  # off by 0.1 at the top on 490
    curves, never = rank_classes(["loud", "common", "ghost"], [loud, common, bins_of([0, 0], [NAN, NAN])], 1000)
    assert [curve.name for curve in curves] == ["common", "loud"]
    assert never == ["ghost"]
    assert [curve.added for curve in curves] == pytest.approx([0.049, 0.009])
    assert [curve.gap for curve in curves] == pytest.approx([-0.1 * 490 / 990, 0.9])
    assert [curve.share for curve in curves] == pytest.approx([0.99, 0.01])


def test_a_panel_shows_its_bins_its_gaps_and_its_numbers() -> None:
    curves, _ = rank_classes(["sea"], [bins_of([1, 5000, 4999], [0.9, 0.2, 0.9])], 20_000)
    (axes,) = class_figure(curves).axes
    dots = [line.get_xydata().tolist() for line in axes.lines if line.get_marker() == "o"]
    assert [len(some) for some in dots] == [2, 1]  # the bin of a single pixel is pale
    np.testing.assert_allclose(dots[1], [[1 / 6, 0.9]])
    gaps = sorted(abs(low[1] - high[1]) for low, high in segments(axes))
    np.testing.assert_allclose(gaps, sorted([0.3, 0.9 - 5 / 6, 0.9 - 1 / 6]))
    shown = [text.get_text() for text in axes.texts]
    assert shown[0] == "sea"
    ece = (5000 * 0.3 + 4999 * (0.9 - 5 / 6) + (0.9 - 1 / 6)) / 10_000
    gap = (5000 * 0.3 - 4999 * (0.9 - 5 / 6) - (0.9 - 1 / 6)) / 10_000
    assert shown[1:] == [f"ECE {ece:.3f} · gap +{gap:.3f}", "50.0 % of pixels"]


@pytest.mark.parametrize("number", [0, 1, 2, 6, 7, 24, 150])
def test_any_number_of_classes_is_drawn_small(number: int) -> None:
    rng = np.random.default_rng(number)
    made = [bins_of(rng.integers(1, 100, 15).tolist(), rng.random(15).tolist()) for _ in range(number)]
    curves, never = rank_classes([f"a long name of class {index}" for index in range(number)], made, 10**6)
    figure = class_figure(curves)
    assert sum(axes.get_visible() and bool(axes.texts) for axes in figure.axes) == min(number, MOST_CLASSES)
    assert never == []
    text = drawing.svg_text(figure, "name", "text")
    assert len(text) < 300_000
    assert ("no class was predicted" in text) == (number == 0)


def test_the_page_says_which_classes_have_no_panel(make_report: Callable[..., ReportData]) -> None:
    plain = make_report(num_classes=150, num_images=4, size=(96, 128))
    silent = dataclasses.replace(plain, class_reliability=[bins_of([0, 0], [NAN, NAN]), *plain.class_reliability[1:]])
    page = render_page(silent)
    assert "125 more classes are left out and would add 7" in page
    assert "Never predicted, so there is nothing to draw: road." in page
    none = [bins_of([0, 0], [NAN, NAN])] * 150
    page = render_page(dataclasses.replace(plain, class_reliability=none))
    assert "no class was predicted" in page
    assert "class 11 and 138 more." in page
    few = render_page(make_report(num_classes=2))
    assert "are left out and" not in few
    assert "Never predicted" not in few


def rows(near: tuple[int, float, float], far: tuple[int, float, float]) -> list[RegionRow]:
    pairs = (("boundary", near), ("interior", far))
    return [RegionRow(name, pixels, right, NAN, NAN, ece, NAN) for name, (pixels, right, ece) in pairs]


def test_the_boundary_s_part_of_pixels_errors_and_miscalibration() -> None:
    split = boundary_split(rows((100, 0.5, 0.2), (900, 0.9, 0.02)))
    assert split["pixels"] == (100, 900)
    assert split["wrong pixels"] == pytest.approx((50, 90))
    assert split["calibration error"] == pytest.approx((20, 18))
    widths = [bar.get_width() for bar in boundary_figure(split).axes[0].containers[0]]
    np.testing.assert_allclose(widths, [0.1, 50 / 140, 20 / 38])


def test_boundaries_without_pixels_or_errors_or_not_measured() -> None:
    assert boundary_split([]) == {}
    assert boundary_split(rows((5, 1, 0), (5, 1, 0))[:1]) == {}
    empty = boundary_split(rows((0, NAN, NAN), (10, 1.0, 0.0)))
    assert empty == {"pixels": (0, 10), "wrong pixels": (0, 0), "calibration error": (0, 0)}
    assert [text.get_text() for text in boundary_figure(empty).axes[0].texts] == ["0.0 %", "none", "none"]


def test_the_page_shows_boundaries_only_where_they_were_measured(make_report: Callable[..., ReportData]) -> None:
    regions = rows((100, 0.5, 0.2), (900, 0.9, 0.02))
    assert "52.6 % of the calibration error" in render_page(make_report(num_images=2, regions=regions))
    assert "Where the errors sit" not in render_page(make_report(num_images=2, regions=regions[:1]))


def test_the_page_s_score_table_has_the_intervals(make_report: Callable[..., ReportData]) -> None:
    plain = make_report(num_images=2)
    told = Intervals(0.9, 500, 3, {"miou": (0.1, 0.2), "ece": (NAN, NAN)}, np.full((15, 2), 0.5))
    page = render_page(dataclasses.replace(plain, intervals=told))
    table = page[page.index('<table class="scores">') :]
    table = table[: table.index("</table>")]
    assert "90 % interval</th>" in table
    assert "500 resamples of whole images, seed 3" in table
    assert f"<td>{plain.scores['miou']:.4f}</td><td>0.1000 to 0.2000</td>" in table
    assert f'<td>{plain.scores["ece"]:.4f}</td><td class="none">n/a</td>' in table
    assert {row.count("<td") for row in table.split("<tr>")[2:]} == {5}
    assert "finer counts than are kept" in page
    bare = render_page(plain)
    assert "interval</th>" not in bare
    assert "finer counts" not in bare


def test_the_page_reads_the_curve_at_a_few_coverages(make_report: Callable[..., ReportData]) -> None:
    curve = Selection(np.array([0.5, 0.8, 0.9, 0.95, 1.0]), np.array([0, 0.1, 0.2, 0.3, 0.4]), np.full(5, 0.25))
    page = render_page(make_report(num_images=2, selection=curve))
    assert "<td>80 %</td><td>10.00 %</td><td>25.00 %</td><td>0.2500</td>" in page
    assert "Risk and coverage" not in render_page(make_report(num_images=2, selection=None))
