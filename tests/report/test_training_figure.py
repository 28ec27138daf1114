"""The picture of a moment of self-training: colours of temperatures and classes, and what the figure shows."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from calseg_cli.report import drawing
from calseg_cli.report.pictures import colorize
from calseg_cli.report.pseudo_pictures import STRIPE
from calseg_cli.report.training_figure import FURTHEST, Panel, taught_classes, temperature_map, training_figure

PALETTE = [(200, 0, 0), (0, 200, 0)]


@given(st.floats(0.01, 100), st.floats(0.01, 100))
def test_temperatures_diverge_from_one_and_never_depend_on_the_picture(first, second):
    both = temperature_map(np.array([[first, second]]))
    assert np.array_equal(both[:, :1], temperature_map(np.array([[first]])))
    red, green, blue = both[0, 0].astype(int)
    if first > 1.1:
        assert red > max(green, blue)
    elif first < 0.9:
        assert red < min(green, blue)
    elif first == 1:
        assert min(red, green, blue) > 240
    if 1 <= first <= second:
        assert both[0, 0, 1] >= both[0, 1, 1]  # the further the redder


def test_a_temperature_and_its_inverse_are_equally_far():
    reds, teals = (temperature_map(np.geomspace(1, end, 9)[None])[0].astype(float) for end in (FURTHEST, 1 / FURTHEST))
    for colors in (reds, teals):
        far = np.abs(colors - colors[0]).sum(axis=1) / np.abs(colors[-1] - colors[0]).sum()
        assert far == pytest.approx(np.linspace(0, 1, 9), abs=0.01)


def test_what_is_not_taught_is_striped_as_no_class_is():
    rows, columns = np.indices((9, 9))
    palette = [*PALETTE, STRIPE[1]]
    labels, weights = rows % 3, (columns >= 6) * 0.25
    shown = taught_classes(labels, weights, palette, 255)
    assert np.array_equal(shown[:, 6:], colorize(labels, palette, 255)[:, 6:])
    stripes = {tuple(color) for color in shown[:, :6].reshape(-1, 3).tolist()}
    assert stripes == set(STRIPE)


def test_the_figure_shows_every_panel_and_a_scale_for_each_map(tmp_path):
    image = np.zeros((12, 20, 3), np.uint8)
    upper = [
        Panel("an image", image),
        Panel("how sure", np.full((12, 20), 0.5), "confidence"),
        Panel("how soft", np.full((12, 20), 1.5), "temperature"),
    ]
    figure = training_figure("a/b, step 5", [upper, [Panel("classes", image, "classes")]], ["road", "sky"], PALETTE)
    shown = [axes for axes in figure.axes if axes.images]
    assert [axes.get_title(loc="left") for axes in shown] == ["an image", "how sure", "how soft", "classes"]
    scales = {
        axes.get_title(loc="left"): [tick.get_text() for tick in axes.child_axes[0].get_xticklabels()]
        for axes in shown
        if axes.child_axes
    }
    assert scales == {"how sure": ["0", "0.25", "0.5", "0.75", "1"], "how soft": ["≤0.5", "0.71", "1", "1.41", "≥2"]}
    assert figure.texts[0].get_text() == "a/b, step 5"
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["road", "sky", "not taught"]
    for name in ("one.png", "two.png"):
        drawing.save_png(figure, tmp_path / name)
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()
