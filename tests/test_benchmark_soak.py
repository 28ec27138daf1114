"""benchmarks/soak.py types commands that exist, after a kill too, and finds what differs."""

import importlib
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file
from typer.main import get_command

from calseg_cli.app import build

FOLDER = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture
def soak(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("soak")


@pytest.mark.parametrize("there", [True, False])
def test_its_commands_parse_before_and_after_a_kill(soak, tmp_path, there):
    commands = get_command(build()).commands
    for stage in soak.STAGES:
        if there:
            (tmp_path / stage.result).mkdir(parents=True)
        for more in ((), stage.again(tmp_path)):
            name, *words = (*stage.words, *more)
            commands[name].make_context(name, words)


def test_what_differs_and_what_is_left_behind_is_found(soak, tmp_path):
    stage = next(stage for stage in soak.STAGES if stage.name == "pretrain")
    folders = [tmp_path / name for name in ("one", "other", "left")]
    for folder in folders:
        (folder / stage.result).mkdir(parents=True)
        save_file({"weight": np.float32([1, 2, 3 + (folder.name == "other")])}, folder / stage.result / "a.safetensors")
        seconds = len(folder.name)
        (folder / stage.result / "log.jsonl").write_text(f'{{"step": 1, "seconds": {seconds}.5}}\n')
    (folders[2] / stage.result / "a.partial").touch()
    one, other, left = (soak.results(folder, stage) for folder in folders)
    name = f"{stage.result}/a.safetensors"
    assert {key for key in one if one[key] != other[key]} == {name}
    assert {key for key in left.keys() | one.keys() if left.get(key) != one.get(key)} == {f"{stage.result}/a.partial"}
