"""Owns whether a result is what would be made now: its recipe compared key by key with today's."""

from collections.abc import Mapping
from typing import Any

Recipe = Mapping[str, Any]


def changes(before: Recipe, now: Recipe) -> list[str]:
    """What differs between two recipes, one phrase each: "options.flip was false, is true"."""
    old, new = dict(_leaves(before)), dict(_leaves(now))
    return [
        f"{key} was {_short(old.get(key))}, is {_short(new.get(key))}"
        for key in sorted({*old, *new})
        if old.get(key) != new.get(key)
    ]


def _leaves(table: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    leaves: list[tuple[str, Any]] = []
    for key, value in table.items():
        if isinstance(value, Mapping):
            leaves += _leaves(value, f"{prefix}{key}.")
        else:
            leaves.append((f"{prefix}{key}", list(value) if isinstance(value, tuple) else value))
    return leaves


def _short(value: Any) -> str:
    """A digest needs no more than its first letters to be told from another."""
    if isinstance(value, str) and value.startswith("sha256:"):
        return value[:19]
    words = {None: "absent", True: "true", False: "false"}
    return words[value] if value is None or isinstance(value, bool) else str(value)
