"""Conditions on scores."""

import math
from dataclasses import replace

import pytest

from calseg_cli.errors import ConfigError
from calseg_cli.metrics.scores import read_scores
from calseg_cli.metrics.tally import Tally
from calseg_cli.stages.thresholds import check_conditions, check_thresholds


@pytest.fixture
def scores():
    empty = read_scores(Tally.zeros(2), class_names=["a", "b"])
    return replace(empty, ece=0.1, miou=0.5)


@pytest.mark.parametrize(
    ("condition", "holds"),
    [("ece>0.05", True), ("ece>0.1", False), ("ece>=0.1", True), ("miou<0.6", True), (" miou <= 4e-1 ", False)],
)
def test_conditions(scores, condition, holds):
    assert bool(check_thresholds([condition], scores)) is holds


def test_a_score_that_is_not_there_fails(scores):
    assert math.isnan(scores.nll)
    assert check_thresholds(["nll>99"], scores)
    assert check_thresholds(["nll<0"], scores)


@pytest.mark.parametrize("condition", ["beauty>1", "ece", "ece=0.1", "ece>much", "classes>0", "num_images>0"])
def test_what_is_no_condition_is_refused_early(condition):
    with pytest.raises(ConfigError, match="fail-if"):
        check_conditions([condition])


@pytest.mark.parametrize(
    ("condition", "flag"),
    [("cece>0.1", "--classwise"), ("cece_present>0.1", "--classwise"), ("preset_ece<0", "--preset")],
)
def test_a_score_on_request_must_be_requested(scores, condition, flag):
    check_conditions([condition])
    with pytest.raises(ConfigError, match="not counted") as caught:
        check_conditions([condition], classwise=False, preset=False)
    assert caught.value.hint == f"add {flag}"
    assert check_thresholds([condition], scores)  # n/a fails, should it come to it
    assert bool(check_thresholds(["cece>0.1"], replace(scores, cece=0.2)))
    assert not check_thresholds(["cece>0.1"], replace(scores, cece=0.1))
