"""A folder with sample data and a trained network, made once a session; and a way to type commands."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Client
from pathlib import Path

import pytest

from tests.commands.outcomes import draw_few
from tests.commands.server import WATCHED

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


class Started:
    """A command that runs, in a process of its own. Ask `communicate` at last: it puts away what was said."""

    def __init__(self, address: str, words: Sequence[object], cwd: Path, env: dict[str, str]) -> None:
        self._folder = Path(tempfile.mkdtemp())
        for name in ("out", "err"):
            (self._folder / name).touch()
        said = [str(self._folder / name) for name in ("out", "err")]
        self._connection = Client(address)
        self._connection.send(([str(word) for word in words], str(cwd), {**os.environ, **SETTINGS, **env}, *said))
        self.pid: int = self._connection.recv()
        self.returncode: int | None = None

    @property
    def err(self) -> str:
        """What it has said on stderr so far."""
        return (self._folder / "err").read_text(encoding="utf-8")

    def poll(self) -> int | None:
        """Its exit code, where it has ended."""
        if self.returncode is None and self._connection.poll():
            self.returncode = self._connection.recv()
        return self.returncode

    def send_signal(self, signum: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, signum)

    def wait_for(self, path: Path, seconds: float = 90) -> None:
        """Until a file is there."""
        end = time.monotonic() + seconds
        while not path.exists():
            assert self.poll() is None, self.err
            assert time.monotonic() < end, self.err
            time.sleep(0.002)

    def communicate(self, timeout: float = 300) -> tuple[str, str]:
        """What it said on stdout and stderr, once it has ended; killed where that takes longer."""
        try:
            if self.returncode is None and not self._connection.poll(timeout):
                os.kill(self.pid, signal.SIGKILL)
                raise subprocess.TimeoutExpired(["calseg"], timeout)
            self.poll()
            return (self._folder / "out").read_text(encoding="utf-8"), self.err
        finally:
            self._connection.close()
            shutil.rmtree(self._folder)


class Typist:
    """Runs `calseg WORDS` as a process of its own, as a user would, but forked from one that has torch loaded."""

    def __init__(self, folder: Path) -> None:
        self.address = str(folder / "socket")
        self._server = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("server.py")), self.address],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **SETTINGS},
        )
        assert self._server.stdout is not None
        assert self._server.stdout.readline() == "ready\n"

    def __call__(self, *words: str, cwd: Path, env: dict[str, str] | None = None, timeout: float = 300) -> Ran:
        if any(name.startswith("PYTHON") for name in env or {}):  # they are read when Python starts
            return start_anew(words, cwd, {**os.environ, **SETTINGS, **(env or {})}, timeout)
        started = self.start(*words, cwd=cwd, env=env)
        out, err = started.communicate(timeout)
        assert started.returncode is not None
        return Ran(started.returncode, out, err)

    def start(self, *words: str, cwd: Path, env: dict[str, str] | None = None) -> Started:
        """The same, and go on while it runs."""
        return Started(self.address, words, cwd, env or {})

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
    draw_few(folder)
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


@pytest.fixture(scope="session")
def opened(calseg) -> Callable[..., list[str]]:
    """What a command opened or listed: `opened(folder, *words)` gives every path."""

    def watch(folder: Path, *words: str) -> list[str]:
        done = calseg(*words, cwd=folder, env={WATCHED: "1"})
        assert done.code == 0, done.err
        seen = [line.removeprefix("SEEN ") for line in done.err.splitlines() if line.startswith("SEEN ")]
        assert seen, "the hook saw nothing"
        return seen

    return watch
