"""Owns a folder of results that appears when it is whole, and which older folder may be deleted in its favour."""

import json
import os
import shutil
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from calseg_cli.artifacts.lock import sole_holder
from calseg_cli.artifacts.safe_open import PARTIAL
from calseg_cli.artifacts.whole_file import write_whole
from calseg_cli.errors import ArtifactError, disk_errors

MARK = ".calseg-export.json"
"""A file in each such folder that says what it is made from: only a folder that has it is ever replaced."""
_ASIDE = ".replaced"


@contextmanager
def whole_folder(
    folder: Path, *, force: bool, mark: Mapping[str, Any], endings: Collection[str], names: Collection[str] = ()
) -> Iterator[Path]:
    """FOLDER.partial to write into, which becomes FOLDER at the end, in place of an older one with `force`.

    `mark` goes into it as MARK; `endings` and `names` are those of the files that are written. An exception leaves the
    older folder as it is, and nothing else. Raises ArtifactError for something in the way: without `force` anything but
    an empty folder, with it one without a MARK, or with a file that is none of these.
    """
    target = Path(os.path.abspath(folder))  # noqa: PTH100 - resolve() would follow links
    if not target.name:
        raise ArtifactError(f"{folder} cannot be replaced", "name a folder of its own")
    partial, aside = (target.with_name(target.name + ending) for ending in (PARTIAL, _ASIDE))
    own = _Own(frozenset(endings), frozenset(names))
    with sole_holder(target):
        if not force and _there(target) and not _empty(target):
            raise ArtifactError(
                f"{folder} exists already", "--force replaces an earlier export, -o names another folder"
            )
        for older in (target, partial, aside):
            own.check(older)
        with disk_errors(folder):
            shutil.rmtree(partial, ignore_errors=True)  # what a killed run left
            partial.mkdir(parents=True)
        try:
            write_whole(partial / MARK, json.dumps(mark, ensure_ascii=False, indent=2) + "\n")
            yield partial
            with disk_errors(folder):
                _give_name(partial, target, aside)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise


class _Own:
    """What may be deleted: `-o .. --force` must not cost anybody a home or a dataset."""

    def __init__(self, endings: frozenset[str], names: frozenset[str]) -> None:
        self._endings, self._names = endings, names | {MARK}

    def check(self, folder: Path) -> None:
        """Raise ArtifactError for a folder that holds anything else."""
        if not _there(folder) or _empty(folder):
            return
        marked = any((folder / f"{MARK}{ending}").is_file() for ending in ("", PARTIAL))
        if folder.is_symlink() or not marked:
            raise ArtifactError(f"{folder} is no folder that an export wrote", "-o names another folder")
        for place, folders, names in os.walk(folder):
            links = [name for name in folders if Path(place, name).is_symlink()]
            strange = [*links, *(name for name in names if not self._mine(name.removesuffix(PARTIAL)))]
            if strange:
                raise ArtifactError(
                    f"{Path(place, strange[0])} was written by no export",
                    "-o names another folder, or move it away yourself",
                )

    def _mine(self, name: str) -> bool:
        return name in self._names or Path(name).suffix in self._endings


def _there(folder: Path) -> bool:
    return folder.exists() or folder.is_symlink()


def _empty(folder: Path) -> bool:
    return folder.is_dir() and not folder.is_symlink() and not any(folder.iterdir())


def _give_name(partial: Path, target: Path, aside: Path) -> None:
    if target.exists():
        shutil.rmtree(aside, ignore_errors=True)
        target.rename(aside)
    try:
        partial.rename(target)
    except OSError:
        if aside.exists() and not target.exists():
            aside.rename(target)
        raise
    shutil.rmtree(aside, ignore_errors=True)
