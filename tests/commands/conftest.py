"""A folder with sample data and a trained network, made once a session; and a way to type commands."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Client
from pathlib import Path

import pytest

from tests.commands.outcomes import keep_few

SETTINGS = {"OMP_NUM_THREADS": "1", "COLUMNS": "120"}


@dataclass(frozen=True)
class Ran:
    """What a command printed and how it ended."""

    code: int
    out: str
    err: str

    @property
    def json(self):
        return json.loads(self.out)


def start_anew(words: Sequence[object], cwd: Path, env: dict[str, str], timeout: float) -> Ran:
    program = [sys.executable, "-m", "calseg_cli", *map(str, words)]
    done = subprocess.run(program, cwd=cwd, capture_output=True, text=True, timeout=timeout, env=env, check=False)
    return Ran(done.returncode, done.stdout, done.stderr)


class Typist:
    """Runs `calseg WORDS` as a process of its own, as a user would, but forked from one that has torch loaded."""

    def __init__(self, folder: Path) -> None:
        self._address = str(folder / "socket")
        self._server = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("server.py")), self._address],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **SETTINGS},
        )
        assert self._server.stdout is not None
        assert self._server.stdout.readline() == "ready\n"

    def __call__(self, *words: str, cwd: Path, env: dict[str, str] | None = None, timeout: float = 300) -> Ran:
        with tempfile.TemporaryDirectory() as folder:
            said = [Path(folder) / name for name in ("out", "err")]
            for path in said:
                path.touch()
            whole = {**os.environ, **SETTINGS, **(env or {})}
            if any(name.startswith("PYTHON") for name in env or {}):
                return start_anew(words, cwd, whole, timeout)  # they are read when Python starts
            with Client(self._address) as connection:
                connection.send(([str(word) for word in words], str(cwd), whole, *map(str, said)))
                pid = connection.recv()
                if not connection.poll(timeout):
                    os.kill(pid, signal.SIGKILL)
                    raise subprocess.TimeoutExpired(["calseg", *words], timeout)
                code = connection.recv()
            out, err = (path.read_text(encoding="utf-8") for path in said)
        return Ran(code, out, err)

    def close(self) -> None:
        self._server.terminate()
        self._server.communicate(timeout=30)


@pytest.fixture(scope="session")
def calseg() -> Iterator[Typist]:
    with tempfile.TemporaryDirectory() as folder:  # a short path: a socket's has at most 108 characters
        typist = Typist(Path(folder))
        yield typist
        typist.close()


@pytest.fixture(scope="session")
def trained(tmp_path_factory, calseg) -> Path:
    """A sample folder of fewer images after `calseg pretrain` of a few steps; copy it before changing anything.

    `workspace` is such a copy. Twenty images of each split show what there is to show.
    """
    folder = tmp_path_factory.mktemp("sample")
    ran = calseg("sample-data", cwd=folder)
    assert ran.code == 0, ran.err
    keep_few(folder, 20)
    words = ("pretrain", "--steps", "30", "--set", "pretrain.validate_every=15", "--set", "pretrain.log_every=5")
    ran = calseg(*words, cwd=folder)
    assert ran.code == 0, ran.err
    return folder


@pytest.fixture
def workspace(trained, tmp_path) -> Path:
    """A private copy of the trained folder."""
    shutil.copytree(trained, tmp_path / "w")
    return tmp_path / "w"


@pytest.fixture(scope="session")
def predicted(trained, tmp_path_factory, calseg) -> Path:
    """The trained folder with logits of the target's train split; copy it before changing anything (`folder`)."""
    folder = tmp_path_factory.mktemp("predicted") / "w"
    shutil.copytree(trained, folder)
    ran = calseg("predict", "--split", "train", cwd=folder)
    assert ran.code == 0, ran.err
    return folder


@pytest.fixture
def folder(predicted, tmp_path) -> Path:
    """A private copy of the folder with logits."""
    shutil.copytree(predicted, tmp_path / "w")
    return tmp_path / "w"


WATCH = """
import sys
seen = []
def hook(event, arguments):
    if event in ("open", "os.listdir", "os.scandir") and isinstance(arguments[0], str):
        seen.append(arguments[0])
sys.addaudithook(hook)
from calseg_cli.app import main
sys.argv = ["calseg", *sys.argv[1:]]
try:
    main()
finally:
    sys.stderr.write("".join(f"SEEN {path}\\n" for path in seen))
"""


@pytest.fixture(scope="session")
def opened() -> Callable[..., list[str]]:
    """What a command opened or listed: `opened(folder, *words)` gives every path."""

    def watch(folder: Path, *words: str) -> list[str]:
        program = [sys.executable, "-c", WATCH, *words]
        env = {**os.environ, **SETTINGS}
        done = subprocess.run(program, cwd=folder, capture_output=True, text=True, check=False, env=env)
        assert done.returncode == 0, done.stderr
        seen = [line.removeprefix("SEEN ") for line in done.stderr.splitlines() if line.startswith("SEEN ")]
        assert seen, "the hook saw nothing"
        return seen

    return watch
