"""Owns the space that an artifact needs: asked for before the start, and before each item."""

import importlib
import shutil
from errno import EFBIG, ENOSPC
from os import strerror
from pathlib import Path

from calseg_cli.errors import DiskFullError

_SPARE = 2 * 1024**2  # bytes that must stay free: HDF5 cannot even close a file on a full disk
_PACKED = 0.5  # of the raw size; logits pack to about 0.65, so with less than this there is no hope


def free_bytes(folder: Path) -> int:
    """Free space of the disk that holds a folder, or its nearest parent that exists."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def need_space(partial: Path, size: int) -> None:
    """Raise the OSError of a full disk, or of a limit on files (`ulimit -f`), before HDF5 meets it with `partial`.

    HDF5 cannot even close a file then, and takes the process with it.
    """
    if free_bytes(partial.parent) < size + _SPARE:
        raise OSError(ENOSPC, strerror(ENOSPC))
    written = partial.stat().st_size if partial.exists() else 0
    if written + size + _SPARE > file_limit():
        raise OSError(EFBIG, strerror(EFBIG))


def file_limit() -> float:
    """The largest file in bytes that this process may write; infinite where the system knows no such limit."""
    try:
        resource = importlib.import_module("resource")
    except ImportError:  # Windows
        return float("inf")
    limit = int(resource.getrlimit(resource.RLIMIT_FSIZE)[0])
    return float("inf") if limit == resource.RLIM_INFINITY else limit


def check_estimate(path: Path, size: int, *, packed: bool) -> None:
    """Refuse work whose result cannot fit: `size` raw bytes for the file `path`. Raises DiskFullError."""
    least, free = int(size * (_PACKED if packed else 1.0)) + _SPARE, free_bytes(path.parent)
    if least > free:
        raise DiskFullError(
            f"{path} would need at least {human(least)}, and {human(free)} are free",
            "free some space, or give --out on another disk",
        )


def human(size: float) -> str:
    """Bytes as people read them.

    >>> human(999), human(4_980_000), human(14_800_000_000)
    ('999 B', '5.0 MB', '14.8 GB')
    """
    for unit in ("B", "kB", "MB", "GB"):
        if size < 999.95 or unit == "GB":
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    raise AssertionError
