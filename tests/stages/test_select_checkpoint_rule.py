"""The rule of choice on records made by hand: the lowest score, the floor, ties, and scores that are no numbers."""

import itertools
import math

import pytest

from calseg_cli.stages.select_checkpoint_rule import Record, choose, refuse


def chosen(records, *, floor=0.02, better="lower"):
    place = choose(refuse(records, floor=floor), better=better)
    return None if place is None else records[place].name


def test_the_lowest_score_wins_whatever_the_order():
    records = [Record("a", 1, 0.05, 0.5), Record("b", 2, 0.03, 0.5), Record("c", 3, 0.04, 0.5)]
    assert {chosen(order) for order in itertools.permutations(records)} == {"b"}
    assert {chosen(order, better="higher") for order in itertools.permutations(records)} == {"a"}


def test_an_early_network_with_a_tiny_error_is_below_the_floor():
    records = [Record("uniform", 1, 0.0001, 0.02), Record("good", 2, 0.04, 0.5), Record("last", 3, 0.06, 0.51)]
    assert chosen(records) == "good"
    assert chosen(records, floor=None) == "uniform"
    assert chosen(records, floor=1.0) == "uniform"
    assert chosen(records, floor=0.0) == "last"
    assert "0.0200" in refuse(records, floor=0.02)[0].refused
    assert refuse(records, floor=0.02)[1].refused is None


def test_exactly_the_floor_is_enough():
    records = [Record("low", 1, 0.01, 0.52 - 0.02), Record("best", 2, 0.04, 0.52)]
    assert chosen(records) == "low"
    assert chosen([Record("low", 1, 0.01, 0.4999), records[1]]) == "best"


def test_of_equal_scores_the_higher_miou_then_the_later_step_wins():
    records = [Record("a", 9, 0.03, 0.50), Record("b", 1, 0.03, 0.51), Record("c", 2, 0.03, 0.51)]
    assert {chosen(order) for order in itertools.permutations(records)} == {"c"}
    print_alike = [Record("a", 1, 0.03001, 0.51), Record("b", 2, 0.03004, 0.51), Record("c", 3, 0.0301, 0.52)]
    assert {chosen(order) for order in itertools.permutations(print_alike)} == {"b"}
    alike = [Record("a", 1, 0.03), Record("b", 1, 0.03)]
    assert {chosen(order, floor=None) for order in itertools.permutations(alike)} == {"b"}


@pytest.mark.parametrize("score", [math.nan, math.inf, -math.inf])
def test_scores_that_are_no_numbers_are_refused_with_a_reason(score):
    records = [Record("a", 1, score, 0.9), Record("b", 2, 0.04, 0.5)]
    assert chosen(records) == "b"  # and the mIoU of what is refused sets no floor
    assert chosen(records, better="higher") == "b"
    assert refuse(records)[0].refused == "its score is not a number"
    assert chosen([records[0]]) is None


def test_what_is_refused_before_stays_so():
    records = [Record("a", 1, 0.01, 0.9, refused="damaged"), Record("b", 2, 0.04, 0.5), Record("c", 3, 0.02)]
    assert chosen(records) == "b"
    assert [one.refused for one in refuse(records, floor=0.02)] == ["damaged", None, "its mIoU is not known"]
    assert choose([]) is None
