"""The learning rate's course."""

import pytest

from calseg_cli.engine.schedule import lr_factor


@pytest.mark.parametrize("schedule", ["poly", "cosine", "constant"])
def test_warm_up_rises_and_decay_never_rises(schedule):
    factors = [lr_factor(s, 100, schedule=schedule, power=0.9, warmup_steps=10) for s in range(100)]
    assert factors[:10] == sorted(factors[:10])
    assert factors[10:] == sorted(factors[10:], reverse=True)
    assert all(0 < factor <= 1 for factor in factors)


def test_without_warm_up_it_starts_at_one():
    assert lr_factor(0, 10, schedule="poly", power=0.9, warmup_steps=0) == 1.0


def test_poly_is_the_published_formula():
    assert lr_factor(30, 120, schedule="poly", power=0.9, warmup_steps=0) == pytest.approx((1 - 30 / 120) ** 0.9)
