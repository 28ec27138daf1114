"""The figure of a choice: dots, intervals and marks where the numbers say; refused ones hollow; anything is drawn."""

import numpy as np
import pytest

from calseg_cli.report import drawing
from calseg_cli.report.checkpoint_figure import CheckpointScores, Course, checkpoint_figure

NAN = np.nan


def scores(label, *rows, better="lower", floor=None):
    return CheckpointScores(label, better, np.array(rows, np.float64).reshape(-1, 3), floor)


def course(**changed):
    ece = scores("ECE", (0.02, 0.01, 0.03), (0.01, 0.005, 0.02), (NAN, NAN, NAN))
    miou = scores("mIoU", (0.3, 0.2, 0.4), (0.5, 0.45, 0.55), (NAN, NAN, NAN), better="higher", floor=0.48)
    given = {
        "title": "lowest ECE, source val",
        "names": ("a", "b", "c"),
        "steps": (100, 200, 900),
        "chosen": 1,
        "refused": (True, False, True),
        "scores": (ece, miou),
    }
    return Course(**{**given, **changed})


def dots(axes, size):
    return [
        (line.get_xydata().tolist(), line.get_markerfacecolor())
        for line in axes.lines
        if line.get_markersize() == size and line.get_marker() == "o" and len(line.get_xydata())
    ]


def test_dots_intervals_ring_and_floor_are_where_the_numbers_say():
    figure = checkpoint_figure(course())
    above, below = figure.axes
    sound, refused = dots(above, 5)
    assert sound[0] == [[200, 0.01]]
    assert refused[0][0] == [100, 0.02]
    assert refused[1] == "white" != sound[1]
    assert dots(above, 11) == [([[200, 0.01]], "none")]
    assert dots(below, 11) == [([[200, 0.5]], "none")]
    lines = [part.tolist() for part in above.collections[0].get_segments()]
    np.testing.assert_allclose(lines[:2], [[[100, 0.01], [100, 0.03]], [[200, 0.005], [200, 0.02]]])
    floors = [line.get_ydata()[0] for line in below.lines if line.get_linestyle() == "--" and len(line.get_ydata())]
    assert floors == [0.48]
    assert not any(line.get_linestyle() == "--" for line in above.lines if set(line.get_ydata()) == {0.48})
    told = [text.get_text() for text in above.get_legend().get_texts()]
    assert told == ["chosen", "sound", "refused", "floor on mIoU"]
    assert (above.get_title("left"), below.get_title("left")) == ("ECE (lower is better)", "mIoU (higher is better)")
    assert below.get_xlabel() == "training step"
    assert figure.texts[0].get_text() == "lowest ECE, source val"


@pytest.mark.parametrize("steps", [(0, 0, 5), (-1, 3, 4)])
def test_names_are_the_axis_where_steps_do_not_tell_them_apart(steps):
    figure = checkpoint_figure(course(steps=steps))
    labels = [label.get_text() for label in figure.axes[-1].get_xticklabels()]
    assert labels == ["a", "b", "c"]
    assert dots(figure.axes[0], 11)[0][0] == [[1, 0.01]]


def test_the_picture_is_the_same_every_time(tmp_path):
    for name in ("a.png", "b.png"):
        drawing.save_png(checkpoint_figure(course()), tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_one_many_or_unknown():
    one = course(names=("a",), steps=(5,), chosen=0, refused=(False,), scores=(scores("ECE", (0.1, NAN, NAN)),))
    many = course(
        names=tuple(f"a very long name of checkpoint {n}" for n in range(60)),
        steps=(-1,) * 60,
        refused=(False,) * 60,
        scores=(scores("SND", *[(n / 60, NAN, NAN) for n in range(60)]),),
    )
    unknown = course(chosen=None, scores=(scores("ECE", *[(NAN, NAN, NAN)] * 3),))
    for some in (one, many, unknown):
        drawing.svg_text(checkpoint_figure(some), "name", "text")
    assert [text.get_text() for text in checkpoint_figure(unknown).axes[0].texts] == ["not known"]
