"""Owns what torchrun tells a process by its environment: which of how many it is. Needs no torch."""

import os
from dataclasses import dataclass

from calseg_cli.errors import ConfigError


@dataclass(frozen=True)
class Launch:
    """Which of `world` processes this one is: `rank` among all, `local_rank` among those of its machine, from 0."""

    rank: int = 0
    world: int = 1
    local_rank: int = 0


def launched() -> Launch:
    """What RANK, WORLD_SIZE and LOCAL_RANK say; one process alone where they are not set.

    Raises ConfigError for what is no rank of that many.
    """
    rank, world = os.environ.get("RANK"), os.environ.get("WORLD_SIZE")
    if not rank or not world or world == "1":
        return Launch()
    local = os.environ.get("LOCAL_RANK") or rank
    if not all(text.isdecimal() for text in (rank, world, local)) or int(rank) >= int(world):
        raise ConfigError(
            f"RANK={rank}, WORLD_SIZE={world}, LOCAL_RANK={local}: no process of so many",
            "torchrun sets them; unset RANK and WORLD_SIZE to work in one process",
        )
    return Launch(int(rank), int(world), int(local))


def refuse_torchrun(what: str) -> None:
    """Raise ConfigError where torchrun started several processes of what works in one."""
    world = launched().world
    if world > 1:
        raise ConfigError(
            f"{what} works in one process, and torchrun started {world}",
            "run calseg without torchrun; docs/scaling.md lists what it can share",
        )
