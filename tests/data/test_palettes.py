"""Default colours: distinct, and stable when a class is added."""

import itertools

import pytest

from calseg_cli.data.palettes import default_palette


@pytest.mark.parametrize("count", [0, 1, 19, 254])
def test_distinct_and_prefix_stable(count):
    colors = default_palette(count)
    assert len(set(colors)) == len(colors) == count
    assert default_palette(254)[:count] == colors


def test_a_street_scene_can_be_told_apart():
    colors = default_palette(19)
    assert min(sum(abs(a - b) for a, b in zip(x, y, strict=True)) for x, y in itertools.combinations(colors, 2)) > 40
