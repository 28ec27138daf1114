"""Owns where a relative path in the configuration leads, and how a path is written so that it means the same anywhere.

A path is kept ready to open: joined to the folder of the file that holds it, or as it stands where a flag, --set or a
variable gave it. Written out, it is relative to the configuration's folder again wherever it lies below it or was
relative, so that neither the working directory nor a user's name changes what is recorded.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from calseg_cli.config.draft import Draft
from calseg_cli.config.yaml_text import Key

_WEIGHTS = (".safetensors", ".pth", ".pt", ".bin", ".ckpt")


def anchor_paths(draft: Draft, folder: Path) -> None:
    """Make every path of the draft one to open; a default is relative to `folder`, the configuration's."""
    draft.values.setdefault("runs", "runs")
    for table, name, key in _path_values(draft.values):
        place = draft.places.get(key)
        base = place.folder if place is not None else folder
        if key != ("network", "init") or _is_file(table[name], base):
            table[name] = str(base / from_home(table[name]))


def from_home(path: str) -> Path:
    """A path with a leading ~ put in full; ~somebody stays, for nobody may be called so."""
    return Path(path).expanduser() if path == "~" or path.startswith("~/") else Path(path)


def _path_values(values: dict[Any, Any]) -> Iterator[tuple[dict[Any, Any], Any, Key]]:
    """Every table that holds a path, the path's name in it, and its key."""
    tables: list[tuple[Any, Key, tuple[str, ...]]] = [
        (values, (), ("runs",)),
        (values.get("network"), ("network",), ("init",)),
        (values.get("prototypes"), ("prototypes",), ("prior_from",)),
        (_table(_table(values, "adapt"), "blda"), ("adapt", "blda"), ("anchors",)),
    ]
    for role in ("source", "target"):
        domain = values.get(role)
        lists = domain.get("lists") if isinstance(domain, dict) else None
        tables += [(domain, (role,), ("root",)), (lists, (role, "lists"), ("train", "val", "test"))]
    for table, above, names in tables:
        if isinstance(table, dict):
            yield from (
                (table, name, (*above, name)) for name in names if isinstance(table.get(name), str) and table[name]
            )


def _table(values: Any, name: str) -> Any:
    """What a table holds under a name; None where it is no table."""
    return values.get(name) if isinstance(values, dict) else None


def _is_file(init: str, base: Path) -> bool:
    """Whether a network's `init` names a file or folder, not a word or a name on a hub."""
    if init in ("default", "none", "imagenet"):
        return False
    if init.endswith(_WEIGHTS) or init.startswith(("./", "../", "~/", "/")):
        return True
    try:
        return (base / init).exists()
    except OSError:  # too long for a file's name, say
        return False


def portable(path: Path, folder: Path) -> str:
    """How a path to open is written: relative to the configuration's folder where that says the same everywhere.

    >>> portable(Path("proj/data/day"), Path("proj")), portable(Path("/data"), Path("proj"))
    ('data/day', '/data')
    """
    for below in (folder, folder.absolute()):
        if path.is_relative_to(below):
            written = path.relative_to(below).as_posix()
            return f"./{written}" if written.startswith("~") else written
    return path.as_posix() if path.is_absolute() else Path(os.path.relpath(path, folder)).as_posix()


def portable_init(init: str, folder: Path) -> str:
    """A network's `init` as it is written: a file like any path, a word as it is."""
    if not _is_file(init, Path()):
        return init
    written = portable(Path(init), folder)
    return written if _is_file(written, folder) else f"./{written}"
