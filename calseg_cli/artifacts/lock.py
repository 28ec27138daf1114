"""Owns holding a file or a folder for one process: a lock the system takes back, and who holds it in plain text."""

import errno
import json
import os
import platform
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from calseg_cli.errors import ArtifactError, disk_errors

_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)
_BUSY = (errno.EACCES, errno.EAGAIN)
_held: dict[Path, int] = {}  # by which process; the system's locks do not keep two writers of one process apart
_holding = threading.Lock()


@contextmanager
def sole_holder(path: Path, lock: Path | None = None) -> Iterator[None]:
    """Hold `path` for this process through the file `lock` (PATH.lock without it), which is removed afterwards.

    Raises ArtifactError, naming the process, where another one holds it. A process that dies lets go: the system drops
    its lock. Where the file system knows no locks, the file itself is the lock, and one whose process is gone is taken
    over.
    """
    lock = lock or path.with_name(path.name + ".lock")
    with _holding, disk_errors(lock):
        lock.parent.mkdir(parents=True, exist_ok=True)
        key, owner = lock.parent.resolve() / lock.name, os.getpid()
        if _held.get(key) == owner:  # before the file is opened: closing it again would drop the system's lock
            raise _taken(path, "this process")
        stream = _acquire(path, lock)
        _held[key] = owner
    try:
        yield
    finally:
        if os.getpid() == owner:  # a forked child that ends inside the block holds nothing
            # Removed while it is still held; whoever has opened the old file meanwhile finds another under the name.
            with suppress(OSError):
                lock.unlink(missing_ok=True)
            del _held[key]
        stream.close()


def _acquire(path: Path, lock: Path) -> IO[str]:
    while True:
        stream = lock.open("a+")
        try:
            locked = _lock(stream)
        except OSError as error:
            holder = _read(stream)
            stream.close()
            if error.errno in _BUSY:
                raise _taken(path, _named(holder)) from error
            raise
        holder = _read(stream)
        if not locked and _alive(holder):
            stream.close()
            raise _taken(path, _named(holder))
        if _still_there(stream, lock):
            _sign(stream)
            return stream
        stream.close()


def _lock(stream: IO[str]) -> bool:
    """Whether the system's lock is held now; False where there are none. Raises OSError where another has it.

    A POSIX lock, not flock: a child that was forked to read images must not hold it on after a kill of its parent.
    """
    if sys.platform == "win32":
        import msvcrt

        stream.seek(0)
        msvcrt.locking(stream.fileno(), msvcrt.LK_NBLCK, 1)
        return True
    import fcntl

    try:
        fcntl.lockf(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _NO_LOCKS:
            return False
        raise
    return True


def _still_there(stream: IO[str], lock: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(stream.fileno()), lock.stat())
    except FileNotFoundError:
        return False


def _sign(stream: IO[str]) -> None:
    stream.seek(0)
    stream.truncate()
    stream.write(json.dumps({"pid": os.getpid(), "host": platform.node()}))
    stream.flush()


def _alive(holder: tuple[int, str] | None) -> bool:
    """Whether the process that signed the file still runs; one on another machine is believed to."""
    if holder is None:
        return False
    pid, host = holder
    if pid <= 0:  # which would mean groups of processes
        return False
    if host != platform.node():
        return True
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return pid != os.getpid()


def _read(stream: IO[str]) -> tuple[int, str] | None:
    try:
        stream.seek(0)
        signed = json.loads(stream.read(1000))
        return int(signed["pid"]), str(signed["host"])
    except (OSError, ValueError, TypeError, KeyError, OverflowError, RecursionError):
        return None


def _named(holder: tuple[int, str] | None) -> str:
    return f"process {holder[0]} on {holder[1]}" if holder else "another process"


def _taken(path: Path, who: str) -> ArtifactError:
    return ArtifactError(f"another calseg works on {path} now ({who})", "wait for it, or give --out or --name")
