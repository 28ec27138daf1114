"""The documents say what the code does: links resolve, examples parse and load, generated tables are up to date."""

import functools
import importlib.util
import inspect
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.main import get_command

from calseg_cli import errors
from calseg_cli.app import ALIASES, COMMANDS, GROUPS, build
from calseg_cli.config import explain, load_config
from calseg_cli.config.keys import find_key
from calseg_cli.config.yaml_text import parse_yaml
from calseg_cli.data.catalog import IGNORE, LAYOUTS, find_items
from calseg_cli.data.labels import read_label
from calseg_cli.engine.batch_statistics import batch_norms
from calseg_cli.errors import ConfigError
from calseg_cli.networks.build import NETWORKS, build_network
from calseg_cli.networks.weights import SUFFIXES
from calseg_cli.report.wording import SCORES
from calseg_cli.stages.domains import domain_layout

ROOT = Path(__file__).parent.parent
DOCS = sorted((ROOT / "docs").glob("*.md"))
PAGES = [*DOCS, *(page for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md") if page.exists())]
SUBCOMMANDS = [f"{group} {name}" for group, (_, functions) in GROUPS.items() for name in functions]
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


def text_of(name: str) -> str:
    return (ROOT / "docs" / name).read_text(encoding="utf-8")


def blocks(page: Path, language: str) -> list[str]:
    return [body for kind, body in _FENCE.findall(page.read_text(encoding="utf-8")) if kind == language]


def anchors(page: Path) -> set[str]:
    """The fragments that a page's headings get, as the usual Markdown viewers make them."""
    prose = _FENCE.sub("", page.read_text(encoding="utf-8"))
    headings = re.findall(r"^#+ (.+)$", prose, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def section(page: str, heading: str) -> str:
    """The text below a heading, up to the next one of its level."""
    text = text_of(page)
    level = heading.partition(" ")[0]
    assert f"\n{heading}\n" in text, f"{page} has no heading {heading!r}"
    return re.split(rf"^{level} ", text.partition(f"\n{heading}\n")[2], maxsplit=1, flags=re.MULTILINE)[0]


# Links


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_relative_links_resolve(page):
    prose = _FENCE.sub("", page.read_text(encoding="utf-8"))
    for link in _LINK.findall(prose):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, fragment = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), f"{page.name}: {link}"
        if fragment:
            assert fragment in anchors(target), f"{page.name}: {link}"


def test_every_page_is_reached_from_another():
    linked = {Path(link.partition("#")[0]).name for page in PAGES for link in _LINK.findall(page.read_text("utf-8"))}
    assert {page.name for page in DOCS} - linked <= {"commands.md"}


# Everything is documented


@pytest.mark.parametrize("name", [*COMMANDS, *SUBCOMMANDS])
def test_every_command_has_a_section_with_an_example(name):
    told = section("commands.md", f"## `calseg {name}`")
    short = {full: alias for alias, full in ALIASES.items()}.get(name, name)
    assert re.search(rf"^calseg ({name}|{short})\b", told, re.MULTILINE)
    assert "**Reads**" in told or name in ("sample-data", "init")
    assert re.search(r"writes\*\*|\*\*Writes\*\*", told)


@pytest.mark.parametrize(("alias", "name"), ALIASES.items())
def test_aliases_are_named(alias, name):
    assert f"`calseg {alias}` is the same command" in section("commands.md", f"## `calseg {name}`")


def test_no_section_of_a_command_that_is_gone():
    named = re.findall(r"^## `calseg (.+)`$", text_of("commands.md"), re.MULTILINE)
    assert sorted(named) == sorted([*COMMANDS, *SUBCOMMANDS])


@pytest.mark.parametrize("info", explain(), ids=lambda info: info.name)
def test_every_key_is_documented(info):
    assert f"`{info.name}`" in section("configuration.md", "## All keys")


def test_every_exit_code_is_documented():
    kinds = [kind for kind in vars(errors).values() if inspect.isclass(kind) and issubclass(kind, errors.CalsegError)]
    codes = {int(code) for code in re.findall(r"^\| (\d+) \|", text_of("exit-codes.md"), re.MULTILINE)}
    assert codes == {0, 130, 143} | {kind.exit_code for kind in kinds}


@pytest.mark.parametrize(("key", "score"), SCORES.items(), ids=list(SCORES))
def test_every_score_is_documented(key, score):
    table = section("metrics.md", "## Scores")
    assert f"`{key}`" in table
    row = next(line for line in table.splitlines() if f"`{key}`" in line)
    if key not in ("ece_10", "ece_15"):  # they share a row
        assert row.startswith(f"| {score.label} |")
        assert row.endswith(f"| {score.better} |".replace("|  |", "| |"))


def test_the_bins_that_are_named_are_those_that_work():
    row = next(line for line in text_of("metrics.md").splitlines() if "a divisor of 300:" in line)
    named = [int(number) for number in re.findall(r"\d+", row.partition("a divisor of 300:")[2])]
    assert named == [number for number in range(1, 101) if 300 % number == 0]


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_and_its_options_are_documented(name):
    row = next(line for line in text_of("networks.md").splitlines() if line.startswith(f"| `{name}` |"))
    family = NETWORKS[name]
    for option, parameter in inspect.signature(family.load(family.builder)).parameters.items():
        if parameter.kind is parameter.KEYWORD_ONLY:
            assert f"`{option}`" in row
    assert all(f"`{suffix}`" in text_of("networks.md") for suffix in SUFFIXES)


def test_every_layout_is_documented():
    assert all(f"`{name}`" in text_of("datasets.md") for name in LAYOUTS)


# Generated tables


@pytest.fixture(scope="module")
def make_tables():
    spec = importlib.util.spec_from_file_location("make_tables", ROOT / "docs" / "make_tables.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_generated_tables_are_up_to_date(make_tables, capsys):
    assert make_tables.main(["--check"]) == 0, f"{capsys.readouterr().err}run python docs/make_tables.py"


def test_a_table_out_of_date_is_found_and_mended(make_tables, tmp_path, monkeypatch, capsys):
    for name in {name for name, _ in make_tables.BLOCKS.values()}:
        stale = text_of(name).replace("| `pretrain.steps` | `600` |", "| `pretrain.steps` | `601` |")
        (tmp_path / name).write_text(stale, encoding="utf-8")
    monkeypatch.setattr(make_tables, "FOLDER", tmp_path)
    before = (tmp_path / "configuration.md").read_text(encoding="utf-8")
    assert make_tables.main(["--check"]) == 1
    assert "configuration.md: keys" in capsys.readouterr().err
    assert (tmp_path / "configuration.md").read_text(encoding="utf-8") == before
    assert make_tables.main([]) == 0
    assert (tmp_path / "configuration.md").read_text(encoding="utf-8") == text_of("configuration.md")
    assert make_tables.main(["--check"]) == 0
    with pytest.raises(ValueError, match="no block"):
        make_tables.refreshed("nothing here", "keys", "")


def test_class_tables_hold_the_published_values(make_tables):
    rows = {line.split(" | ")[0].strip("| "): line for line in make_tables.classes_table().splitlines()}
    assert [cell.strip() for cell in rows["car"].strip("| ").split("|")] == ["car", "26", "26", "8", "8", "13"]
    assert [cell.strip() for cell in rows["truck"].strip("| ").split("|")] == ["truck", "27", "27", "–", "–", "14"]
    assert "192,192,128; 0,0,64" in rows["Pole"]


# Examples


@functools.cache
def whole_command():
    """The command line; to build it takes longer than to parse a line."""
    return get_command(build())


STARTS = ("calseg", "calseg_cli", "stage.sbatch")


def command_lines() -> list[tuple[str, str]]:
    """Every `calseg ...` of the bash blocks, with the page it stands on; pipes, variables and redirections cut off.

    So are those under torchrun, and those that a job's script is handed; a script's own "$@" is not.
    """
    found = []
    for page in PAGES:
        for line in "\n".join(blocks(page, "bash")).replace("\\\n", " ").splitlines():
            lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;<>")
            lexer.whitespace_split = True
            words: list[str] = []
            for word in [*lexer, "&&"]:
                if set(word) <= set("|&;<>"):
                    named = next((words.index(name) for name in STARTS if name in words), None)
                    if named is not None and words[named + 1 : named + 2] != ["$@"]:
                        found.append((page.name, shlex.join(["calseg", *words[named + 1 :]])))
                    words = []
                else:
                    words.append(word)
    return found


@pytest.mark.parametrize(("page", "line"), command_lines())
def test_commands_in_examples_parse(page, line):
    words = shlex.split(line)[1:]
    command = whole_command()
    context = command.make_context("calseg", list(words), resilient_parsing=not words or words[0].startswith("-"))
    while words and not words[0].startswith("-") and hasattr(command, "commands"):
        command = command.commands[words.pop(0)]
        if hasattr(command, "commands"):
            context = command.make_context(command.name, list(words), parent=context)
    if not hasattr(command, "commands"):
        given = command.make_context(command.name, words, parent=context).params
        for text in given.get("sets") or ():
            assert find_key(tuple(text.partition("=")[0].split("."))) is not None, text


def test_the_examples_are_found_and_wrong_ones_would_fail():
    assert len(command_lines()) > 30
    with pytest.raises(Exception, match="--no-such-option"):
        test_commands_in_examples_parse("", "calseg eval --no-such-option")
    with pytest.raises(KeyError):
        test_commands_in_examples_parse("", "calseg evil")
    with pytest.raises(AssertionError):
        test_commands_in_examples_parse("", "calseg pretrain --set pretrain.stepz=1")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_scripts_are_bash(page):
    for script in blocks(page, "bash"):
        done = subprocess.run(["bash", "-n"], input=script, text=True, capture_output=True, check=False)
        assert done.returncode == 0, done.stderr


def yaml_blocks() -> list[tuple[str, str]]:
    return [(page.name, body) for page in PAGES for body in blocks(page, "yaml")]


def write_layout_files(folder: Path) -> None:
    """The blocks that begin with their file's name in a comment."""
    for _, body in yaml_blocks():
        if named := re.match(r"# (\w+\.yaml)\n", body):
            (folder / named[1]).write_text(body, encoding="utf-8")


@pytest.mark.parametrize(("page", "body"), yaml_blocks())
def test_yaml_examples_load(page, body, tmp_path):
    write_layout_files(tmp_path)
    path = tmp_path / "calseg.yaml"
    keys = set(parse_yaml(body).value)
    if keys <= {info.name for info in explain() if "." not in info.name}:
        path.write_text(body, encoding="utf-8")
    else:  # keys of a dataset's section
        (tmp_path / "part.yaml").write_text(body, encoding="utf-8")
        path.write_text("source: {layout: part.yaml, root: data}\n", encoding="utf-8")
    config = load_config(path, environ={}).config
    for role in ("source", "target"):
        if getattr(config, role) is not None:
            assert domain_layout(config, role).images
    if config.network.name in NETWORKS:
        build_network(config.network.name, 3, init="none", options=config.network.options)


def dataset_example(number: int, folder: Path):
    path = folder / "calseg.yaml"
    path.write_text(blocks(ROOT / "docs" / "datasets.md", "yaml")[number], encoding="utf-8")
    return load_config(path, environ={}).config


def save(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)


def test_the_worked_dataset_means_what_it_says(tmp_path):
    config = dataset_example(1, tmp_path)
    root = tmp_path / "data" / "rural"
    raw = np.array([[0, 1, 2, 5, 7, 8, 9, 10, 255]], np.uint8)
    save(root / "photos/train/north/a.jpg", np.zeros((1, 9, 3), np.uint8))
    save(root / "masks/train/north/a_mask.png", raw)
    layout = domain_layout(config, "source")
    (item,) = find_items(layout, config.source.root, "train", with_labels=True)
    assert item.id == "north/a"
    assert read_label(item.label, layout).tolist() == [[0, 0, 1, 2, 3, *[IGNORE] * 4]]
    assert domain_layout(config, "target").class_names == layout.class_names


def test_the_painted_dataset_means_what_it_says(tmp_path):
    config = dataset_example(2, tmp_path)
    colors = [(0x80, 0x40, 0x80), (0xF4, 0x23, 0xE8), (70, 70, 70), (0x46, 0x82, 0xB4), (0, 0, 0)]
    save(tmp_path / "label.png", np.array([colors], np.uint8))
    layout = domain_layout(config, "source")
    assert read_label(tmp_path / "label.png", layout).tolist() == [[0, 0, 1, 2, IGNORE]]


def test_lists_and_holdout_mean_what_they_say(tmp_path):
    config = dataset_example(3, tmp_path)
    for number in range(20):
        save(tmp_path / f"data/archive/{number:02}.png", np.zeros((2, 2, 3), np.uint8))
        save(tmp_path / f"data/drives/frames/d/{number:02}.png", np.zeros((2, 2, 3), np.uint8))
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists/train.txt").write_text("# one drive\nd/03\nd/05\n")
    (tmp_path / "lists/val.txt").write_text("d/07\n")

    def ids(role, split):
        layout = domain_layout(config, role)
        return [item.id for item in find_items(layout, getattr(config, role).root, split, with_labels=False)]

    assert ids("source", "train") == ["d/03", "d/05"]
    assert ids("source", "val") == ["d/07"]
    assert ids("target", "val") == ["09", "19"]
    assert len(ids("target", "train")) == 18


def test_the_layout_file_can_be_overridden(tmp_path):
    write_layout_files(tmp_path)
    config = dataset_example(6, tmp_path)
    assert domain_layout(config, "source").ids == {0: 0, 1: 0, 2: 1, 5: 2, 7: 3}
    assert domain_layout(config, "target").splits == {"train": "all"}


def test_the_complaints_are_real(tmp_path, monkeypatch):
    example, answer = blocks(ROOT / "docs" / "configuration.md", "text")[:2]
    monkeypatch.chdir(tmp_path)
    Path("calseg.yaml").write_text(example, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load_config(None, environ={})
    assert answer == f"error: {caught.value.message}\n  hint: {caught.value.hint}\n"


def test_the_complaints_about_options_are_real(tmp_path):
    lines = blocks(ROOT / "docs" / "configuration.md", "text")[2]
    (tmp_path / "calseg.yaml").write_text("name: x\n", encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load_config(tmp_path / "calseg.yaml", sets=["pretrain.lr=0"], environ={"CALSEG_PRETRAIN__STEPZ": "3"})
    assert caught.value.message.splitlines()[1:] == lines.splitlines()


def test_the_plug_in_example_works(tmp_path, monkeypatch):
    page = ROOT / "docs" / "networks.md"
    (code,) = blocks(page, "python")
    name = re.match(r"# (\w+)\.py\n", code)[1]
    (tmp_path / f"{name}.py").write_text(code, encoding="utf-8")
    wanted = next(body for body in blocks(page, "yaml") if f"{name}:" in body)
    (tmp_path / "calseg.yaml").write_text(wanted, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    chosen = load_config(None, environ={}).config.network
    try:
        network = build_network(chosen.name, 5, init=chosen.init, options=chosen.options, seed=0).eval()
    finally:
        sys.modules.pop(name, None)
    assert (network.stride, network.feature_dim) == (4, 48)
    assert len(batch_norms(network)) == 2
    images = torch.rand(1, 3, 32, 48, generator=torch.Generator().manual_seed(0))
    assert network(images).shape == (1, 5, 8, 12)
    assert torch.equal(network.classify(network.features(images)), network(images))
    assert any(network.is_head(parameter) for parameter, _ in network.named_parameters())


def test_the_convention_is_the_one_that_is_printed():
    from calseg_cli.metrics.calibration import Convention

    assert f"{Convention().describe()}\n" in blocks(ROOT / "docs" / "metrics.md", "text")


def test_the_float32_benchmark_runs_and_prints_what_is_quoted():
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "float32_ece.py"), "--pixels", "20000"],
        capture_output=True, text=True, check=True, timeout=120,
    )  # fmt: skip
    header, row = done.stdout.splitlines()
    quoted = next(body for body in blocks(ROOT / "docs" / "metrics.md", "text") if "torchmetrics" in body)
    assert header == quoted.splitlines()[0]
    _, _, ours, exact = row.split()
    assert ours == exact
