"""Owns the table of all keys, made from the schema: what each is, and which one a misspelt key was meant to be."""

import types
from collections.abc import Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic_core import PydanticUndefined

from calseg_cli.config.schema import Config
from calseg_cli.config.section import Section
from calseg_cli.config.yaml_text import Key


@dataclass(frozen=True)
class KeyInfo:
    """One key of the configuration: its dotted name, its default (None where there is none) and what it does.

    `kinds` are the plain types of its value; `section` is the model of a key that holds a section.
    """

    name: str
    description: str
    default: Any
    required: bool
    kinds: frozenset[type]
    section: type[Section] | None

    @property
    def is_text(self) -> bool:
        """Whether the value is text or a path, so that it needs no reading as YAML."""
        return bool(self.kinds) and self.kinds <= {str, Path, types.NoneType} and self.kinds != {types.NoneType}

    @property
    def is_optional(self) -> bool:
        """Whether null is a value."""
        return types.NoneType in self.kinds

    @property
    def holds_more(self) -> bool:
        """Whether the value is a list or a table, whose parts can be named below the key."""
        return bool(self.kinds & {dict, tuple, list})


@cache
def known_keys() -> dict[Key, KeyInfo]:
    """All keys, sections before what they hold, in the order of the schema."""
    return dict(_walk(Config, ()))


def explain() -> tuple[KeyInfo, ...]:
    """All keys with their descriptions, for documents and templates."""
    return tuple(known_keys().values())


def _walk(model: type[Section], above: Key) -> Iterator[tuple[Key, KeyInfo]]:
    for name, field in model.model_fields.items():
        kinds = frozenset(_kinds(field.annotation))
        inner = next((kind for kind in kinds if issubclass(kind, Section)), None)
        key = (*above, name)
        default = field.get_default(call_default_factory=True)
        default = None if default is PydanticUndefined else default
        yield key, KeyInfo(".".join(key), field.description or "", default, field.is_required(), kinds, inner)
        if inner is not None:
            yield from _walk(inner, key)


def _kinds(annotation: Any) -> Iterator[type]:
    origin = get_origin(annotation)
    if origin is Annotated:
        yield from _kinds(get_args(annotation)[0])
    elif origin in (Union, types.UnionType):
        for part in get_args(annotation):
            yield from _kinds(part)
    elif origin is not None and not isinstance(origin, type):  # Literal
        yield from {type(value) for value in get_args(annotation)}
    else:
        yield origin or annotation


def find_key(key: Key) -> KeyInfo | None:
    """What `key` is, or the list or table that it names a part of; None where it is neither."""
    keys = known_keys()
    for length in range(len(key), 0, -1):
        info = keys.get(key[:length])
        if info is not None:
            return info if length == len(key) or info.holds_more else None
    return None


def unknown_key(key: Key) -> str:
    """What to say of a key that does not exist, with the key that was probably meant.

    >>> unknown_key(("pretrain", "stepz"))
    'pretrain.stepz is not a known key; did you mean pretrain.steps?'
    """
    told = f"{'.'.join(key)} is not a known key"
    meant = _nearest(key)
    if meant is not None:
        return f"{told}; did you mean {meant}?"
    siblings = _below(_existing(key[:-1]))
    return f"{told}; known here: {', '.join(siblings)}" if siblings else told


def _nearest(key: Key) -> str | None:
    keys = known_keys()
    for depth, part in enumerate(key):  # the first part that is wrong, compared with those beside it
        if key[: depth + 1] not in keys:
            found = get_close_matches(part.lower(), _below(key[:depth]), n=1, cutoff=0.6)
            if found:
                repaired = (*key[:depth], found[0], *key[depth + 1 :])
                return ".".join(repaired if find_key(repaired) else repaired[: depth + 1])
            break
    elsewhere = [other for other in keys if other[-1] == key[-1].lower()]
    if not elsewhere:
        words = get_close_matches(key[-1].lower(), {other[-1] for other in keys}, n=1, cutoff=0.8)
        elsewhere = [other for other in keys if words and other[-1] == words[0]]
    shortest = min(elsewhere, key=lambda other: len(other), default=())
    return ".".join(shortest) or None


def _existing(key: Key) -> Key:
    while key and key not in known_keys():
        key = key[:-1]
    return key


def _below(section: Key) -> list[str]:
    return [key[-1] for key in known_keys() if key[:-1] == section]
