"""Owns what the lists and tables of an artifact may say before calseg believes them; a stranger wrote them."""

import json
from collections.abc import Collection, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calseg_cli.artifacts.digests import item_digest
from calseg_cli.artifacts.kinds import FORMAT, IGNORED_CLASS, LARGEST_SIDE, MOST_CLASSES, SCHEMA, Kind, find_kind
from calseg_cli.artifacts.policy import LONGEST_ROW, RefusedError
from calseg_cli.errors import ArtifactError

Column = NDArray[Any]
_DEEPEST = 32  # tables in tables; deeper ones send whoever walks through them over Python's limit
_ROOT = ("kind", "kind_version", "items", "content_digest", "created_utc", "calseg_version")
_GEOMETRY = {  # a column of the list: its values an image, the least and the largest
    "in_hw": (2, 1, LARGEST_SIDE),
    "out_hw": (2, 1, LARGEST_SIDE),
    "pad": (2, 0, LARGEST_SIDE),
    "stride": (1, 1, LARGEST_SIDE),
    "align_corners": (1, 0, 1),
}


def check_root(path: Path, attrs: Mapping[str, Any]) -> Kind:
    """The kind that the attributes of a file's root name, after the quick check of the others.

    Raises ArtifactError: another program's file, a newer format or kind, an unfinished file.
    """
    if attrs.get("format") != FORMAT:
        raise ArtifactError(f"{path} is an HDF5 file, but no calseg artifact", "name a file that calseg wrote")
    major = int(str(attrs.get("schema", "0")).split(".")[0])
    if major > SCHEMA[0]:
        raise ArtifactError(f"{path} has format {major} of a newer calseg", "upgrade calseg")
    if not attrs.get("complete"):
        raise ArtifactError(f"{path} is unfinished: its writer was stopped", "run the stage with --resume")
    lacking = [name for name in _ROOT if name not in attrs]
    if lacking:
        raise ArtifactError(f"{path} is damaged: its root lacks {lacking[0]}", "write it again")
    try:
        kind = find_kind(str(attrs.get("kind"))[:50])
    except ArtifactError as error:
        raise ArtifactError(f"{path}: {error.message}", error.hint) from error
    if int(attrs["kind_version"]) > kind.version:
        raise ArtifactError(f"{path} holds {kind.name} as a newer calseg writes them", "upgrade calseg")
    return kind


def json_table(text: str, place: str) -> dict[str, Any]:
    """A JSON table with finite numbers, text that is UTF-8, and not too deep. Raises RefusedError."""
    try:
        table = json.loads(text, parse_constant=_no_number, parse_float=_finite)
        _check_value(table, place, 0)
    except RecursionError as error:
        raise RefusedError(f"{place} is damaged: its tables are nested too deep") from error
    except RefusedError:
        raise
    except ValueError as error:
        raise RefusedError(f"{place} is damaged: it is no JSON ({error})") from error
    if not isinstance(table, dict):
        raise RefusedError(f"{place} is damaged: it is no table")
    return table


def _no_number(word: str) -> float:
    raise ValueError(f"{word} is no number")


def _finite(text: str) -> float:
    value = float(text)
    if value - value != 0:
        raise ValueError(f"{text} is too large a number")
    return value


def _check_value(value: Any, place: str, depth: int) -> None:
    if depth > _DEEPEST:
        raise RefusedError(f"{place} is damaged: its tables are nested too deep")
    if isinstance(value, str) and not value.isascii():
        value.encode()  # JSON can spell halves of characters, which no file and no terminal takes
    elif isinstance(value, list):
        for inner in value:
            _check_value(inner, place, depth + 1)
    elif isinstance(value, dict):
        for key, inner in value.items():
            _check_value(key, place, depth)
            _check_value(inner, place, depth + 1)


def check_tables(tables: Mapping[str, Any], *, items: bool) -> None:
    """Whether there is a class list wherever there are items, and it is one. Raises RefusedError."""
    classes = tables.get("classes")
    if classes is None:
        if items:
            raise RefusedError("it has no class list")
    elif not _is_class_table(classes):
        raise RefusedError("its class list cannot be read")


