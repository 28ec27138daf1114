"""Owns the values while they are gathered: a tree that later sources write over, and the place of every value."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any

from calseg_cli.config.keys import find_key, known_keys, unknown_key
from calseg_cli.config.yaml_text import Key


class Rank(IntEnum):
    """The sources of a value; a later one wins."""

    FILE = 0
    ENVIRONMENT = 1
    SET = 2
    FLAG = 3


@dataclass(frozen=True)
class Place:
    """Where a value was given: how to say it, and the folder that a relative path there is relative to.

    `dropped` counts the leading parts of a key that its place does not spell out, as in a layout's own file.
    """

    source: str
    rank: Rank
    folder: Path
    line: int | None = None
    dropped: int = 0

    def __str__(self) -> str:
        return self.source if self.line is None else f"{self.source}:{self.line}"


@dataclass(frozen=True)
class Complaint:
    """A mistake and its place."""

    place: Place
    text: str

    def __str__(self) -> str:
        """One line, whatever characters the user's words hold."""
        line = f"{self.place}: {self.text}"
        return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in line)


class Draft:
    """The tree of given values; `places` knows where each was given, sections and parts of lists too."""

    def __init__(self, values: dict[Any, Any], places: dict[Key, Place], top: Place) -> None:
        self.values, self.places, self.top = values, places, top
        self.complaints: list[Complaint] = []

    def assign(self, key: Key, value: Any, place: Place) -> None:
        """Write one value over what was there; a table for a section is taken key by key. Complains, never raises."""
        info = find_key(key)
        if info is None:
            self.complaints.append(Complaint(place, unknown_key(key)))
        elif info.section is not None and isinstance(value, Mapping):
            for name, inner in value.items():
                self.assign((*key, str(name)), inner, place)
        else:
            try:
                self._write(key, value)
            except (LookupError, ValueError) as error:
                self.complaints.append(Complaint(place, f"{'.'.join(key)}: {error.args[0]}"))
                return
            self._forget(key)
            self.places.update({(*key, *inner): place for inner in parts(value)})

    def _write(self, key: Key, value: Any) -> None:
        holder: Any = self.values
        for depth in range(len(key) - 1):
            holder = _step_into(holder, key, depth)
        if isinstance(holder, list):
            index = _index(holder, key)
            holder[index : index + 1] = [value]
        else:
            holder[_same_key(holder, key[-1])] = value

    def _forget(self, key: Key) -> None:
        for other in [other for other in self.places if other[: len(key)] == key]:
            del self.places[other]

    def place_of(self, key: Key) -> Place:
        """Where `key` was given, or else the section around it."""
        for length in range(len(key), 0, -1):
            if key[:length] in self.places:
                return self.places[key[:length]]
        return self.top

    def source_of(self, key: Key) -> str:
        """The place of a leaf in words, "default" where it was not given; for a list, the last that touched it."""
        found = [place for other, place in self.places.items() if other[: len(key)] == key]
        return str(max(found, key=lambda place: place.rank)) if found else "default"


def parts(value: Any, above: Key = ()) -> Iterator[Key]:
    """The keys of a value and of everything inside it, the value itself first, as ()."""
    yield above
    items = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list | tuple) else ()
    for name, inner in items:
        yield from parts(inner, (*above, str(name)))


def _step_into(holder: Any, key: Key, depth: int) -> Any:
    """The table or list below `holder` at `key[depth]`, made where it is missing."""
    if isinstance(holder, list):
        inner = holder[_index(holder, key[: depth + 1])]
        if not isinstance(inner, dict | list):
            raise ValueError(f"{'.'.join(key[: depth + 1])} is neither a table nor a list")
        return inner
    name = _same_key(holder, key[depth])
    if holder.get(name) is None:
        holder[name] = _default(key[: depth + 1])
    elif isinstance(holder[name], tuple):
        holder[name] = list(holder[name])
    if not isinstance(holder[name], dict | list):
        raise ValueError(f"{'.'.join(key[: depth + 1])} is neither a table nor a list")
    return holder[name]


def _default(key: Key) -> Any:
    info = known_keys().get(key)
    if info is None or info.section is not None or dict in info.kinds:
        return {}
    return list(info.default or ()) if not isinstance(info.default, str) else []


def _index(holder: list[Any], key: Key) -> int:
    if not key[-1].isdecimal() or int(key[-1]) > len(holder):
        raise LookupError(f"{'.'.join(key[:-1])} is a list of {len(holder)}; its parts are counted from 0")
    return int(key[-1])


def _same_key(table: Mapping[Any, Any], name: str) -> Any:
    """The key that the table has for `name` (7 and "7" are the same), or `name`."""
    return next((key for key in table if str(key) == name), name)
