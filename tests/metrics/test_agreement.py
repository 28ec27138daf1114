"""Agreement of expected with true numbers, against scipy-free definitions."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calseg_cli.metrics.agreement import agreement, ranks


def test_against_numpy():
    generator = np.random.default_rng(0)
    y = generator.random(50)
    x = 0.3 * y + 0.1 * generator.random(50)
    scores = agreement(x, y)
    assert scores.count == 50
    assert scores.pearson == pytest.approx(np.corrcoef(x, y)[0, 1], rel=1e-12)
    order = [np.argsort(np.argsort(values)) for values in (x, y)]
    assert scores.spearman == pytest.approx(np.corrcoef(*order)[0, 1], rel=1e-12)
    assert scores.mse == pytest.approx(np.mean((x - y) ** 2))
    assert scores.r2 == pytest.approx(1 - np.mean((x - y) ** 2) / np.var(y))
    assert scores.bias == pytest.approx(x.mean() - y.mean())


def test_perfect_opposite_and_mean():
    y = np.array([0.1, 0.2, 0.4])
    assert vars(agreement(y, y)) == pytest.approx(
        {"count": 3, "pearson": 1, "spearman": 1, "r2": 1, "mse": 0, "bias": 0}
    )
    assert agreement(-y, y).spearman == pytest.approx(-1)
    flat = agreement(np.full(3, y.mean()), y)
    assert math.isnan(flat.pearson)
    assert math.isnan(flat.spearman)
    assert flat.r2 == pytest.approx(0)


def test_nothing_and_constants_have_no_correlation():
    assert agreement(np.zeros(0), np.zeros(0)).count == 0
    assert math.isnan(agreement(np.zeros(0), np.zeros(0)).mse)
    constant = agreement(np.array([0.1, 0.2]), np.array([0.3, 0.3]))
    assert math.isnan(constant.r2)
    assert math.isnan(constant.pearson)
    with pytest.raises(ValueError, match="against"):
        agreement(np.zeros(2), np.zeros(3))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=12))
def test_ranks_share_the_mean_of_theirs(values):
    array = np.array(values, float)
    below = (array[None] < array[:, None]).sum(1)
    equal = (array[None] == array[:, None]).sum(1)
    np.testing.assert_allclose(ranks(array), below + (equal + 1) / 2)
