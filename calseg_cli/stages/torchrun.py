"""Owns what commands do under torchrun: which may, who speaks, how an error in one process ends all."""

import signal
import sys
from typing import Literal

from calseg_cli.engine.launch import launched
from calseg_cli.errors import ConfigError, ThresholdError

Role = Literal["own", "main", "silent"]
SHARDS = frozenset({"predict", "pseudo_label"})
"""Commands whose processes write a shard each and never talk: see `stages.sharding`."""
TOGETHER = frozenset({"adapt", "pretrain", "train_valuenet", "evaluate"})
"""Commands whose processes do one work together, which the first of them writes and tells."""


def role_of(command: str) -> Role:
    """What this process is in a command: on its "own", or of several the "main" one or a "silent" one.

    Raises ConfigError where torchrun started several processes of a command that works in one.
    """
    found = launched()
    if found.world == 1 or command in SHARDS:
        return "own"
    if command not in TOGETHER:
        names = ", ".join(name.replace("_", "-") for name in sorted(TOGETHER | SHARDS))
        raise ConfigError(
            f"{command.replace('_', '-')} works in one process, and torchrun started {found.world}",
            f"run it without torchrun; under it work {names}",
        )
    return "main" if found.rank == 0 else "silent"


def is_first() -> bool:
    """Whether this process tells what all would tell alike: that of one, or the first of torchrun's."""
    try:
        return launched().rank == 0
    except ConfigError:  # what is set makes no sense, which is an error to be told later
        return True


def ends(command: str, code: int) -> tuple[bool, int]:
    """Whether this process tells of the error that ends it, and its exit code: under torchrun one speaks for all."""
    if _is_alone(command):
        return True, code
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)  # torchrun ends the others as soon as one is gone; they end already
    try:
        from calseg_cli.engine.words import takes_the_word
    except Exception:  # a signal struck while torch was loading, and it cannot be loaded again: nobody can be asked
        return launched().rank == 0, code
    shows_first = code == ThresholdError.exit_code  # the main one's tables come before the error
    return takes_the_word(code, waits=shows_first and launched().rank > 0)


def told(command: str) -> None:
    """The error stands on stderr: the other processes may end."""
    # Not there where `ends` could ask nobody; to try again to load torch would end the process in torch's C++.
    words = sys.modules.get("calseg_cli.engine.words")
    if words is not None and not _is_alone(command):
        words.has_told()


def _is_alone(command: str) -> bool:
    try:
        return launched().world == 1 or command in SHARDS
    except ConfigError:  # what is set makes no sense, which is the error to tell
        return True
