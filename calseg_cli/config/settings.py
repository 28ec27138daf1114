"""Owns what is said outside the file: CALSEG_* variables, --set, named options."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from calseg_cli.config.draft import Complaint, Draft, Place, Rank
from calseg_cli.config.keys import find_key, known_keys
from calseg_cli.config.yaml_text import Key, YamlMistake, parse_yaml

PREFIX = "CALSEG_"
RESERVED = frozenset({"CALSEG_DATA", "CALSEG_CONFIG", "CALSEG_DEBUG"})


def apply_environment(draft: Draft, environ: Mapping[str, str]) -> None:
    """Write CALSEG_SECTION__KEY=VALUE over the draft; an empty variable counts as not set."""
    for name in sorted(environ):
        if name.startswith(PREFIX) and name not in RESERVED and environ[name] != "":
            key = tuple(name.removeprefix(PREFIX).lower().split("__"))
            _apply_text(draft, key, environ[name], Place(name, Rank.ENVIRONMENT, Path()))


def apply_sets(draft: Draft, sets: Sequence[str]) -> None:
    """Write each KEY=VALUE over the draft, the last one of a key winning."""
    place = Place("--set", Rank.SET, Path())
    for text in sets:
        name, equals, value = text.partition("=")
        if not equals or not name.strip():
            draft.complaints.append(Complaint(place, f"{text!r} is not KEY=VALUE, such as pretrain.lr=1e-4"))
        else:
            _apply_text(draft, tuple(name.strip().split(".")), value, place)


def apply_flags(draft: Draft, flags: Mapping[str, Any]) -> None:
    """Write named options, by key, over the draft; None is an option that was not given."""
    for name, value in flags.items():
        if value is not None:
            key = tuple(name.split("."))
            draft.assign(key, _plain(value), Place(option_name(key), Rank.FLAG, Path()))


def option_name(key: Key) -> str:
    """The option that stands for a key: its last part, or the section whose choice it is.

    >>> option_name(("pretrain", "batch_size")), option_name(("network", "name"))
    ('--batch-size', '--network')
    """
    word = key[-2] if len(key) > 1 and key[-1] == "name" else key[-1]
    return "--" + word.replace("_", "-")


def _apply_text(draft: Draft, key: Key, text: str, place: Place) -> None:
    try:
        value = _read(key, text.strip())
    except YamlMistake as mistake:
        told = f"{'.'.join(key)}: {text!r} cannot be read: {mistake.message}"
        draft.complaints.append(Complaint(place, told))
        return
    draft.assign(key, value, place)


def _read(key: Key, text: str) -> Any:
    """The value meant by a text: as it stands for a key that holds text, else read as YAML."""
    info = known_keys().get(key) or find_key(key)
    if info is not None and info.is_text:
        if info.is_optional and text in ("null", "~"):
            return None
        if text[:1] not in ("'", '"'):
            return text
    parsed = parse_yaml(text)
    if parsed.complaints:
        raise YamlMistake(1, None, parsed.complaints[0][1])
    return parsed.value


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
