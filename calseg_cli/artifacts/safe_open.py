"""Owns opening an HDF5 file that may be damaged or hostile: first its seal, then HDF5, then the rules."""

import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from errno import EAGAIN, ENOLCK
from pathlib import Path
from typing import Any

import h5py

from calseg_cli.artifacts.policy import RefusedError, check_file
from calseg_cli.artifacts.seal import BrokenSealError, check_seal
from calseg_cli.errors import ArtifactError

HDF5_MAGIC = b"\x89HDF\r\n\x1a\n"
PARTIAL = ".partial"
_DISTRUST = "do not trust this file; ask for it again or write it anew"
_SEAL_ANEW = "if another program wrote it again, calseg artifact convert proves its content and seals it"
_LOCK_ERRORS = (EAGAIN, ENOLCK, 524)  # what NFS and Lustre answer to a lock
DAMAGE = (OSError, RuntimeError, LookupError, ValueError, TypeError, AttributeError, ArithmeticError, MemoryError)
"""What h5py, numpy and Python say where the tables of a file do not fit together."""
_log = logging.getLogger(__name__)


def safe_open(path: Path, *, explain: bool = True, sealed: bool = True) -> h5py.File:
    """Open an artifact's HDF5 file for reading after every check that is cheap.

    Raises ArtifactError with the rule that is broken. With `explain`, a file whose seal is broken is looked at in
    another process, which may hang or crash without harm, to name what is wrong with it. `sealed=False` takes a file
    without a seal, such as one that another program wrote again, if that process finds nothing wrong.
    """
    try:
        _check_there(path)
        check_seal(path)
    except BrokenSealError as error:
        found = examine(path)["refused"] if explain or not sealed else None
        if found is not None or sealed:
            raise ArtifactError(f"{path} is refused: {found or error}", _DISTRUST if found else _SEAL_ANEW) from error
    except OSError as error:
        raise _unreadable(path, error) from error
    file = open_hdf5(path)
    try:
        with hdf5_reading(path):
            check_file(file)
    except BaseException:
        file.close()
        raise
    return file


def open_hdf5(path: Path) -> h5py.File:
    """Open for reading; on a file system without locks once more without one, and say so."""
    try:
        return h5py.File(path, "r")
    except OSError as error:
        if error.errno is None:
            raise ArtifactError(
                f"{path} is refused: HDF5 cannot read it, it is cut short or damaged", _DISTRUST
            ) from error
        if error.errno not in _LOCK_ERRORS:
            raise _unreadable(path, error) from error
    _log.warning("%s: no lock can be had; reading without one", path)
    try:
        return h5py.File(path, "r", locking=False)
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read: another program is writing it", "wait for it to end") from error


def _unreadable(path: Path, error: OSError) -> ArtifactError:
    reason = os.strerror(error.errno).lower() if error.errno else str(error)
    return ArtifactError(f"{path} cannot be read: {reason}", "check its permissions, and what else is open")


@contextmanager
def hdf5_reading(path: Path) -> Iterator[None]:
    """Turn what goes wrong inside HDF5 into one line that names the file."""
    try:
        yield
    except ArtifactError:
        raise
    except RefusedError as error:
        raise ArtifactError(f"{path} is refused: {error}", _DISTRUST) from error
    except DAMAGE as error:
        told = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise ArtifactError(f"{path} is damaged ({told})", "copy or write it again") from error


def _check_there(path: Path) -> None:
    if not path.exists():
        partial = path.with_name(path.name + PARTIAL)
        hint = (
            f"{partial.name} is there, unfinished: the command that wrote it goes on with --resume"
            if partial.exists()
            else "check the path, or run the stage that writes it"
        )
        raise ArtifactError(f"there is no file {path}", hint)
    if not path.is_file():
        what = "a folder" if path.is_dir() else "no plain file"
        raise ArtifactError(f"{path} is {what}, not an artifact", "name an .h5 file or a manifest of shards")
    if path.name.endswith(PARTIAL):
        raise ArtifactError(f"{path} is unfinished", "the command that wrote it goes on with --resume")
    with path.open("rb") as stream:
        if stream.read(8) != HDF5_MAGIC:
            raise ArtifactError(f"{path} is no HDF5 file, or its beginning is damaged", "name a file that calseg wrote")


def examine(path: Path, *, items: bool = False, seconds: float = 5.0) -> dict[str, Any]:
    """Look at a file in another process: {"refused": rule or None, "items": {position: facts} or None}.

    Damaged tables can make HDF5 loop or crash; there it costs `seconds` at most, and takes nothing with it.
    """
    words = [sys.executable, "-P", "-m", "calseg_cli.artifacts.examine", str(path.absolute()), str(int(items))]
    unreadable = {"refused": "HDF5 cannot read it, its inner tables are damaged", "items": None}
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=seconds, check=False)
        return dict(json.loads(done.stdout)) if done.returncode == 0 else unreadable
    except (subprocess.TimeoutExpired, ValueError):
        return unreadable
