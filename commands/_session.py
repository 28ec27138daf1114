"""Owns what every command does alike: load the configuration, tell progress, print the result, name the next step."""

import inspect
import json
import logging
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from calseg_cli.commands._options import AsJson, ConfigFile, Debug, NoColor, Quiet, Sets

if TYPE_CHECKING:
    from rich.console import Console

    from calseg_cli.commands._terminal import TerminalProgress
    from calseg_cli.config import Resolved

_COMMON: dict[str, tuple[Any, Any]] = {
    "config": (ConfigFile, None),
    "sets": (Sets, None),
    "as_json": (AsJson, False),
    "quiet": (Quiet, False),
    "no_color": (NoColor, False),
    "debug": (Debug, False),
}


@dataclass
class Session:
    """The common options of one command line, and what is done with them."""

    config: Path | None = None
    sets: list[str] | None = field(default_factory=list)
    as_json: bool = False
    quiet: bool = False
    no_color: bool = False
    debug: bool = False
    _progress: "TerminalProgress | None" = None

    def load(self, flags: Mapping[str, Any] | None = None) -> "Resolved":
        """The resolved configuration; `flags` are named options by their key, None where not given."""
        from calseg_cli.config import load_config

        return load_config(self.config, sets=self.sets or [], flags=flags or {})

    @property
    def progress(self) -> "TerminalProgress":
        """The terminal's listener."""
        from calseg_cli.commands._terminal import TerminalProgress

        if self._progress is None:
            self._progress = TerminalProgress(quiet=self.quiet)
        return self._progress

    def result(self, document: Mapping[str, Any], show: "Callable[[Console], None] | None" = None) -> None:
        """Print the result on stdout: the JSON document with --json, else what `show` draws."""
        if self.as_json:
            sys.stdout.write(json.dumps(plain(document), ensure_ascii=False, indent=2) + "\n")
            return
        if show is not None:
            from calseg_cli.commands._terminal import stdout_console

            show(stdout_console(no_color=self.no_color))

    def next(self, command: str) -> None:
        """Name the step that usually follows, on stderr."""
        if not self.quiet and not self.as_json:
            sys.stderr.write(f"next: {command}{self._same_config()}\n")

    def _same_config(self) -> str:
        return f" -c {self.config}" if self.config else ""


def with_session(function: Callable[..., None]) -> Callable[..., None]:
    """Add the common options to a command whose first parameter is the session."""
    signature = inspect.signature(function, eval_str=True)
    own = list(signature.parameters.values())[1:]

    def command(**options: Any) -> None:
        common = {name: options.pop(name) for name in _COMMON}
        logging.basicConfig(
            level=logging.ERROR if common["quiet"] else logging.WARNING, format="%(levelname)s: %(message)s"
        )
        function(Session(**common), **options)

    added = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
        for name, (annotation, default) in _COMMON.items()
        if name not in {parameter.name for parameter in own}
    ]
    parameters = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in own] + added
    command.__signature__ = signature.replace(parameters=parameters, return_annotation=None)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    command.__name__, command.__doc__ = function.__name__, function.__doc__
    return command


def plain(value: Any) -> Any:
    """A value as JSON holds it: NaN and infinities become null, paths text."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return value if value - value == 0 else None
    if value is None or isinstance(value, bool | int | str):
        return value
    return str(value)
