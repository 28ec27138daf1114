"""A folder with sample data and a trained network, made once a session; and a way to type commands."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest


@dataclass(frozen=True)
class Ran:
    """What a command printed and how it ended."""

    code: int
    out: str
    err: str

    @property
    def json(self):
        return json.loads(self.out)


def type_command(*words: str, cwd: Path, env: dict[str, str] | None = None, timeout: float = 300) -> Ran:
    """Run `calseg WORDS` as a process of its own, as a user would."""
    done = subprocess.run(
        [sys.executable, "-m", "calseg_cli", *map(str, words)],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=timeout,
        env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "120", **(env or {})},
        check=False,
    )
    return Ran(done.returncode, done.stdout, done.stderr)


@pytest.fixture(scope="session")
def calseg():
    return type_command


@pytest.fixture(scope="session")
def trained(tmp_path_factory) -> Path:
    """A sample folder after `calseg pretrain` of a few steps; copy it before changing anything (`workspace`)."""
    folder = tmp_path_factory.mktemp("sample")
    for words in (
        ("sample-data",),
        ("pretrain", "--steps", "30", "--set", "pretrain.validate_every=15", "--set", "pretrain.log_every=5"),
    ):
        ran = type_command(*words, cwd=folder)
        assert ran.code == 0, ran.err
    return folder


@pytest.fixture
def workspace(trained, tmp_path) -> Path:
    """A private copy of the trained folder."""
    shutil.copytree(trained, tmp_path / "w")
    return tmp_path / "w"
