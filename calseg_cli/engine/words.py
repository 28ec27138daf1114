"""Owns the few words that the processes of one command leave each other: who has come, and who tells of the end.

They stand in the store that torchrun keeps, so that they outlive each process.
"""

import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import cache
from typing import Any

import torch
import torch.distributed as dist

from calseg_cli.engine.interrupt import StopRequest
from calseg_cli.engine.launch import Launch, launched
from calseg_cli.engine.lifeline import Offer, hold_on, main_lives
from calseg_cli.errors import CalsegError, ConfigError, StoppedError

PATIENCE = timedelta(minutes=30)
"""How long a process waits for one that still lives and says nothing."""
_TO_SPEAK = timedelta(seconds=10)  # for another process to tell of the end
_ARRIVED, _PORT, _HELD, _ASKED = "arrived", "port", "held", "asked"
_ENDED, _CODE, _TOLD = "ended", "code", "told"
_POLL, _SELDOM = 0.02, 0.5  # seconds
_LOST = re.compile(
    r"connection|not connected|socket|timed? ?out|broken pipe|closed|unreachable|no route|remote (process|error)|abort",
    re.IGNORECASE,
)
"""What gloo, NCCL and the store say when another process is gone. Most of it is told by no type of error."""
_PLACE = re.compile(r"^\[[^]]*:\d+\] *")  # torch's own file and line


def takes_the_word(code: int, *, waits: bool = False) -> tuple[bool, int]:
    """Of processes that end with an error, whether this one tells of it; and the exit code of all, the first one's.

    The others wait until it was told, so that their own end does not cut the speaker short. One that `waits` leaves it
    to another that has something to say before.
    """
    try:
        store = open_store()
        if not waits and store.add(_ENDED, 1) == 1:
            store.set(_CODE, str(code))
            return True, code
        store.wait([_CODE, _TOLD], _TO_SPEAK)
        return False, int(store.get(_CODE))
    except (RuntimeError, CalsegError):  # nobody keeps the store any more: better twice than not at all
        return True, code


def has_told() -> None:
    """Let the others go: the error was told."""
    try:
        open_store().set(_TOLD, "1")
    except (RuntimeError, CalsegError):
        return


def check_environment() -> None:
    """Raise ConfigError without torchrun's environment, or with a torch that cannot talk."""
    if not dist.is_available():
        raise ConfigError("this torch was built without torch.distributed", "train in one process")
    missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if not os.environ.get(name)]
    if missing:
        raise ConfigError(
            f"WORLD_SIZE is {os.environ.get('WORLD_SIZE')}, and {' and '.join(missing)} missing",
            "start it by torchrun; unset RANK and WORLD_SIZE to work in one process",
        )


@cache
def open_store(part: str = "") -> Any:
    """Where all processes read and write a few words; torchrun keeps it, so that it outlives each of them.

    A connection of its own for each part.
    """
    check_environment()
    from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]  # not in every torch

    found = launched()
    kept_by_torchrun = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    store = TCPStore(
        os.environ["MASTER_ADDR"],
        int(os.environ["MASTER_PORT"]),
        found.world,
        is_master=found.rank == 0 and not kept_by_torchrun,
        wait_for_workers=False,
        multi_tenant=True,
        timeout=timedelta(seconds=30),
    )
    return PrefixStore(f"calseg/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}/{part}", store)


def meet(here: Launch) -> None:
    """Wait for all processes, and let each hold on to the main one. Raises StoppedError where one ends before."""
    store = open_store()
    if here.rank > 0:
        arrive(here.world)
        hold_on(os.environ["MASTER_ADDR"], int(store.get(_PORT)))
        store.add(_HELD, 1)
        return
    with Offer() as offer:
        store.set(_PORT, str(offer.port))
        arrive(here.world)
        _until(lambda: store.add(_HELD, 0) >= here.world - 1, offer.take_in)


def arrive(world: int) -> None:
    """Wait for all processes in Python, where signals and another one's end are noticed; connecting notices neither."""
    store = open_store()
    store.add(_ARRIVED, 1)
    _until(lambda: store.add(_ARRIVED, 0) >= world, time.sleep)


def _until(reached: Callable[[], bool], pause: Callable[[float], None]) -> None:
    end = time.monotonic() + PATIENCE.total_seconds()
    while not reached():
        if open_store().check([_CODE]) or time.monotonic() > end:
            raise gone()
        pause(_POLL)


def wait_for_main(done: str, stop: StopRequest | None) -> None:
    """Wait until the main process says that it is done, or is gone; a request to stop is passed on to it."""
    pause, passed_on = _POLL, False
    with talking():
        store = open_store()
        while not store.check([done]):
            if stop and not passed_on:
                store.set(_ASKED, str(stop.signum))
                passed_on = True
            if store.check([_CODE]) or not (main_lives(pause) or store.check([done])):
                raise gone()
            pause = min(1.1 * pause, _SELDOM)


@contextmanager
def hearing(stop: StopRequest | None) -> Iterator[None]:
    """Inside, a request to stop that another process got while it waits becomes the main one's."""
    if stop is None:
        yield
        return
    store, ended = open_store(), threading.Event()

    def listen() -> None:
        with suppress(RuntimeError):  # nobody keeps the store any more, which the main process finds out itself
            while not ended.wait(_SELDOM):
                if store.check([_ASKED]):
                    stop.signum = stop.signum or int(store.get(_ASKED))
                    return

    listener = threading.Thread(target=listen, daemon=True)
    listener.start()
    try:
        yield
    finally:
        ended.set()
        listener.join()


@contextmanager
def talking() -> Iterator[None]:
    """Turn what torch says when another process is gone into one line; other errors stay what they are.

    Lack of memory, which NCCL tells in words of its own, becomes torch's error of that kind.
    """
    try:
        yield
    except RuntimeError as error:
        told = _PLACE.sub("", str(error))
        if "out of memory" in told:
            raise torch.cuda.OutOfMemoryError(told) from error
        if _LOST.search(told) is None:
            raise
        raise gone(told) from error


def gone(told: str = "") -> StoppedError:
    """The error to end with where another process is gone; of what torch `told` about it the first line."""
    first = told.partition("\n")[0]
    return StoppedError(
        "another process of this command was killed or does not answer" + (f" ({first})" if first else ""),
        "the same command with --resume goes on from the last saved state, if there is one",
    )
