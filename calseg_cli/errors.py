"""Owns the family of errors a user can cause. Each is one line (what, where), a hint (what to do) and an exit code.

CalsegError                 1   never raised itself
├── ConfigError             2   calseg.yaml, --set, CALSEG_*: unknown key, wrong type, unknown name
│   └── MissingExtraError   2   an optional package is not installed
├── ArtifactError           3   a calseg file that is missing, broken, or of another kind, version or class list
├── DataError               4   folders, images, labels of a dataset
├── StoppedError            5   stopped half way with nothing lost: `--resume` goes on
│   └── DiskFullError       5   no space left; what was written before stays
├── DeviceError             6   no such device, or out of memory
└── ThresholdError          7   `evaluate --fail-if` holds, or `artifact diff` found a difference

Interruptions keep the shell's own numbers: 130 (SIGINT, Ctrl-C) and 143 (SIGTERM).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from errno import EDQUOT, EFBIG, ENOSPC
from pathlib import Path


class CalsegError(Exception):
    """A mistake or a state of the world that a user can mend; never a bug of calseg.

    `message` says what and where, in one line; `hint` says what to do about it.
    """

    exit_code = 1

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class ConfigError(CalsegError):
    """The configuration cannot be used; `message` may hold one complaint a line."""

    exit_code = 2


class MissingExtraError(ConfigError):
    """An optional package is needed: `MissingExtraError("transformers", "hf")` names the extra that brings it."""

    def __init__(self, package: str, extra: str, needed_for: str) -> None:
        super().__init__(f"{needed_for} needs the package {package}", f"pip install 'calseg[{extra}]'")


class ArtifactError(CalsegError):
    """A checkpoint or an artifact is missing, unfinished, corrupt, or does not fit the rest."""

    exit_code = 3


class DataError(CalsegError):
    """A dataset's folder, image or label is not what it should be."""

    exit_code = 4


class StoppedError(CalsegError):
    """The work stopped half way; its state is on disk and `--resume` continues it."""

    exit_code = 5


class DiskFullError(StoppedError):
    """No space is left on the device."""


class DeviceError(CalsegError):
    """The device asked for is absent, or its memory is too small."""

    exit_code = 6


class ThresholdError(CalsegError):
    """A condition given to `evaluate --fail-if` holds, or two artifacts that were compared differ."""

    exit_code = 7


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn what the system says while `path` is written into one line that names it: no space, no permission, ..."""
    try:
        yield
    except OSError as error:
        if error.errno in (ENOSPC, EDQUOT):
            raise DiskFullError(
                f"no space left on the disk while writing {path}",
                "free some space and run the command again, with --resume where it has one; nothing older was lost",
            ) from error
        if error.errno == EFBIG:
            raise DiskFullError(
                f"{path} would be larger than a file may be here (ulimit -f)",
                "raise the limit and run the command again, with --resume where it has one; nothing older was lost",
            ) from error
        if error.errno is None:
            raise
        reason = (error.strerror or str(error)).lower()
        raise CalsegError(f"{path} cannot be written: {reason}", "choose another place") from error
