"""Owns where a run keeps its results: numbered folders in the order of work, and how a later stage finds an earlier."""

import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from errno import ENOLCK, ENOTSUP, EOPNOTSUPP
from pathlib import Path
from typing import IO

from calseg_cli.config import Resolved
from calseg_cli.errors import ArtifactError, StoppedError, disk_errors

NETWORK = "network.safetensors"
RESUME = "resume.safetensors"
LOG = "log.jsonl"
_ASIDE = ".replaced"  # ends the name of a whole result that waits for its successor


@dataclass(frozen=True)
class RunFolder:
    """RUNS/NAME with one folder a stage."""

    root: Path

    @property
    def pretrain(self) -> Path:
        """Supervised training on the source."""
        return self.root / "1-pretrain"

    @property
    def select(self) -> Path:
        """The checkpoint of a training run that was chosen, and the scores of all."""
        return self.root / "2-select"

    @property
    def valuenet(self) -> Path:
        """The value net, which expects a calibration error of each image."""
        return self.root / "3-valuenet"

    def adapt(self, method: str) -> Path:
        """Adaptation by one method."""
        return self.root / f"4-adapt-{method}"

    @property
    def predict(self) -> Path:
        """Logits artifacts and pictures."""
        return self.root / "5-predict"

    @property
    def prototypes(self) -> Path:
        """Prototypes of soft labels."""
        return self.root / "5-prototypes"

    @property
    def evaluate(self) -> Path:
        """Reports."""
        return self.root / "6-evaluate"

    def networks(self) -> list[Path]:
        """Every finished network of the run, the most recently written first.

        A result that was set aside for one that is not whole yet counts: it is the last that there is.
        """
        found = [self.pretrain / NETWORK, self.select / NETWORK, *self.root.glob(f"4-adapt-*/{NETWORK}")]
        aside = [_aside(folder) / NETWORK for folder in (self.pretrain, self.select)]
        whole = [path for path in {*found, *aside} if path.exists() and not _is_superseded(path)]
        return sorted(whole, key=lambda path: path.stat().st_mtime_ns, reverse=True)


def run_folder(resolved: Resolved) -> RunFolder:
    """The run's folder as the configuration names it."""
    return RunFolder(resolved.config.runs / resolved.config.name)


def find_network(run: RunFolder, asked: str | None) -> Path:
    """The checkpoint to use: a path, a stage's short name such as "pretrain" or "adapt-adabn", or the run's newest.

    Raises ArtifactError when there is none, saying which there are.
    """
    if asked is None:
        newest = run.networks()
        if not newest:
            raise ArtifactError(
                f"no trained network in {run.root}", "run `calseg pretrain` first, or name one with --checkpoint"
            )
        return newest[0]
    path = Path(asked)
    named = [found for found in run.networks() if _short(found) == asked]
    if (path / NETWORK).is_file():
        return path / NETWORK
    if path.is_file() or not named:
        return _existing(path, run)
    return named[0]


def source_network(run: RunFolder) -> Path:
    """The network that was trained on the source: the chosen checkpoint, unless training was done again since.

    Raises ArtifactError where there is neither.
    """
    places = (run.pretrain / NETWORK, run.select / NETWORK)
    trained = [path for path in run.networks() if path in places]
    return trained[0] if trained else _existing(run.pretrain / NETWORK, run)


def _existing(path: Path, run: RunFolder) -> Path:
    if path.is_file():
        return path
    short = [_short(found) for found in run.networks()]
    known = f"this run has {', '.join(short)}" if short else f"{run.root} holds no network yet"
    raise ArtifactError(f"there is no checkpoint {path}", known)


def short_name(checkpoint: Path, run: RunFolder) -> str:
    """How results of that network are called: the stage within the run, else the file's own name."""
    if checkpoint.name == NETWORK and checkpoint.parent.parent == run.root:
        return _short(checkpoint)
    if checkpoint.parent.name == "checkpoints":
        return f"{checkpoint.parent.parent.name.partition('-')[2]}-{checkpoint.stem}"
    if checkpoint.name == NETWORK and checkpoint.parent.name.startswith("round-"):
        return f"{checkpoint.parent.parent.name.partition('-')[2]}-{checkpoint.parent.name}"
    return checkpoint.parent.name if checkpoint.name == NETWORK else checkpoint.stem


def _short(network: Path) -> str:
    """The stage's short name, of a result that was set aside too."""
    return network.parent.name.removesuffix(_ASIDE).partition("-")[2]


def _is_superseded(network: Path) -> bool:
    """Whether a network was set aside and its successor is whole."""
    folder = network.parent
    own = folder.with_name(folder.name.removesuffix(_ASIDE))
    return folder != own and (own / NETWORK).exists()


@contextmanager
def sole_writer(folder: Path) -> Iterator[None]:
    """Hold a stage's folder for this process alone. Raises ArtifactError where another process works in it.

    The system lets go of the lock when a process ends, however it ends, so there is no stale one to remove.
    """
    lock = folder.with_name(f".{folder.name}.lock")
    with disk_errors(lock):
        folder.parent.mkdir(parents=True, exist_ok=True)
        stream = lock.open("w")
    with stream:
        try:
            _lock(stream)
        except BlockingIOError as error:
            raise ArtifactError(f"another calseg works in {folder} now", "wait for it, or give --name") from error
        # The file stays: removing it would let a third process lock another file of the same name.
        try:
            yield
        except BaseException as error:
            if _put_back(folder) and isinstance(error, StoppedError):
                error.hint = "the result from before is in its place again; the same command, with --force, starts anew"
            raise


def _lock(stream: IO[str]) -> None:
    if sys.platform == "win32":
        return
    import fcntl

    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (ENOLCK, ENOTSUP, EOPNOTSUPP):  # a file system without locks: work unguarded
            raise


def claim(folder: Path, *, resume: bool, force: bool, finished: str = NETWORK) -> bool:
    """Make a stage's folder ready; True when its result is there already and `resume` has nothing left to do.

    Never destroys a whole result before the new one is whole: `force` sets it aside until `release`. Raises
    ArtifactError where a result or an unfinished run would be lost without `resume` or `force`.
    """
    whole, begun = (folder / finished).exists(), (folder / RESUME).exists()
    if resume and whole:
        return True
    if (whole or begun) and not resume and not force:
        state = "holds a finished run" if whole else "holds an unfinished run"
        raise ArtifactError(f"{folder} {state}", "--resume goes on with it, --force starts anew, --name another run")
    with disk_errors(folder):
        if force and not resume and folder.exists():
            _set_aside(folder, whole=whole)
        folder.mkdir(parents=True, exist_ok=True)
    return False


def _set_aside(folder: Path, *, whole: bool) -> None:
    aside = _aside(folder)
    if whole:
        shutil.rmtree(aside, ignore_errors=True)
        folder.rename(aside)
    else:
        shutil.rmtree(folder)


def _put_back(folder: Path) -> bool:
    """A new try ended with nothing to go on from: the result that it was to replace takes its place again, if any."""
    aside = _aside(folder)
    if not aside.exists() or (folder / RESUME).exists() or (folder / NETWORK).exists():
        return False
    shutil.rmtree(folder, ignore_errors=True)
    aside.rename(folder)
    return True


def release(folder: Path) -> None:
    """The new result is whole: forget the one that was set aside."""
    shutil.rmtree(_aside(folder), ignore_errors=True)


def _aside(folder: Path) -> Path:
    return folder.with_name(folder.name + _ASIDE)
