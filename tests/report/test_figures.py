"""Figures: they draw whatever comes, show the numbers they are given, and come out the same every time."""

import dataclasses
import hashlib
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from calseg_cli.report import drawing
from calseg_cli.report.accuracy_figures import confusion_figure, images_figure, row_shares
from calseg_cli.report.calibration_figures import confidence_figure, reliability_figure
from calseg_cli.report.class_figure import class_figure, rank_classes
from calseg_cli.report.data import Compared, ConfidenceHistogram, Intervals, Reliability, ReportData
from calseg_cli.report.region_figure import boundary_figure
from calseg_cli.report.run_figures import comparison_figure, training_curves
from calseg_cli.report.selection_figure import selection_figure

Draw = Callable[[ReportData], Figure]
LIKELY = Intervals(0.9, 500, 0, {}, np.stack([np.linspace(0, 0.8, 15), np.linspace(0.1, 1, 15)], axis=1))
DRAWN: dict[str, Draw] = {
    "intervals": lambda data: reliability_figure(data.reliability, data.scores, data.convention, LIKELY),
    "selection": lambda data: selection_figure(data.selection or pytest.fail("none"), data.scores),
    "by class": lambda data: class_figure(rank_classes(data.class_names, data.class_reliability, 10**6)[0]),
    "boundary": lambda data: boundary_figure({"pixels": (1, 9), "wrong pixels": (1, 0), "calibration error": (0, 2)}),
    "reliability": lambda data: reliability_figure(data.reliability, data.scores, data.convention),
    "confidence": lambda data: confidence_figure(data.confidence_histogram or pytest.fail("none")),
    "confusion": lambda data: confusion_figure(data.confusion, data.class_names),
    "images": lambda data: images_figure(data.images, data.scores, {data.images[0]["id"]: "best"}),
    "training": lambda data: training_curves(data.training),
    "comparison": lambda data: comparison_figure(data.comparison),
}


def words(figure: Figure) -> str:
    root = ElementTree.fromstring(svg(figure).replace("xlink:href", "href"))
    return " ".join(element.text or "" for element in root.iter("text"))


def svg(figure: Figure) -> str:
    return drawing.svg_text(figure, "name", "description")


@pytest.mark.parametrize("name", DRAWN)
def test_figures_are_small_self_contained_and_the_same_every_time(report: ReportData, name: str) -> None:
    first, second = svg(DRAWN[name](report)), svg(DRAWN[name](report))
    assert first == second
    assert len(first) < 150_000
    assert "http" not in first
    assert first.startswith('<svg role="img" aria-label="description"')
    ElementTree.fromstring(first.replace("xlink:href", "href"))


@pytest.mark.parametrize("name", DRAWN)
def test_text_and_colours_are_the_page_s(report: ReportData, name: str) -> None:
    text = svg(DRAWN[name](report))
    assert "var(--ink)" in text
    assert "DejaVu" not in text
    assert not any(color in text for color in drawing.VARIABLES)


def test_every_stand_in_colour_is_in_the_style_sheet() -> None:
    from calseg_cli.report.stylesheet import STYLE

    for color, variable in drawing.VARIABLES.items():
        assert STYLE.count(f"--{variable}:") == 2, f"{variable} needs a light and a dark value"
        assert f"--{variable}:{color}" in STYLE


def test_ids_differ_between_figures(report: ReportData) -> None:
    figure = DRAWN["reliability"](report)
    assert 'id="a-' in drawing.svg_text(figure, "a", "")
    assert 'id="a-' not in drawing.svg_text(figure, "b", "")


def test_descriptions_are_escaped(report: ReportData) -> None:
    assert 'aria-label="&quot;&lt;b&gt;&amp;"' in drawing.svg_text(DRAWN["confidence"](report), "a", '"<b>&')


