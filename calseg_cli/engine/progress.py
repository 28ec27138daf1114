"""Owns how long work tells of itself; who listens decides what a person sees."""

from typing import Protocol


class Progress(Protocol):
    """A listener. The terminal's is in commands; `Silent` is for tests and libraries."""

    def start(self, title: str, total: int, *, done: int = 0) -> None:
        """A piece of work of `total` units begins; `done` of them were done before."""

    def advance(self, units: int = 1, **facts: float) -> None:
        """Some units are done; `facts` are numbers worth showing, such as the loss."""

    def finish(self) -> None:
        """The piece of work has ended."""

    def note(self, text: str) -> None:
        """A line worth reading."""


class Silent:
    """Listens and says nothing."""

    def start(self, title: str, total: int, *, done: int = 0) -> None:
        """Ignore it."""

    def advance(self, units: int = 1, **facts: float) -> None:
        """Ignore it."""

    def finish(self) -> None:
        """Ignore it."""

    def note(self, text: str) -> None:
        """Ignore it."""
