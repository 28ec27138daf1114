"""Which source of a value wins, what is said about where it came from, and which file is read."""

from itertools import combinations
from pathlib import Path

import pytest

from calseg_cli.config import load_config
from calseg_cli.errors import ConfigError

SOURCES = ("file", "environment", "set", "flag")
PLACES = {"file": "calseg.yaml:2", "environment": "CALSEG_PRETRAIN__STEPS", "set": "--set", "flag": "--steps"}


@pytest.mark.parametrize("given", [names for size in range(5) for names in combinations(SOURCES, size)])
def test_the_last_source_wins_and_is_named(load, given):
    number = {name: 10 + index for index, name in enumerate(SOURCES)}
    resolved = load(
        f"pretrain:\n  steps: {number['file']}\n" if "file" in given else "",
        environ={"CALSEG_PRETRAIN__STEPS": str(number["environment"])} if "environment" in given else {},
        sets=[f"pretrain.steps={number['set']}"] if "set" in given else [],
        flags={"pretrain.steps": number["flag"] if "flag" in given else None},
    )
    assert resolved.config.pretrain.steps == (number[given[-1]] if given else 600)
    assert resolved.sources["pretrain.steps"] == (PLACES[given[-1]] if given else "default")


def test_every_value_has_a_source_and_only_given_ones_are_not_default(load):
    resolved = load(
        "seed: 3\npretrain:\n  augment: {flip: 0.25}\nsource:\n  root: x\n  ids: {0: 0, 7: 1}\n  size: [4, 8]\n",
        sets=["source.ids.7=2", "network.options.depth=50"],
        flags={"predict.scales": [0.5, 1.0], "network.name": "deeplabv2"},
        environ={"CALSEG_SOURCE__SIZE__1": "16"},
    )
    told = {key: place for key, place in resolved.sources.items() if place != "default"}
    assert told == {
        "seed": "calseg.yaml:1",
        "pretrain.augment.flip": "calseg.yaml:3",
        "source.root": "calseg.yaml:5",
        "source.ids.0": "calseg.yaml:6",
        "source.ids.7": "--set",
        "source.size": "CALSEG_SOURCE__SIZE__1",
        "network.options.depth": "--set",
        "network.name": "--network",
        "predict.scales": "--scales",
    }
    assert resolved.config.source.size == (4, 16)
    assert resolved.config.source.ids == {0: 0, 7: 2}
    assert resolved.config.network.options == {"depth": 50}

    def leaves(value, above=""):
        for name, inner in value.items():
            key = f"{above}{name}"
            if isinstance(inner, dict) and inner:
                yield from leaves(inner, f"{key}.")
            else:
                yield key

    assert list(resolved.sources) == list(leaves(resolved.to_dict()))


@pytest.mark.parametrize(
    ("setting", "key", "value"),
    [
        ("pretrain.lr=1e-3", "pretrain.lr", 1e-3),
        ("pretrain.amp=off", "pretrain.amp", "off"),
        ("name=2024-01-01", "name", "2024-01-01"),
        ("name=7", "name", "7"),
        ("source.images={split}/{path}.*", "source.images", "{split}/{path}.*"),
        ("source.images=null", "source.images", None),
        ("source.images='null'", "source.images", "null"),
        ("evaluate.fail_if=[ece>0.1, miou<0.3]", "evaluate.fail_if", ("ece>0.1", "miou<0.3")),
        ("predict.scales.0=0.5", "predict.scales", (0.5,)),
        ("predict.scales.1=0.5", "predict.scales", (1.0, 0.5)),
        ("pretrain.augment={flip: 0}", "pretrain.augment.flip", 0.0),
        ("pretrain.class_weights=[1, 2]", "pretrain.class_weights", (1.0, 2.0)),
        ("deterministic=no", "deterministic", False),
        ("pretrain.clip_norm=null", "pretrain.clip_norm", None),
    ],
)
def test_set_takes_any_key(load, setting, key, value):
    found = load("source: {root: x}", sets=[setting]).config
    for part in key.split("."):
        found = getattr(found, part)
    assert found == value
    assert type(found) is type(value)


def test_a_section_given_by_set_leaves_its_other_keys(load):
    resolved = load("pretrain: {steps: 5, lr: 0.5}", sets=["pretrain={steps: 6}"])
    assert (resolved.config.pretrain.steps, resolved.config.pretrain.lr) == (6, 0.5)


@pytest.mark.parametrize("text", ["", "# nothing\n", "pretrain:\nadapt:\n  adabn:\nsource:\n", "---\n"])
def test_an_empty_file_or_section_means_the_defaults(load, text):
    assert load(text).config == load("").config


def test_reserved_and_empty_variables_are_left_alone(load):
    environ = {"CALSEG_DATA": "/d", "CALSEG_DEBUG": "1", "CALSEG_SEED": "", "OTHER": "x"}
    assert load("seed: 4", environ=environ).config.seed == 4


def test_the_file_is_named_or_found(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "other.yaml").write_text("seed: 2\n")
    with pytest.raises(ConfigError, match=r"no calseg\.yaml in this folder") as raised:
        load_config(None, environ={})
    assert "calseg sample-data" in raised.value.hint
    assert "calseg init" in raised.value.hint
    assert load_config(None, environ={"CALSEG_CONFIG": "sub/other.yaml"}).config.seed == 2
    (tmp_path / "calseg.yaml").write_text("seed: 1\n")
    assert load_config(None, environ={}).config.seed == 1
    assert load_config(Path("sub/other.yaml"), environ={"CALSEG_CONFIG": "nowhere"}).config.seed == 2


def test_the_environment_of_the_process_is_heard(load, monkeypatch):
    load()
    monkeypatch.setenv("CALSEG_SEED", "9")
    assert load_config(None).config.seed == 9


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (b"- a\n- b\n", "it holds a list, not keys"),
        (b"hello\n", "it holds a single value"),
        (b"name: \xe9t\xe9\n", ":1: it is not UTF-8"),
        ("name: x".encode("utf-16"), "not UTF-8"),
        (b"a: 1\n\tb: 2\n", ":2:1: a tab"),
        (b"a: [\n", ":2:1: broken YAML"),
    ],
)
def test_files_that_cannot_be_used(tmp_path, content, part):
    path = tmp_path / "calseg.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as raised:
        load_config(path, environ={})
    assert part in raised.value.message
    assert raised.value.message.startswith(str(path))
    assert "\n" not in raised.value.message
    assert raised.value.hint


def test_folders_and_missing_files(tmp_path):
    with pytest.raises(ConfigError, match="is a folder"):
        load_config(tmp_path, environ={})
    with pytest.raises(ConfigError, match="no such file"):
        load_config(tmp_path / "no.yaml", environ={})


def test_a_byte_order_mark_and_windows_lines_do_not_matter(tmp_path):
    path = tmp_path / "calseg.yaml"
    path.write_bytes(b"\xef\xbb\xbfseed: 5\r\nname: x\r\n")
    resolved = load_config(path, environ={})
    assert (resolved.config.seed, resolved.config.name) == (5, "x")
    assert resolved.sources["name"] == f"{path}:2"
