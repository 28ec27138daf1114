"""YAML as calseg reads it: numbers are numbers, words are words, every mistake has its line."""

import math
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calseg_cli.config.yaml_text import DEEPEST, YamlMistake, flow_yaml, parse_yaml


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("1E5", 100000),
        ("4e4", 40000),
        ("1_000", 1000),
        ("-2.5e-04", -0.00025),
        (".5", 0.5),
        ("1.", 1.0),
        ("0x1F", 31),
        ("0o17", 15),
        ("true", True),
        ("False", False),
        ("null", None),
        ("~", None),
        ("", None),
        ("off", "off"),
        ("no", "no"),
        ("yes", "yes"),
        ("y", "y"),
        ("2024-01-02", "2024-01-02"),
        ("1:30", "1:30"),
        ("010", "010"),
        ("0016E5", "0016E5"),
        ("1__0", "1__0"),
        (".inf", ".inf"),
        ("1e999", "1e999"),
        ("none", "none"),
        ("'12'", "12"),
        ("!!str 12", "12"),
        ("cuda:0", "cuda:0"),
    ],
)
def test_scalars(text, value):
    found = parse_yaml(f"key: {text}").value["key"]
    assert found == value
    assert type(found) is type(value)


def test_a_number_key_is_a_number_and_others_are_words():
    assert parse_yaml("{7: a, on: b, true: c, 1.5: d}").value == {7: "a", "on": "b", "true": "c", "1.5": "d"}


def test_every_key_and_item_has_its_line():
    parsed = parse_yaml("a: 1\n\nb:\n  c: [1,\n    2]\n  7: x\n")
    assert parsed.lines == {("a",): 1, ("b",): 3, ("b", "c"): 4, ("b", "c", "0"): 4, ("b", "c", "1"): 5, ("b", "7"): 6}


@pytest.mark.parametrize("text", ["", "# only a comment\n", "---\n", "\n\n"])
def test_an_empty_text_is_none(text):
    assert parse_yaml(text).value is None


def test_duplicates_are_all_told():
    parsed = parse_yaml("a: 1\nb: {c: 1, c: 2}\na: 3\n7: x\n'7': y\n")
    assert parsed.complaints == [
        (3, "a is given twice; the first is in line 1"),
        (5, "7 is given twice; the first is in line 4"),
        (2, "b.c is given twice; the first is in line 2"),
    ]


def test_anchors_and_merge_keys():
    text = "a: &a {x: 1, y: 2}\nb: &b {y: 3, z: 4}\nc:\n  <<: [*a, *b]\n  x: 9\nd: *a\n"
    parsed = parse_yaml(text)
    assert parsed.value["c"] == {"x": 9, "y": 2, "z": 4}  # own keys first, then the earlier of the merged
    assert parsed.value["d"] == {"x": 1, "y": 2}
    assert parsed.complaints == []
    assert parsed.lines["c", "x"] == 5


@pytest.mark.parametrize(
    ("text", "line", "part"),
    [
        ("a: 1\n\tb: 2\n", 2, "tab"),
        ("a: [1, 2\nb: 3\n", 2, "broken YAML"),
        ("a: 1\nb: 'x\n", 3, "broken YAML"),
        ("a: {split}/x\n", 1, "broken YAML"),
        ("a: *nothing\n", 1, "undefined alias"),
        ("a: 1\n---\nb: 2\n", 2, "single document"),
        ("a: 1\nb: \x00\n", 2, "0x0"),
        ("a: !!python/object:os.system x\n", 1, "not supported"),
        ("a: !mine x\n", 1, "not supported"),
        ("[1, 2]: x\n", 1, "a key must be"),
        ("a: 1\n<<: 3\n", 2, "<<"),
        ("a: &a [*a]\n", 1, "nested too deeply"),
        ("a: &a {<<: *a}\n", 1, "nested too deeply"),
        ("[" * 5000, 1, "nested too deeply"),
        ("a: " + "[" * (DEEPEST + 1) + "]" * (DEEPEST + 1), 1, "nested too deeply"),
    ],
)
def test_mistakes_have_a_line_and_stay_on_it(text, line, part):
    with pytest.raises(YamlMistake) as raised:
        parse_yaml(text)
    assert raised.value.line == line
    assert part in raised.value.message
    assert "\n" not in raised.value.message


@pytest.mark.parametrize(
    "bomb",
    [
        "a0: &a0 [x, x, x, x, x, x, x, x, x]\n"
        + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12)),
        "a0: &a0 {x: 1, y: 2}\n"
        + "".join(f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 9)}]}}\n" for n in range(1, 12)),
    ],
    ids=["aliases", "merges"],
)
def test_a_billion_laughs_does_not_hang(bomb):
    begun = time.monotonic()
    with pytest.raises(YamlMistake, match="more than"):
        parse_yaml(bomb)
    assert time.monotonic() - begun < 5


PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=20)
    | st.sampled_from(
        ["off", "no", "1e-3", "1_000", "null", "~", "true", "2024-01-02", "#804080", "<<", "a: b", "0x1F"]
    ),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=8,
)


@settings(max_examples=200, deadline=None)
@given(PLAIN)
def test_what_is_written_is_read_back(value):
    read = parse_yaml(f"key: {flow_yaml(value)}").value["key"]
    assert read == value
    assert type(read) is type(value) or (isinstance(value, float) and math.isclose(read, value))
