"""The table of keys and the nearest name."""

import pytest

from calseg_cli.config import Config, explain
from calseg_cli.config.keys import find_key, known_keys, unknown_key


def test_the_table_holds_every_field():
    assert {key[0] for key in known_keys()} == set(Config.model_fields)
    assert known_keys()["pretrain", "augment", "flip"].default == 0.5
    assert known_keys()["source", "root"].required
    assert len({info.name for info in explain()}) == len(explain())


@pytest.mark.parametrize(
    ("key", "known"),
    [
        ("pretrain", True),
        ("pretrain.steps", True),
        ("pretrain.steps.x", False),
        ("source.ids.7", True),
        ("predict.scales.0", True),
        ("network.options.a.b", True),
        ("nothing", False),
        ("source.nothing", False),
        ("name.x", False),
    ],
)
def test_parts_of_tables_and_lists_are_known(key, known):
    assert (find_key(tuple(key.split("."))) is not None) == known


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("pretrain.stepz", "pretrain.steps"),
        ("pretrain.Steps", "pretrain.steps"),
        ("pretrian.steps", "pretrain.steps"),
        ("batch_size", "pretrain.batch_size"),
        ("flip", "predict.flip"),
        ("source.claasses", "source.classes"),
        ("adapt.adabn.momentun", "adapt.adabn.momentum"),
        ("learning_rate", None),
    ],
)
def test_the_nearest_name(key, meant):
    told = unknown_key(tuple(key.split(".")))
    assert told.startswith(f"{key} is not a known key")
    assert ("did you mean" in told) == (meant is not None)
    assert meant is None or told.endswith(f"did you mean {meant}?")


@pytest.mark.parametrize("info", [info for info in explain() if info.section is None], ids=lambda info: info.name)
def test_a_misspelt_key_is_recognised(info):
    """One letter doubled anywhere in a key's last part leads back to the key."""
    parts = info.name.split(".")
    for place in range(len(parts[-1])):
        spelled = parts[-1][: place + 1] + parts[-1][place:]
        told = unknown_key((*parts[:-1], spelled))
        assert told.endswith(f"did you mean {info.name}?")
