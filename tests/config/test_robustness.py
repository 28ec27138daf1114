"""Whatever stands in the file or on the command line: it loads, or it is a ConfigError of one line a complaint."""

import contextlib

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from calseg_cli.config import explain
from calseg_cli.errors import ConfigError

KEYS = st.sampled_from([info.name for info in explain()])
ATOMS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6)
VALUES = st.recursive(
    ATOMS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.integers() | st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
TEXTS = st.text(st.sampled_from("ab:-[]{}#&*!|>'\"%@`,? \n\t1e.~<0\x00\x85é"), max_size=40)
fuzz = settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@contextlib.contextmanager
def only_complaints():
    try:
        yield
    except ConfigError as error:
        lines = error.message.split("\n")
        assert len(lines) == 1 or lines[0] == f"{len(lines) - 1} mistakes in the configuration"
        assert all(line.strip() for line in lines)


@fuzz
@given(TEXTS)
@example("? a\n: b\n")
@example("a: !!set {b}\n")
@example("!!binary aGk=: 1\n")
@example("<<: &a {<<: *a}\n")
def test_any_text(load, text):
    with only_complaints():
        load(text)


@fuzz
@given(st.dictionaries(KEYS, VALUES, max_size=4))
@example({"source.ids": {"\n\n": 1, "\x85": "\n"}, "seed": "\n"})
@example({"source": {"root": "x", "a\nb": 1}, "pretrain": {"\n": 2}})
def test_any_value_of_any_key(load, flags):
    with only_complaints():
        load("", flags=flags)


@fuzz
@given(KEYS, st.text(max_size=3), TEXTS.filter(lambda text: "\0" not in text))
def test_any_setting(load, key, below, text):
    with only_complaints():
        load("source: {root: x}", sets=[f"{key}={text}", f"{key}.{below}={text}"], environ={f"CALSEG_{key}": text})
