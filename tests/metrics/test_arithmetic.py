"""exp, log and sums that are the same bits everywhere."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from calseg_cli.metrics.arithmetic import EXP_FLOOR, GROUP, exp_of_negative, log_from_one, sum_in_order

HALF_ULP = 2.0**-24


def test_exp_is_within_two_units_in_the_last_place():
    x = torch.cat([-torch.linspace(0, 43, 400_001), -torch.logspace(-30, 1.6, 100_001)])
    true = np.exp(x.double().numpy())
    relative = np.abs(exp_of_negative(x).double().numpy() - true) / true
    assert relative.max() <= 2 * 2 * HALF_ULP


def test_exp_at_its_ends():
    ends = exp_of_negative(torch.tensor([0.0, -0.0, EXP_FLOOR, -1e4, -3e38, -math.inf, math.nan]))
    assert ends[:2].tolist() == [1.0, 1.0]
    assert ends[2] > 0
    assert (ends[3:6] == ends[2]).all()
    assert ends[2] ** 2 >= torch.finfo(torch.float32).tiny  # no denormal: processors take those at a crawl
    assert torch.isnan(ends[6])


def test_exp_never_falls_where_its_argument_rises_visibly():
    x = -torch.linspace(0, 43, 43 * 64 + 1)
    assert (exp_of_negative(x).diff() < 0).all()


@given(st.floats(1.0, 2.0**30, width=32))
def test_log_is_pythons(value):
    ours = log_from_one(torch.tensor([value]))[0].item()
    assert ours == pytest.approx(math.log(value), rel=5e-16, abs=0)


def test_log_of_one_is_zero_and_of_the_next_float_is_not():
    assert log_from_one(torch.tensor([1.0])).item() == 0.0
    above = 1 + 2.0**-23
    assert log_from_one(torch.tensor([above])).item() == pytest.approx(math.log1p(2.0**-23), rel=1e-15)


@pytest.mark.parametrize("classes", [1, 2, GROUP, GROUP + 1, 150])
def test_sums_are_by_groups_of_classes(classes):
    values = torch.rand(classes, 100, generator=torch.Generator().manual_seed(classes))
    total = np.zeros(100, np.float32)
    for first in range(0, classes, GROUP):
        part = np.zeros(100, np.float32)
        for row in values.numpy()[first : first + GROUP]:
            part = part + row
        total = total + part
    np.testing.assert_array_equal(sum_in_order(values), total)


@pytest.mark.gpu
def test_a_gpu_gives_the_same_bits(cuda):
    x = -torch.logspace(-20, 2, 1_000_001)
    assert torch.equal(exp_of_negative(x.to(cuda)).cpu(), exp_of_negative(x))
    y = 1 + torch.logspace(-7, 2.4, 1_000_001)
    assert torch.equal(log_from_one(y.to(cuda)).cpu(), log_from_one(y))
    z = torch.rand(150, 10_001)
    assert torch.equal(sum_in_order(z.to(cuda)).cpu(), sum_in_order(z))
