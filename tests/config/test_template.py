"""The commented start: it loads, and so does every key that it shows."""

import re
from pathlib import Path

import pytest

from calseg_cli.config import explain, load_config, template, write_template
from calseg_cli.errors import ConfigError


@pytest.mark.parametrize("kind", ["start", "full"])
def test_it_loads_without_complaint(tmp_path, kind):
    path = tmp_path / "new" / "calseg.yaml"
    write_template(path, kind)
    resolved = load_config(path, environ={})
    assert resolved.config.source.root == tmp_path / "new" / "data" / "source"
    assert {key for key in resolved.to_dict() if f"\n{key}:" in path.read_text()} >= {"source", "target", "network"}


def test_every_section_and_with_full_every_key_is_shown():
    shown = re.findall(r"^ *(?:# )?([a-z_]+):", template("full"), flags=re.MULTILINE)
    assert shown == [info.name.rsplit(".", 1)[-1] for info in explain()]
    sections = [info.name for info in explain() if info.section is not None and "." not in info.name]
    assert re.findall(r"^([a-z_]+): +#", template("start"), flags=re.MULTILINE) == sections


@pytest.mark.parametrize("kind", ["start", "full"])
def test_any_comment_sign_of_a_key_can_be_taken_away(load, kind):
    lines = template(kind).splitlines()
    commented = [number for number, line in enumerate(lines) if re.match(r" *# [a-z_]+: ", line)]
    assert len(commented) > 20
    for number in commented:
        shown = [line for line in enumerate(lines) if line[0] == number or not line[1].lstrip().startswith("#")]
        load("\n".join(line.replace("# ", "", 1) if place == number else line for place, line in shown))


def test_a_shown_default_is_the_default(load):
    """Taking the sign away changes nothing, but for the keys that have an example in place of null."""
    examples = {"images", "labels", "ids", "colors", "ignore", "encoding", "palette", "splits", "lists", "holdout"}
    lines = template("full").splitlines()
    everything = [
        line.replace("# ", "", 1)
        if (found := re.match(r" *# ([a-z_]+): ", line)) and found[1] not in examples | {"size", "crop", "window"}
        else line
        for line in lines
    ]
    assert load("\n".join(everything)).config == load("\n".join(lines)).config


def test_every_key_is_described_in_one_line():
    for info in explain():
        assert info.description.endswith("."), info.name
        assert len(info.description) < 115, info.name
        assert "\n" not in info.description


def test_unknown_kinds_are_refused():
    with pytest.raises(ConfigError, match="unknown kind"):
        write_template(Path("x"), "other")
