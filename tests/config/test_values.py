"""The kinds of value: colours, switches, numbers."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calseg_cli.config.values import Color, parse_color

bytes_ = st.integers(0, 255)


@given(bytes_, bytes_, bytes_)
def test_a_colour_has_three_spellings_and_one_value(red, green, blue):
    color = Color(red, green, blue)
    assert str(color) == "#" + bytes([red, green, blue]).hex()
    for spelled in (
        str(color),
        str(color).upper(),
        f"{red},{green},{blue}",
        f" {red}, {green} ,{blue}",
        [red, green, blue],
    ):
        assert parse_color(spelled) == color
    assert color == (red, green, blue)  # what units below the door take it for


@pytest.mark.parametrize(
    "value", [None, "", "#fff", "red", "1,2", "1,2,3,4", "1,2,-3", "1,2,256", [1, 2], [1, 2, True], 3]
)
def test_what_is_no_colour(value):
    with pytest.raises(ValueError, match="must be a colour"):
        parse_color(value)


@pytest.mark.parametrize(
    ("text", "value"), [("yes", True), ("on", True), ("True", True), ("no", False), ("OFF", False)]
)
def test_switches(load, text, value):
    assert load(f"deterministic: {text}").config.deterministic is value


def test_ignored_values_have_a_word(load):
    source = load("source: {root: x, classes: [a], ids: {0: a, 1: ignore}, ignore: [1, 255]}").config.source
    assert source.ids == {0: "a", 1: "ignore"}


@pytest.mark.parametrize("bins", [number for number in range(1, 101) if 300 % number == 0])
def test_all_divisors_are_bins(load, bins):
    assert load(f"evaluate: {{bins: {bins}}}").config.evaluate.bins == bins
