"""Pixels that changed class: rows against loops, colours of single pixels, a figure that draws what it is given."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from calseg_cli.report import drawing
from calseg_cli.report.changed_figure import MOST_ROWS, change_rows, changed_figure, changed_overlay

PALETTE = [(200, 0, 0), (0, 200, 0), (0, 0, 200)]
tables = st.integers(1, 5).flatmap(lambda n: arrays.arrays(np.int64, (n, n), elements=st.integers(0, 50)))


@given(tables)
def test_rows_are_the_changes_of_the_table(counts):
    names = [f"class {index}" for index in range(len(counts))]
    rows = change_rows(counts, names)
    wanted = {
        (names[i], names[j]): counts[i, j]
        for i in range(len(counts)) for j in range(len(counts)) if i != j and counts[i, j]
    }  # fmt: skip
    assert {(row.before, row.after): row.pixels for row in rows} == wanted
    assert [row.pixels for row in rows] == sorted(wanted.values(), reverse=True)
    for row in rows:
        assert row.share == pytest.approx(row.pixels / counts.sum())
        assert row.of_before == pytest.approx(row.pixels / counts[names.index(row.before)].sum())


def test_only_changed_pixels_have_a_colour():
    before, after = np.array([[0, 1, 2]]), np.array([[1, 1, 0]])
    image = np.array([[[10, 20, 30], [255, 255, 255], [0, 0, 0]]], np.uint8)
    picture = changed_overlay(image, before, after, PALETTE, 255)
    assert picture.dtype == np.uint8
    assert picture[0, 0].tolist() == [0, 200, 0]
    assert picture[0, 1].tolist() == [255, 255, 255]
    assert picture[0, 2].tolist() == [200, 0, 0]
    dark = changed_overlay(np.zeros((1, 3, 3), np.uint8), before, before, PALETTE, 255)
    assert (dark == dark[..., :1]).all()
    assert 100 < dark[0, 0, 0] < 200  # pale, so that colours stand out
    assert (changed_overlay(None, before, before, PALETTE, 255) == 200).all()


def bars(axes):
    return sorted(round(bar.get_width(), 9) for bar in axes.patches if bar.get_width())


def test_bars_are_shares_of_all_pixels():
    counts = np.array([[80, 10, 0], [5, 4, 0], [0, 1, 0]])
    figure = changed_figure(counts, ["road", "car", "sky"])
    classes, changes = figure.axes
    assert bars(classes) == [-0.1, -0.05, -0.01, 0.05, 0.11]
    assert bars(changes) == [0.01, 0.05, 0.1]
    assert [label.get_text() for label in changes.get_yticklabels()] == ["road → car", "car → road", "sky → car"]
    assert [label.get_text() for label in classes.get_yticklabels()] == ["road", "car", "sky"]
    texts = [text.get_text() for text in changes.texts]
    assert texts == ["10.00 %", "5.00 %", "1.00 %"]


def test_classes_without_a_pixel_are_left_out_and_few_changes_are_named():
    counts = np.ones((6, 6), np.int64)
    counts[5], counts[:, 5] = 0, 0
    classes, changes = changed_figure(counts, list("abcdef")).axes
    assert [label.get_text() for label in classes.get_yticklabels()] == list("abcde")
    assert len(changes.get_yticklabels()) == MOST_ROWS


@pytest.mark.parametrize("counts", [np.diag([3, 4]), np.zeros((2, 2), np.int64)], ids=["nothing", "empty"])
def test_where_nothing_changes_it_says_so(counts):
    figure = changed_figure(counts, ["a", "b"])
    assert "no pixel changes class" in [text.get_text() for text in figure.axes[1].texts]
    assert drawing.svg_text(figure, "f", "")


def test_the_same_bytes_every_time(tmp_path):
    counts = np.array([[5, 2], [1, 5]])
    for name in ("one.png", "two.png"):
        drawing.save_png(changed_figure(counts, ["a", "b$"]), tmp_path / name)
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()
