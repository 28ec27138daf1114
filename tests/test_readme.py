"""The README: its commands exist, its configuration loads, its two set-up commands stand where CI looks for them."""

import re
import shlex

import pytest
import yaml

from calseg_cli.app import ALIASES, COMMANDS, GROUPS


@pytest.fixture(scope="module")
def readme(repository):
    return (repository / "README.md").read_text(encoding="utf-8")


def blocks(text, language):
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


@pytest.mark.parametrize(("marker", "words"), [("demo", "calseg demo"), ("tests", "pytest")])
def test_each_set_up_command_is_one_line_behind_its_marker(readme, marker, words):
    match = re.search(rf"<!-- {marker} -->\n```bash\n([^\n]+)\n```", readme)
    assert match is not None
    assert words in match[1]
    assert "constraints.txt" in match[1]


def test_every_command_line_names_a_command(readme):
    lines = [line for block in blocks(readme, "bash") for line in block.splitlines() if line.startswith("calseg ")]
    assert len(lines) > 6
    for line in lines:
        words = shlex.split(line.split("#")[0])
        assert words[1] in {*COMMANDS, *ALIASES, *GROUPS}, line


def test_the_configuration_loads(readme, tmp_path):
    from calseg_cli.config import load_config

    (text,) = blocks(readme, "yaml")
    (tmp_path / "calseg.yaml").write_text(text)
    config = load_config(tmp_path / "calseg.yaml", environ={}).config
    assert config.source.ids[26] == "car"
    assert yaml.safe_load(text)["target"]["root"] == "data/night"


def test_it_links_to_what_is_there(readme, repository):
    for target in re.findall(r"\]\(([^)#:]+)\)", readme):
        assert (repository / target).exists(), target
