"""Owns the terminal: progress and hints on stderr, results on stdout."""

import sys
import time
from typing import Any

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text
from tqdm import tqdm

from calseg_cli.commands._session import forget_stdout

_EVERY_SECONDS = 20.0


class _Results(Console):
    """A console that goes on when its reader has gone: the exit code is still to come."""

    def on_broken_pipe(self) -> None:
        self.quiet = True
        forget_stdout()


def stdout_console(*, no_color: bool = False) -> Console:
    """Where results go. NO_COLOR, TERM=dumb and pipes are honoured; a pipe gets the width a table needs."""
    width = None if sys.stdout.isatty() else 200
    return _Results(no_color=no_color or None, width=width, highlight=False, soft_wrap=False)


class TerminalProgress:
    """A bar where stderr is a terminal; otherwise a line at most every twenty seconds, so that logs stay short."""

    def __init__(self, *, quiet: bool = False) -> None:
        self._quiet = quiet
        self._live = sys.stderr.isatty() and not quiet
        self._bars: list[_Piece] = []

    def start(self, title: str, total: int, *, done: int = 0) -> None:
        """A piece of work begins; it may stand inside another."""
        self._bars.append(_Piece(title, total, done, live=self._live, quiet=self._quiet, depth=len(self._bars)))

    def advance(self, units: int = 1, **facts: float) -> None:
        """Some of the innermost piece is done."""
        if self._bars:
            self._bars[-1].advance(units, facts)

    def finish(self) -> None:
        """The innermost piece has ended."""
        if self._bars:
            self._bars.pop().close()

    def close(self) -> None:
        """Nothing more will come, whatever is still open."""
        while self._bars:
            self._bars.pop().close()

    def note(self, text: str) -> None:
        """A line worth reading."""
        if self._quiet:
            return
        if self._live:
            tqdm.write(text, file=sys.stderr)
        else:
            sys.stderr.write(f"{text}\n")


class _Piece:
    def __init__(self, title: str, total: int, done: int, *, live: bool, quiet: bool, depth: int) -> None:
        self._title, self._total, self._done, self._quiet = title, total, done, quiet
        self._begun = self._told = time.monotonic()
        self._facts: dict[str, float] = {}
        self._bar: Any = (
            tqdm(
                total=total,
                initial=done,
                desc=title,
                leave=depth == 0,
                position=depth,
                file=sys.stderr,
                dynamic_ncols=True,
                smoothing=0.1,
            )
            if live
            else None
        )

    def advance(self, units: int, facts: dict[str, float]) -> None:
        self._done += units
        self._facts |= facts
        if self._bar is not None:
            if facts:
                self._bar.set_postfix({name: f"{value:.4g}" for name, value in facts.items()}, refresh=False)
            self._bar.update(units)
        elif time.monotonic() - self._told > _EVERY_SECONDS:
            self._tell()

    def _tell(self) -> None:
        self._told = time.monotonic()
        if self._quiet:
            return
        facts = "".join(f", {name} {value:.4g}" for name, value in self._facts.items())
        sys.stderr.write(f"{self._title}: {self._done}/{self._total}{facts} ({self._told - self._begun:.0f} s)\n")

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
        elif self._told > self._begun:
            self._tell()


def show_table(console: Console, title: str, headers: list[str], rows: list[list[str]]) -> None:
    """Print a title and a table: the first column is text, the others right-aligned numbers; nothing is cut off."""
    if title:
        console.print(title, style="bold", markup=False, soft_wrap=True)
    drawn = Table(box=None, pad_edge=False)
    for number, header in enumerate(headers):
        drawn.add_column(header, justify="left" if number == 0 else "right", overflow="fold", no_wrap=number > 0)
    for row in rows:
        drawn.add_row(*(Text(cell) for cell in row))
    # A terminal that is too narrow wraps whole lines; rich would drop columns and digits without a sign.
    console.width = max(console.width, Measurement.get(console, console.options.update(width=10_000), drawn).maximum)
    console.print(drawn)
