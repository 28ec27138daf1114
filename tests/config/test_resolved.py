"""The resolved configuration as text, as JSON and as a digest."""

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from calseg_cli.config import load_config

names = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=8)
roots = names.filter(lambda text: text not in (".", "..") and "/" not in text)
colors = st.tuples(*[st.integers(0, 255)] * 3).map(lambda rgb: f"#{bytes(rgb).hex()}")
plain = st.none() | st.booleans() | st.integers(-9, 9**20) | st.floats(allow_nan=False, allow_infinity=False) | names


def sizes(low):
    return st.lists(st.integers(low, 4096), min_size=2, max_size=2)


@st.composite
def domains(draw):
    classes = draw(st.lists(names, min_size=1, max_size=4, unique=True))
    given_keys = draw(
        st.fixed_dictionaries(
            {"root": roots},
            optional={
                "images": names,
                "classes": st.just(classes),
                "ids": st.dictionaries(st.integers(0, 65535), st.sampled_from(classes), max_size=3),
                "palette": st.lists(colors, min_size=len(classes), max_size=len(classes)),
                "splits": st.dictionaries(st.sampled_from(["train", "val", "test"]), names, max_size=2),
                "lists": st.dictionaries(st.sampled_from(["train", "val", "test"]), roots, max_size=2),
                "holdout": st.integers(2, 99),
                "size": sizes(1),
            },
        )
    )
    if "ids" not in given_keys and draw(st.booleans()):
        given_keys["colors"] = draw(st.dictionaries(colors, st.sampled_from(classes), max_size=3))
    return given_keys


configurations = st.fixed_dictionaries(
    {},
    optional={
        "seed": st.integers(0, 2**32 - 1),
        "runs": roots,
        "deterministic": st.booleans(),
        "source": domains(),
        "target": domains(),
        "network.options": st.dictionaries(names, plain | st.lists(plain, max_size=3), max_size=3),
        "network.name": names,
        "pretrain.lr": st.floats(1e-12, 1e3),
        "pretrain.amp": st.sampled_from(["off", "bf16"]),
        "pretrain.clip_norm": st.none() | st.floats(1e-6, 1e3),
        "pretrain.augment.crop": st.none() | sizes(1),
        "predict.scales": st.lists(st.floats(0.01, 9), min_size=1, max_size=4),
        "evaluate.fail_if": st.lists(st.sampled_from(["ece>0.1", "miou <= 3e-1"]), max_size=2),
    },
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(configurations, st.booleans())
def test_the_text_loads_to_the_same(load, values, with_sources):
    resolved = load("", flags=values)
    again = load(resolved.dump_yaml(with_sources=with_sources))
    assert again.config == resolved.config
    assert again.digest == resolved.digest
    assert json.loads(json.dumps(resolved.to_dict(), allow_nan=False)) == resolved.to_dict() == again.to_dict()


def test_the_text_says_where_each_value_came_from(load):
    resolved = load("seed: 3\nsource:\n  root: day\n  ids: {7: 0}\n", sets=["pretrain.amp=bf16"])
    lines = resolved.dump_yaml(with_sources=True).splitlines()
    told = {line.split("#")[0].strip(): line.rsplit("# ", 1)[1] for line in lines if "# " in line}
    assert told["seed: 3"] == "calseg.yaml:1"
    assert told["7: 0"] == "calseg.yaml:4"
    assert told["amp: bf16"] == "--set"
    assert told["steps: 600"] == "default"
    assert "#" not in resolved.dump_yaml(with_sources=False)


@pytest.mark.parametrize("setting", ["runs=elsewhere", "device=cpu", "workers=3"])
def test_the_digest_leaves_out_what_changes_no_result(load, setting):
    assert load("", sets=[setting]).digest == load("").digest


@pytest.mark.parametrize("setting", ["seed=1", "pretrain.lr=1", "name=x", "source.root=x", "network.options.a=1"])
def test_the_digest_changes_with_everything_else(load, setting):
    assert load("", sets=[setting]).digest != load("").digest


def test_the_digest_does_not_depend_on_how_a_value_is_spelled(load):
    one = load("pretrain: {lr: 1e-3, steps: 1_000}\nsource: {root: x, palette: [[128, 64, 128]]}\n")
    other = load("source: {palette: ['#804080'], root: ./x}\npretrain: {steps: 1e3, lr: 0.001}\n")
    assert one.digest == other.digest
    assert one.config == other.config


def test_a_whole_number_for_a_fraction_is_the_same_fraction(load):
    assert load("pretrain: {lr: 1}").digest == load("pretrain: {lr: 1.0}").digest


def test_the_configuration_is_frozen(load):
    with pytest.raises(ValueError, match="frozen"):
        load("").config.seed = 3


def test_the_sample_configurations_load(repository):
    paths = sorted((repository / "sample_configs").glob("*.yaml"))
    assert paths
    for path in paths:
        resolved = load_config(path, environ={})
        assert resolved.config.source is not None
        assert resolved.config.target is not None
        assert not str(resolved.to_dict()).count(str(repository))