def _is_class_table(table: Mapping[str, Any]) -> bool:
    names, palette, ignore = table.get("names"), table.get("palette"), table.get("ignore", IGNORED_CLASS)
    return (
        isinstance(names, list)
        and isinstance(palette, list)
        and len(names) == len(palette) <= MOST_CLASSES
        and all(isinstance(name, str) and name.isprintable() for name in names)
        and all(isinstance(color, list) and len(color) == 3 and all(map(_is_byte, color)) for color in palette)
        and isinstance(ignore, int)
        and -(2**31) <= ignore < 2**31
    )


def _is_byte(value: Any) -> bool:
    return isinstance(value, int) and 0 <= value <= 255


def check_list(columns: Mapping[str, Column], kind: Kind, places: Collection[str]) -> None:
    """Whether the list of items is whole and says nothing absurd; `places` are the names in /items.

    Raises RefusedError: a column missing, of another length or type; an id twice or leading out of a folder; a place
    without an item; a size that no image has.
    """
    if not places and not columns:
        return
    wanted = {"id", "position", "digest", *(_GEOMETRY if kind.has_geometry else ())}
    if wanted - set(columns):
        raise RefusedError(f"its list lacks {', '.join(sorted(wanted - set(columns)))}")
    wrong = [name for name, column in columns.items() if not column.ndim or len(column) != len(places)]
    if wrong:
        raise RefusedError(f"its list and its items do not fit: {wrong[0]} is not one value for each of {len(places)}")
    for name in ("id", "digest", "image_digest"):
        if name in columns and (columns[name].dtype.kind != "U" or columns[name].ndim != 1):
            raise RefusedError(f"{name} in its list is no text")
    for name, (width, least, most) in _GEOMETRY.items() if kind.has_geometry else ():
        _check_range(columns[name], name, width, least, most)
    _check_range(columns["position"], "position", 1, 0, 2**31)
    if {f"{place:06d}" for place in columns["position"].tolist()} != set(places):
        raise RefusedError("its list and its items do not fit: the positions are not those of the items")
    _check_ids(columns["id"].tolist())


def _check_range(column: Column, name: str, width: int, least: int, most: int) -> None:
    shape = (len(column),) if width == 1 else (len(column), width)
    if column.dtype.kind not in "iub" or column.shape != shape or (column.size and not _within(column, least, most)):
        raise RefusedError(f"{name} of an image is not {width} whole number(s) from {least} to {most}")


def _within(column: Column, least: int, most: int) -> bool:
    return int(column.min()) >= least and int(column.max()) <= most


def _check_ids(ids: list[str]) -> None:
    seen: set[str] = set()
    for name in ids:
        if not is_plain_id(name):
            raise RefusedError(f"the id {name[:100]!r} does not name a file below a folder")
        if name in seen:
            raise RefusedError(f"two items have the id {name[:100]!r}")
        seen.add(name)


def check_facts(facts: Mapping[str, Any], listed: Mapping[str, Any], place: str) -> None:
    """Whether what an item says of itself is what its row in the list says. Raises RefusedError."""
    arrays = facts.get("arrays")
    if not isinstance(arrays, dict) or not all(isinstance(digest, str) for digest in arrays.values()):
        raise RefusedError(f"the facts of {place} name no arrays")
    said = {name: value for name, value in facts.items() if name != "arrays"}
    rows = {name: value for name, value in listed.items() if name != "position"}
    if said != rows or item_digest(facts) != listed["digest"]:
        raise RefusedError(f"the facts of {place} are damaged: they are not what was written")


def check_values(values: Column, place: str, classes: int, kind: Kind) -> None:
    """Whether an array of an image speaks of the classes in the list and of no other. Raises RefusedError."""
    if values.ndim == 3 and len(values) != classes:
        raise RefusedError(f"{place} has {len(values)} classes, and its class list {classes}")
    if kind.name == "pseudo_labels" and place.endswith("/label"):
        named = np.where(values == IGNORED_CLASS, 0, values)
        if int(named.max()) >= max(classes, 1):
            raise RefusedError(f"{place} has the class {int(named.max())}, and its class list {classes}")


def is_plain_id(name: str) -> bool:
    """Whether an id can be used as a path below a folder without leaving it, and is text that a file can hold."""
    path = PurePosixPath(name)
    below = bool(path.parts) and not path.is_absolute() and ".." not in path.parts
    return below and "\0" not in name and len(name.encode(errors="replace")) <= LONGEST_ROW and _is_utf8(name)


def _is_utf8(text: str) -> bool:
    """Not so for a file name of other bytes, which Python spells with halves of characters."""
    return text.isascii() or text == text.encode(errors="replace").decode()
