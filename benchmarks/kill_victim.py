"""Owns starting a calseg that is to be killed, from outside or by itself.

    python benchmarks/kill_victim.py 'half a seal' predict --max-items 3
    python benchmarks/kill_victim.py 'write 57' predict --max-items 3
    python benchmarks/kill_victim.py 'write 0' predict --max-items 3      # is not killed, and counts its writes

One that kills itself does it at one step of writing an artifact, or at one write to the file. A function of the writer
is replaced by one that sends SIGKILL to its own process; everything else is calseg as it is. For `write N` HDF5 writes
through a Python file, which dies in place of its Nth write: between two writes of one flush the tables of an HDF5 file
do not fit together, and a kill that comes by chance rarely meets that moment.
"""

import io
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import h5py

from calseg_cli import app
from calseg_cli.artifacts import hdf5_file, writer

PATIENCE = 300.0  # seconds
PRELOADED = ["kill_victim", "torch", "calseg_cli.stages.predict", "calseg_cli.stages.pseudo_label"]
SETTINGS = {"OMP_NUM_THREADS": "1", "NO_COLOR": "1"}
forking = False  # True: fork from a process that has loaded torch; what is killed is a process of its own all the same

Function = Callable[..., Any]


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def before(function: Function, call: int = 1) -> Function:
    """Die in place of the `call`th call."""
    calls = iter(range(1, call))

    def stopped(*arguments: Any, **options: Any) -> Any:
        if next(calls, None) is None:
            die()
        return function(*arguments, **options)

    return stopped


def after(function: Function) -> Function:
    def stopped(*arguments: Any, **options: Any) -> None:
        function(*arguments, **options)
        die()

    return stopped


def half_sealed(function: Function) -> Function:
    def stopped(path: Path, *arguments: Any) -> None:
        function(path, *arguments)
        os.truncate(path, path.stat().st_size - 40)
        die()

    return stopped


STEPS: dict[str, tuple[ModuleType, str, Callable[[Function], Function]]] = {
    "an item without its facts": (writer, "item_digest", lambda function: before(function, 4)),
    "all items, no list": (writer, "write_index", before),
    "the list not on the disk": (writer, "content_digest", before),
    "complete, not sealed": (hdf5_file, "seal", before),
    "half a seal": (hdf5_file, "seal", half_sealed),
    "sealed, without a name": (hdf5_file, "replace_file", before),
    "named": (hdf5_file, "replace_file", after),
}


class DyingFile(io.FileIO):
    """A file that dies in place of its `last`th write; HDF5 calls it by its path."""

    writes = 0
    last = 0

    def __init__(self, path: Path) -> None:
        super().__init__(path, "w+")
        self._path = str(path)

    def __repr__(self) -> str:
        return self._path

    def write(self, content: Any) -> int:
        DyingFile.writes += 1
        if DyingFile.writes == DyingFile.last:
            die()
        return super().write(content)


class DyingHdf5:
    """h5py, but for files that are made new."""

    def __getattr__(self, name: str) -> Any:
        return getattr(h5py, name)

    @staticmethod
    def File(path: Path, mode: str, **options: Any) -> h5py.File:
        return h5py.File(DyingFile(path), mode) if mode == "w" else h5py.File(path, mode, **options)


class Forked:
    """What is used of subprocess.Popen, for a process forked from one that has everything loaded."""

    def __init__(self, folder: Path, words: list[str], victim: str | None) -> None:
        self.args = ["calseg", *words]
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOADED)
        handle, said = tempfile.mkstemp()
        os.close(handle)
        self._said = Path(said)
        self._process = context.Process(target=run_forked, args=(folder, words, victim, self._said))
        self._process.start()
        self.pid = self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float) -> None:
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired(self.args, timeout)

    def send_signal(self, signum: int) -> None:
        if self._process.exitcode is None:
            os.kill(self.pid, signum)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def communicate(self, timeout: float) -> tuple[None, str]:
        self.wait(timeout)
        return None, self._said.read_text(encoding="utf-8") if self._said.exists() else ""


Started = subprocess.Popen[str] | Forked


def run_forked(folder: Path, words: list[str], victim: str | None, said: Path) -> None:
    """The forked process: calseg with its terminal's streams in a file."""
    os.chdir(folder)
    os.environ.update(SETTINGS)
    for stream, path in ((sys.stdout, Path(os.devnull)), (sys.stderr, said)):
        stream.flush()
        handle = os.open(path, os.O_WRONLY)
        os.dup2(handle, stream.fileno())
        os.close(handle)
    run(words, victim)


def start(folder: Path, *words: str, victim: str | None = None) -> Started:
    """`calseg WORDS` as a process of its own; with `victim`, one that kills itself at that step."""
    if forking:
        return Forked(folder, list(words), victim)
    program = ["-m", "calseg_cli"] if victim is None else [str(Path(__file__).resolve()), victim]
    return subprocess.Popen(
        [sys.executable, *program, *words],
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **SETTINGS},
    )


def check(process: Started) -> str:
    """Wait for its end; what it said. Raises RuntimeError for another exit code than 0."""
    said = process.communicate(timeout=PATIENCE)[1]
    if process.returncode:
        last = [line.strip() for line in said.splitlines() if line.strip()][-2:]
        raise RuntimeError(f"{' '.join(map(str, process.args))} exited with {process.returncode}: {' / '.join(last)}")
    return said


def run(words: list[str], victim: str | None) -> None:
    """Run calseg in this process, which dies at the step `victim` if there is one."""
    if victim is not None and victim.startswith("write "):
        DyingFile.last = int(victim.split()[1])
        for module in (writer, hdf5_file):
            module.h5py = DyingHdf5()
    elif victim is not None:
        module, name, make = STEPS[victim]
        setattr(module, name, make(getattr(module, name)))
    sys.argv = ["calseg", *words]
    try:
        app.main()
    finally:
        if victim is not None:
            sys.stderr.write(f"writes: {DyingFile.writes}\n")


if __name__ == "__main__":
    run(sys.argv[2:], sys.argv[1])
