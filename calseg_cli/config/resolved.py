"""Owns the resolved configuration: its values, where each came from, its digest and its text."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from calseg_cli.config.paths import portable, portable_init
from calseg_cli.config.schema import Config, Network
from calseg_cli.config.yaml_text import Key, flow_yaml

_NOT_THE_RESULT = ("runs", "device", "workers", "tensorboard")
_COMMENT_COLUMN = 40


@dataclass(frozen=True)
class Resolved:
    """A configuration after all its sources are heard.

    `sources` maps each dotted key to where its value came from: "default", "calseg.yaml:12", "CALSEG_PRETRAIN__STEPS",
    "--set" or an option's name. `folder` is the configuration file's; paths in `config` are ready to open.
    """

    config: Config
    sources: dict[str, str]
    path: Path | None
    folder: Path

    def to_dict(self) -> dict[str, Any]:
        """The configuration as plain JSON values, paths relative to `folder` where they can be."""
        plain: dict[str, Any] = plain_values(self.config, self.folder)
        return plain

    @cached_property
    def digest(self) -> str:
        """SHA-256 of all that can change a result: the same wherever calseg is started from."""
        values = {name: value for name, value in self.to_dict().items() if name not in _NOT_THE_RESULT}
        text = json.dumps(values, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()

    def dump_yaml(self, *, with_sources: bool) -> str:
        """The configuration as YAML that loads to the same from `folder`, on wish with the source of each value."""
        lines: list[str] = []
        _write(lines, self.to_dict(), (), self.sources if with_sources else None)
        return "\n".join(lines) + "\n"


def plain_values(value: Any, folder: Path) -> Any:
    """A configuration's value as JSON has it: paths as written beside the file, colours as "#rrggbb"."""
    if isinstance(value, Network):
        value = value.model_copy(update={"init": portable_init(value.init, folder)})
    if isinstance(value, BaseModel):
        return {name: plain_values(getattr(value, name), folder) for name in type(value).model_fields}
    if isinstance(value, Path):
        return portable(value, folder)
    if isinstance(value, Mapping):
        return {str(name): plain_values(inner, folder) for name, inner in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):  # Color
        return str(value)
    if isinstance(value, list | tuple):
        return [plain_values(item, folder) for item in value]
    return value


def leaf_keys(values: Mapping[str, Any], above: Key = ()) -> list[Key]:
    """The keys of all values that are not tables with something in them; lists count as one value."""
    found: list[Key] = []
    for name, value in values.items():
        key = (*above, name)
        found += leaf_keys(value, key) if isinstance(value, Mapping) and value else [key]
    return found


def _write(lines: list[str], values: Mapping[str, Any], above: Key, sources: Mapping[str, str] | None) -> None:
    indent = "  " * len(above)
    for name, value in values.items():
        key = (*above, name)
        if isinstance(value, Mapping) and value:
            lines.append(f"{indent}{flow_yaml(name)}:")
            _write(lines, value, key, sources)
        else:
            shown = int(name) if above[1:] == ("ids",) else name
            text = f"{indent}{flow_yaml(shown)}: {flow_yaml(value)}"
            comment = f"  # {sources['.'.join(key)]}" if sources is not None else ""
            lines.append(f"{text:<{_COMMENT_COLUMN}}{comment}" if comment else text)
