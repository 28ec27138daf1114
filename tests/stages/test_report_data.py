"""Which images a report shows."""

import math

import pytest

from calseg_cli.metrics.scores import ImageScores
from calseg_cli.stages.report_data import choose_examples


def images(*mious):
    return tuple(ImageScores(f"{n:02}", 10, m, 0.5, 0.1, 0.6, 1.0, 0.5) for n, m in enumerate(mious))


def test_best_median_and_worst_of_many():
    chosen = choose_examples(images(*(n / 100 for n in range(21))), 3)
    assert chosen["best"] == ["20", "19", "18"]
    assert sorted(chosen["median"]) == ["09", "10", "11"]
    assert sorted(chosen["worst"]) == ["00", "01", "02"]


@pytest.mark.parametrize("count", range(12))
def test_no_image_twice_however_few(count):
    chosen = choose_examples(images(*([0.5] * count)), 3)
    names = [name for group in chosen.values() for name in group]
    assert len(names) == len(set(names))
    assert len(names) <= count
    assert bool(names) == bool(count)


def test_images_without_a_score_are_left_out():
    assert choose_examples(images(math.nan, 0.3), 1)["best"] == ["01"]
