"""Owns the reading of a YAML file of keys: every way it can be unreadable becomes a complaint with its line."""

from pathlib import Path
from typing import Any

from calseg_cli.config.draft import Complaint, Place, Rank
from calseg_cli.config.yaml_text import Key, YamlMistake, parse_yaml
from calseg_cli.errors import ConfigError

LARGEST = 4_000_000


def read_keys(path: Path, *, below: Key = ()) -> tuple[dict[Any, Any], dict[Key, Place], list[Complaint]]:
    """A file's table, the place of each of its keys, and complaints that leave the rest readable.

    With `below`, the places are those of keys that belong under it. Raises ConfigError for a file that cannot be read.
    """
    parsed = _parse(path, _read_text(path))
    if parsed.value is None:
        return {}, {}, []
    if not isinstance(parsed.value, dict):
        kind = "a list" if isinstance(parsed.value, list) else "a single value"
        raise ConfigError(f"{path}: it holds {kind}, not keys", "write KEY: VALUE lines, such as `name: run`")

    def place(line: int) -> Place:
        return Place(str(path), Rank.FILE, path.parent, line, dropped=len(below))

    places = {(*below, *key): place(line) for key, line in parsed.lines.items()}
    return parsed.value, places, [Complaint(place(line), text) for line, text in parsed.complaints]


def _parse(path: Path, text: str) -> Any:
    try:
        return parse_yaml(text)
    except YamlMistake as mistake:
        column = f":{mistake.column}" if mistake.column else ""
        raise ConfigError(f"{path}:{mistake.line}{column}: {mistake.message}", mistake.hint) from None


def _read_text(path: Path) -> str:
    try:
        if path.is_dir():
            raise ConfigError(f"{path} is a folder, not a file", f"name the file, such as {path / 'calseg.yaml'}")
        data = path.read_bytes()
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file", "check the path") from None
    except (OSError, ValueError) as error:
        told = getattr(error, "strerror", None) or str(error)
        raise ConfigError(f"{path} cannot be read: {told}", "check the path and its permissions") from error
    if len(data) > LARGEST:
        raise ConfigError(f"{path} has {len(data)} bytes: that is no configuration", "check the path")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{path}:{line}: it is not UTF-8 text", "save it as UTF-8 in your editor") from None
