"""Owns the pattern language for files of a dataset, and the walk that finds them.

`{split}` stands for a split's folder, `{path}` matches across folders, any other `{name}` within one part of a path,
and a final `.*` any usual image extension: `leftImg8bit/{split}/{city}/{frame}_leftImg8bit.png`, `images/{path}.*`.
"""

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath

from calseg_cli.errors import DataError

SUFFIXES = ("png", "jpg", "jpeg", "webp", "bmp", "tif", "tiff", "ppm")
_FIELD = re.compile(r"\{([^{}]*)\}")
_ANY_SUFFIX = rf"\.(?i:{'|'.join(SUFFIXES)})"


def pattern_fields(pattern: str) -> tuple[str, ...]:
    """The names a pattern captures, in their order, without `split`.

    >>> pattern_fields("gtFine/{split}/{city}/{frame}_gtFine_labelIds.png")
    ('city', 'frame')
    """
    return tuple(dict.fromkeys(name for name in _FIELD.findall(pattern) if name != "split"))


def pattern_fault(pattern: str) -> str | None:
    """What is wrong with a pattern, to be read after its text; None when it can be used."""
    literal = _FIELD.sub("", pattern.removesuffix(".*"))
    named = [name for name in _FIELD.findall(pattern) if not name.isidentifier()]
    faults = {
        "has a brace without its partner": "{" in literal or "}" in literal,
        f"has the field {{{named[0] if named else ''}}}, which is not a name": bool(named),
        "has a *: write {path} or a {name} instead (.* may only stand at the end)": "*" in literal,
        "captures nothing: write {path} or a {name} where image names differ": not pattern_fields(pattern),
        "must be relative to root": PurePosixPath(pattern).is_absolute() or ":" in literal,
        "may not leave root through ..": ".." in PurePosixPath(pattern).parts,
        "has a backslash: write / on every system": "\\" in literal,
    }
    return next((fault for fault, holds in faults.items() if holds), None)


def has_split(pattern: str) -> bool:
    """True where a pattern names `{split}`."""
    return "{split}" in pattern


def find_files(root: Path, pattern: str, split: str | None) -> Iterator[tuple[Mapping[str, str], Path]]:
    """The captured fields and the path of every file that matches, in no particular order.

    No folder is listed that no match can lie in; names that begin with a dot are left out. Raises DataError when the
    pattern's fixed beginning is not a folder.
    """
    folder, parts = fixed_folder(root, pattern, split)
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder", _what_is_there(folder, root))
    whole = re.compile("/".join(_named_parts(parts)))
    for relative in _walk(folder, parts, ""):
        match = whole.fullmatch(relative)
        if match is not None:
            yield match.groupdict(), folder / relative


def fixed_folder(root: Path, pattern: str, split: str | None) -> tuple[Path, list[str]]:
    """The folder that all matches lie below, and the rest of the pattern part by part."""
    filled = pattern.replace("{split}", split or "")
    parts = [part for part in filled.split("/") if part not in ("", ".")]
    folder = root
    while len(parts) > 1 and "{" not in parts[0]:
        folder /= parts.pop(0)
    return folder, parts


def _named_parts(parts: list[str]) -> list[str]:
    seen: set[str] = set()
    return [_expression(part, seen) for part in parts]


def _expression(part: str, seen: set[str] | None) -> str:
    """A part as a regular expression; a field met before must repeat its value. Without `seen` nothing is captured."""
    body = part.removesuffix(".*")
    pieces = _FIELD.split(body)  # literal, name, literal, name, ..., literal
    text = re.escape(pieces[0])
    for name, literal in zip(pieces[1::2], pieces[2::2], strict=True):
        text += _group(name, seen) + re.escape(literal)
    return text + (_ANY_SUFFIX if body != part else "")


def _group(name: str, seen: set[str] | None) -> str:
    inner = ".+" if name == "path" else "[^/]+"
    if seen is None:
        return inner
    if name in seen:
        return f"(?P={name})"
    seen.add(name)
    return f"(?P<{name}>{inner})"


def _walk(folder: Path, parts: list[str], prefix: str) -> Iterator[str]:
    """Paths below `folder`, with slashes, that can still match `parts`."""
    part = parts[0]
    if "{path}" in part:
        yield from _everything(folder, prefix, (folder.resolve(),))
    elif len(parts) == 1:
        yield from (prefix + entry.name for entry in _entries(folder) if not entry.is_dir())
    elif "{" not in part:
        if (folder / part).is_dir():
            yield from _walk(folder / part, parts[1:], f"{prefix}{part}/")
    else:
        name = re.compile(_expression(part, None))
        for entry in _entries(folder):
            if name.fullmatch(entry.name) and entry.is_dir():
                yield from _walk(Path(entry.path), parts[1:], f"{prefix}{entry.name}/")


def _everything(folder: Path, prefix: str, above: tuple[Path, ...]) -> Iterator[str]:
    for entry in _entries(folder):
        if not entry.is_dir():
            yield prefix + entry.name
        elif (inner := Path(entry.path).resolve()) not in above:  # a link to a folder above would never end
            yield from _everything(Path(entry.path), f"{prefix}{entry.name}/", (*above, inner))


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return [entry for entry in entries if not entry.name.startswith(".")]
    except PermissionError as error:
        raise DataError(f"{folder} cannot be listed: permission denied", "check the folder's rights") from error


def _what_is_there(folder: Path, root: Path) -> str:
    """A hint: the nearest folder above that exists, and which folders it holds."""
    if not root.is_dir():
        return "check the dataset's root"
    there = next(above for above in folder.parents if above.is_dir())
    names = sorted(entry.name for entry in _entries(there) if entry.is_dir())
    shown = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
    return f"{there} holds {f'the folders {shown}' if names else 'no folder'}; check root, images, labels and splits"
