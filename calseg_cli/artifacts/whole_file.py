"""Owns writing a plain file so that its name never stands on half a file."""

import os
import sys
import time
from pathlib import Path

from calseg_cli.errors import disk_errors


def write_whole(path: Path, content: bytes | str) -> None:
    """Write `content` to NAME.partial, put it on the disk, then give it its name.

    Raises DiskFullError when no space is left (the old file stays) and CalsegError where writing is forbidden.
    """
    partial = path.with_name(path.name + ".partial")
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with partial.open("wb") as stream:
                stream.write(content.encode() if isinstance(content, str) else content)
                stream.flush()
                os.fsync(stream.fileno())
            replace_file(partial, path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
        sync(path.parent)


def replace_file(source: Path, target: Path) -> None:
    """Give `source` the name `target`, at once; on Windows wait a little for whoever still reads the old one."""
    for _ in range(20 if sys.platform == "win32" else 0):
        try:
            source.replace(target)
        except PermissionError:
            time.sleep(0.1)
        else:
            return
    source.replace(target)


def sync(path: Path) -> None:
    """Ask the system to put a file, or a folder's entries, on the disk; some file systems know no such thing."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    except OSError:
        pass
    finally:
        os.close(handle)