def test_png_is_whole_white_and_the_same_every_time(report: ReportData, tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        drawing.save_png(DRAWN["reliability"](report), tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    with Image.open(tmp_path / "a.png") as image:
        assert image.convert("RGB").getpixel((0, 0)) == (255, 255, 255)


def test_figures_leave_matplotlib_s_settings_alone(report: ReportData) -> None:
    before = dict(matplotlib.rcParams)
    drawing.svg_text(DRAWN["training"](report), "a", "")
    assert dict(matplotlib.rcParams) == before


def test_neither_pyplot_nor_torch_is_loaded() -> None:
    script = (
        "import sys, numpy; from calseg_cli.report import page, run_figures as run, drawing; "
        "drawing.svg_text(run.training_curves([]), 'a', ''); "
        "sys.exit(' '.join({'torch', 'matplotlib.pyplot', 'h5py'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_fresh_process_gives_the_same_bytes() -> None:
    script = (
        "import sys, hashlib; from calseg_cli.report import accuracy_figures as figures, drawing; "
        "figure = figures.confusion_figure(__import__('numpy').eye(3, dtype=int), ['a', 'b', 'c']); "
        "print(hashlib.sha256(drawing.svg_text(figure, 'name', 'description').encode()).hexdigest())"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    here = svg(confusion_figure(np.eye(3, dtype=np.int64), ["a", "b", "c"]))
    assert done.stdout.strip() == hashlib.sha256(here.encode()).hexdigest()


@pytest.mark.parametrize("name", DRAWN)
def test_nothing_leaves_the_figure(report: ReportData, name: str) -> None:
    long = dataclasses.replace(report, class_names=["M" * 30] * len(report.class_names))
    figure = DRAWN[name](long)
    with drawing.style():
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        box = figure.get_tightbbox(canvas.get_renderer())
    width, height = figure.get_size_inches()
    assert min(box.x0, box.y0) > -0.03
    assert box.x1 < width + 0.03
    assert box.y1 < height + 0.03


def test_a_user_s_matplotlibrc_changes_nothing(report: ReportData) -> None:
    plain = svg(DRAWN["images"](report))
    with matplotlib.rc_context({"font.size": 30, "axes.grid": False, "lines.linewidth": 9}):
        assert svg(DRAWN["images"](report)) == plain


def test_reliability_shows_its_scores(report: ReportData) -> None:
    shown = words(DRAWN["reliability"](report))
    assert f"ECE {report.scores['ece']:.4f}" in shown
    assert "over-confident" in shown
    assert "equal-width bins" in shown


def test_the_bins_contributions_add_up_to_the_ece(report: ReportData) -> None:
    figure = reliability_figure(report.reliability, report.scores)
    bars = [bar.get_height() for bar in figure.axes[1].containers[0]]
    assert np.abs(bars).sum() == pytest.approx(report.scores["ece"])
    assert np.sum(bars) == pytest.approx(report.scores["signed_gap"])


def test_accuracy_and_gap_bars_meet_at_the_confidence(report: ReportData) -> None:
    flipped = np.where(report.reliability.lower > 0.8, 0.99, report.reliability.accuracy)
    reliability = dataclasses.replace(report.reliability, accuracy=flipped)
    axes = reliability_figure(reliability, report.scores).axes[0]
    common = reliability.count / reliability.count.sum() >= 0.001
    accuracy, confidence = reliability.accuracy[common], reliability.confidence[common]
    assert (accuracy > confidence).any()
    assert (accuracy < confidence).any()
    shared, over, under = ([bar.get_height() for bar in bars] for bars in axes.containers[:3])
    assert np.add(shared, under) == pytest.approx(accuracy)
    assert np.add(shared, over) == pytest.approx(confidence)
    assert np.minimum(over, under) == pytest.approx(0)


def test_empty_bins_and_no_pixels_at_all() -> None:
    edges, nothing = np.linspace(0, 1, 11), np.full(10, np.nan)
    bins = Reliability(edges[:-1], edges[1:], np.zeros(10, np.int64), nothing, nothing)
    shown = words(reliability_figure(bins, {"ece": np.nan, "signed_gap": np.nan}))
    assert "no labelled pixels" in shown
    assert "n/a" in shown
    assert "nan" not in shown
    zeros = np.zeros(10, np.int64)
    empty = words(confidence_figure(ConfidenceHistogram(edges[:-1], edges[1:], zeros, zeros)))
    assert empty.count("no labelled pixels") == 2
    assert "%" not in empty


def test_all_pixels_in_one_bin() -> None:
    edges, mean = np.linspace(0, 1, 3), np.array([np.nan, 1.0])
    bins = Reliability(edges[:-1], edges[1:], np.array([0, 10**10]), mean, mean)
    assert "ECE 0.0000" in words(reliability_figure(bins, {"ece": 0.0, "signed_gap": 0.0, "accuracy": 1.0}))


@pytest.mark.parametrize("num_classes", [1, 2, 20, 34])
def test_confusion_of_any_size(num_classes: int) -> None:
    names = [f"a very long name of a class with the number {i}" for i in range(num_classes)]
    confusion = np.random.default_rng(0).integers(1, 1000, (num_classes, num_classes))
    text = svg(confusion_figure(confusion, names))
    assert len(text) < 250_000
    assert text.count("<text") >= 2 * num_classes + (num_classes**2 if num_classes == 2 else 0)


def test_confusion_writes_shares_of_rows() -> None:
    shown = words(confusion_figure(np.array([[3, 1, 0], [0, 0, 0], [0, 0, 5]]), ["a", "b", "c"])).split()
    assert {"75", "25", "100", "n/a"} <= set(shown)
    assert "0" not in shown


def test_row_shares_add_up_or_are_missing() -> None:
    confusion = np.random.default_rng(0).integers(0, 50, (6, 6))
    confusion[2] = 0
    shares = row_shares(confusion)
    assert np.isnan(shares[2]).all()
    assert np.delete(shares, 2, axis=0).sum(axis=1) == pytest.approx(np.ones(5))


@pytest.mark.parametrize("name", ["$\\frac{", "a\nb\tc\x00", "日本語", "<b>&amp;", "", "x" * 500])
def test_odd_names_are_drawn_as_they_are(name: str) -> None:
    figure = confusion_figure(np.eye(2, dtype=np.int64), [name, "b"])
    assert drawing.clean(name) in words(figure)


def test_images_without_labels_are_left_out(report: ReportData) -> None:
    unlabelled = {"id": "x", "miou": np.nan, "ece": np.nan, "accuracy": np.nan, "confidence": np.nan}
    with_it = svg(images_figure([*report.images, unlabelled], report.scores))
    assert with_it == svg(images_figure(report.images, report.scores))
    assert "no image" in words(images_figure([unlabelled], {"miou": np.nan}))
    assert "no image" in words(images_figure([], {}))


def test_images_are_told_apart_by_the_sign_of_their_gap() -> None:
    rows: list[dict[str, Any]] = [
        {"id": "a", "miou": 0.5, "ece": 0.1, "accuracy": 0.5, "confidence": 0.6},
        {"id": "b", "miou": 0.6, "ece": 0.2, "accuracy": 0.5, "confidence": 0.3},
        {"id": "c", "miou": 0.7, "ece": 0.2, "accuracy": 0.5, "confidence": 0.3},
    ]
    shown = words(images_figure(rows, {"ece": 0.1, "miou": 0.6}, {"b": "worst"}))
    assert "over-confident (1)" in shown
    assert "under-confident (2)" in shown
    assert "worst" in shown


def test_many_images_stay_small(report: ReportData) -> None:
    rng = np.random.default_rng(0)
    rows = [{**report.images[0], "id": str(i), "miou": rng.random(), "ece": rng.random()} for i in range(6000)]
    assert len(svg(images_figure(rows, report.scores))) < 300_000


def test_training_shows_every_term_and_says_where_nothing_is(log: list[dict[str, Any]]) -> None:
    shown = words(training_curves(log))
    for name in ("cross_entropy", "feature_distance", "sum", "learning rate", "none"):
        assert name in shown
    assert words(training_curves([])).split().count("none") == 4


def test_comparison_takes_what_it_is_given(report: ReportData) -> None:
    results = [Compared("a", {"miou": 0.5}, report.reliability), Compared("b", {"miou": np.nan, "ece": 0.1})]
    shown = words(comparison_figure(results))
    assert "0.5000" in shown
    assert "n/a" in shown
    assert "Reliability" in shown
    assert "Reliability" not in words(comparison_figure([dataclasses.replace(r, reliability=None) for r in results]))
