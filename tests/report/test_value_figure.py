"""The scatter of expected against true errors: every dot is there, empty is fine, the same bytes every time."""

import numpy as np

from calseg_cli.report.drawing import save_png
from calseg_cli.report.value_figure import Group, value_figure


def groups(count=9):
    generator = np.random.default_rng(0)
    return [Group(f"kind $ {n}", generator.random(4) / 5, generator.random(4) / 4) for n in range(count)]


def test_every_image_is_a_dot_at_its_place():
    made = groups()
    (axes,) = value_figure(made, "told").axes
    dots = {line.get_label(): line.get_xydata() for line in axes.lines}
    for group in made:
        np.testing.assert_allclose(dots[group.name], np.stack([group.true, group.expected], 1))
    assert axes.get_xlim() == axes.get_ylim()
    assert axes.get_xlim()[1] >= max(float(max(group.true.max(), group.expected.max())) for group in made)
    assert len(axes.get_legend().get_texts()) == len(made)


def test_nothing_to_show_is_said():
    (axes,) = value_figure([], "").axes
    assert "no labelled images" in [text.get_text() for text in axes.texts]
    value_figure([Group("zero", np.zeros(1), np.zeros(1))], "")


def test_the_same_bytes(tmp_path):
    for name in ("a.png", "b.png"):
        save_png(value_figure(groups(), "told"), tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
