"""Owns what every command does alike: load the configuration, tell progress, print the result, name the next step."""

import inspect
import json
import logging
import os
import shlex
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from calseg_cli.commands._options import AsJson, ConfigFile, Debug, NoColor, Quiet, Sets
from calseg_cli.errors import disk_errors
from calseg_cli.stages.torchrun import ends, is_first, role_of, told

__all__ = ["Session", "ends", "forget_stdout", "is_first", "plain", "told", "with_session"]

if TYPE_CHECKING:
    from rich.console import Console

    from calseg_cli.commands._terminal import TerminalProgress
    from calseg_cli.config import Resolved

_STDOUT = Path("standard output")
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
    """The common options of one command line, and what is done with them.

    A `silent` one, of a process beside the main one under torchrun, prints no result and no progress.
    """

    config: Path | None = None
    sets: list[str] | None = field(default_factory=list)
    as_json: bool = False
    quiet: bool = False
    no_color: bool = False
    debug: bool = False
    silent: bool = False
    _progress: "TerminalProgress | None" = None
    _name: str | None = None

    def load(self, flags: Mapping[str, Any] | None = None) -> "Resolved":
        """The resolved configuration; `flags` are named options by their key, None where not given."""
        from calseg_cli.config import load_config

        self._name = (flags or {}).get("name")
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
            self.write(json.dumps(plain(document), ensure_ascii=False, indent=2) + "\n")
        elif show is not None and not self.silent:
            from calseg_cli.commands._terminal import stdout_console

            with disk_errors(_STDOUT):
                show(stdout_console(no_color=self.no_color))
                sys.stdout.flush()

    def path(self, document: Mapping[str, Any], path: Path) -> None:
        """Print a result that is a file: its path alone, so that a shell can catch it, or the JSON document."""
        if self.as_json:
            self.result(document)
        else:
            self.write(f"{path}\n")

    def write(self, text: str) -> None:
        """Write text to stdout as it is; a reader that has gone, as `head` does, is no error."""
        if self.silent:
            return
        try:
            with disk_errors(_STDOUT):
                sys.stdout.write(text)
                sys.stdout.flush()
        except BrokenPipeError:
            forget_stdout()

    def next(self, command: str) -> None:
        """Name the step that usually follows, on stderr."""
        if not self.quiet and not self.as_json:
            sys.stderr.write(f"next: {command}{self._same_run()}\n")

    def _same_run(self) -> str:
        """The options without which the next command would speak of another run."""
        words = ["-c", str(self.config)] if self.config else []
        words += ["--name", self._name] if self._name else []
        words += [word for setting in self.sets or [] for word in ("--set", setting)]
        return "".join(f" {shlex.quote(word)}" for word in words)


def forget_stdout() -> None:
    """Nobody reads any more: let what is still written vanish, and keep the exit code."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def with_session(function: Callable[..., None], *, configured: bool = True) -> Callable[..., None]:
    """Add the common options to a command whose first parameter is the session.

    A command that reads no configuration is not `configured` and has no -c and --set, which it would ignore.
    """
    signature = inspect.signature(function, eval_str=True)
    own = list(signature.parameters.values())[1:]
    shared = {name: option for name, option in _COMMON.items() if configured or name not in ("config", "sets")}

    def command(**options: Any) -> None:
        common = {name: options.pop(name) for name in shared}
        silent = role_of(function.__name__) == "silent"
        common["quiet"] = common["quiet"] or silent
        logging.basicConfig(
            level=logging.ERROR if common["quiet"] else logging.WARNING, format="%(levelname)s: %(message)s"
        )
        function(Session(**common, silent=silent), **options)

    added = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
        for name, (annotation, default) in shared.items()
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
