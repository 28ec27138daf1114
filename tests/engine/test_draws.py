"""Generators from numbers: the same numbers the same bits, other numbers other bits, nothing global."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from calseg_cli.engine.draws import draw_generator

NUMBERS = st.lists(st.integers(0, 2**64 - 1), max_size=5)


def drawn(*numbers):
    return tuple(torch.rand(4, generator=draw_generator(*numbers)).tolist())


@given(NUMBERS, NUMBERS)
def test_the_numbers_and_nothing_else(one, other):
    torch.rand(1)
    assert drawn(*one) == drawn(*one)
    assert (drawn(*one) == drawn(*other)) == (one == other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ((), (0,)),
        ((1,), (1, 0)),
        ((0, 1), (2**32,)),
        ((1, 2), (2, 1)),
        ((5, 7 * 2**32 + 1), (2**32 + 5, 7)),
        ((0,), (2**32,)),
    ],
)
def test_numbers_that_look_alike(one, other):
    assert drawn(*one) != drawn(*other)


def test_steps_next_to_each_other_have_nothing_in_common():
    values = np.array([drawn(0, step, slot) for step, slot in itertools.product(range(500), range(4))])
    assert len(np.unique(values[:, 0])) > 1990
    correlation = np.corrcoef(values[:-1, 0], values[1:, 0])[0, 1]
    assert abs(correlation) < 4 / np.sqrt(2000)
    assert abs(values.mean() - 0.5) < 4 * np.sqrt(1 / 12 / values.size)


def test_nothing_global_is_touched():
    states = torch.get_rng_state(), np.random.get_state()[1].copy()
    generator = draw_generator(3, 4)
    torch.rand(5, generator=generator)
    assert generator.device.type == "cpu"
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (np.random.get_state()[1] == states[1]).all()


@pytest.mark.parametrize("number", [-1, 2**64])
def test_out_of_range(number):
    with pytest.raises(ValueError, match="2\\^64"):
        draw_generator(0, number)
