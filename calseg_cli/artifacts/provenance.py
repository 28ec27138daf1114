"""Owns where a result came from: command, versions, commit, seed, parents; never an absolute path or a user's name."""

import hashlib
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import calseg_cli

PACKAGES = ("torch", "numpy", "h5py", "pillow", "transformers")


def provenance(
    command: Sequence[str],
    *,
    seed: int | None = None,
    config_digest: str | None = None,
    parents: Mapping[str, str] | None = None,
    files: Mapping[str, str | None] | None = None,
    device: str | None = None,
) -> dict[str, Any]:
    """What a reader needs to make the same file again, as plain JSON values.

    `parents` maps what was read (a role such as "checkpoint") to its digest, `files` to where it lies seen from the
    result (`beside`). Absolute paths in `command` are cut to
    their last part, so that two people who run the same thing write the same bytes.
    """
    return {
        "command": " ".join(_portable(word) for word in command),
        "calseg": calseg_cli.__version__,
        "commit": source_commit(),
        "python": platform.python_version(),
        "packages": package_versions(),
        "platform": f"{platform.system()} {platform.machine()}",
        "seed": seed,
        "config_digest": config_digest,
        "parents": dict(parents or {}),
        "files": {role: file for role, file in (files or {}).items() if file is not None},
        "device": device,
    }


def beside(path: Path, folder: Path) -> str:
    """Where `path` lies seen from `folder`, if both are below the working directory; else its name alone.

    A way that leads through other folders would tell a stranger how somebody's disk is laid out.
    """
    here = Path.cwd().resolve()
    if path.resolve().is_relative_to(here) and folder.resolve().is_relative_to(here):
        return Path(os.path.relpath(path.resolve(), folder.resolve())).as_posix()
    return path.name


def _portable(word: str) -> str:
    name, equals, value = word.rpartition("=")
    return f"{name}{equals}{Path(value).name}" if Path(value).is_absolute() else word


@cache
def package_versions() -> dict[str, str]:
    """Versions of the packages that decide a result, without importing any of them."""
    return {name: version for name in PACKAGES if (version := _version(name)) is not None}


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


@cache
def source_commit() -> str | None:
    """The git commit of calseg's own checkout, "-dirty" when changed; None for an installed wheel."""
    folder = Path(calseg_cli.__file__).parent
    if not (folder.parent / ".git").exists():
        return None
    try:
        commit = _git(folder, "rev-parse", "--short=12", "HEAD")
        return f"{commit}-dirty" if _git(folder, "status", "--porcelain", "--untracked-files=no") else commit
    except (OSError, subprocess.SubprocessError):
        return None


def _git(folder: Path, *words: str) -> str:
    answer = subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, timeout=10, check=True)
    return answer.stdout.strip()


def file_digest(path: Path) -> str:
    """sha256 of a file's bytes, as "sha256:..."."""
    with path.open("rb") as stream:
        return f"sha256:{hashlib.file_digest(stream, 'sha256').hexdigest()}"
