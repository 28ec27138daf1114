"""Owns reading ahead: `read(key)` for many keys in their order, in a thread or in worker processes."""

import signal
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Generic, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

from calseg_cli.errors import CalsegError

T = TypeVar("T")
_AHEAD = 3


def read_ahead(read: Callable[[int], T], keys: Sequence[int], workers: int) -> Iterator[T]:
    """`read(key)` of every key, in order; the same for any number of workers where `read` depends on its key alone.

    With 0 workers one thread reads ahead: decoding and resizing leave Python's lock to the consumer. An error comes
    out where its result would have. Raises CalsegError when a worker process is killed.
    """
    if workers == 0 or not keys:
        return _by_thread(read, keys)
    return _by_processes(read, keys, workers)


def _by_thread(read: Callable[[int], T], keys: Sequence[int]) -> Iterator[T]:
    waiting: deque[Future[T]] = deque()
    with ThreadPoolExecutor(1, thread_name_prefix="calseg-reader") as pool:
        remaining = iter(keys)
        try:
            waiting.extend(pool.submit(read, key) for key in islice(remaining, _AHEAD))
            while waiting:
                result = waiting.popleft().result()
                waiting.extend(pool.submit(read, key) for key in islice(remaining, 1))
                yield result
        finally:
            for future in waiting:
                future.cancel()


def _by_processes(read: Callable[[int], T], keys: Sequence[int], workers: int) -> Iterator[T]:
    loader = DataLoader(
        _Reader(read),
        sampler=keys,
        batch_size=None,
        num_workers=workers,
        collate_fn=_as_it_is,
        worker_init_fn=_leave_signals_to_the_parent,
        # A generator of its own: torch draws a base seed per iterator, which must not move the global random state.
        generator=torch.Generator(),
    )
    try:
        for result in loader:
            if isinstance(result, _Failure):
                raise result.error
            yield result
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise CalsegError(
            "a process that reads images was killed, most likely because memory ran out",
            "set fewer workers (0 reads in a thread), a smaller size or a smaller batch",
        ) from error


@dataclass(frozen=True)
class _Failure:
    """A user's mistake on its way out of a worker; torch would turn it into a page of traceback."""

    error: CalsegError


class _Reader(Dataset["T | _Failure"], Generic[T]):
    """`read` as torch wants it."""

    def __init__(self, read: Callable[[int], T]) -> None:
        self._read = read

    def __getitem__(self, key: int) -> "T | _Failure":
        try:
            return self._read(key)
        except CalsegError as error:
            return _Failure(error)


def _as_it_is(value: T) -> T:
    return value


def _leave_signals_to_the_parent(worker: int) -> None:
    """Ctrl-C reaches every process of the terminal; only the parent may answer it, and it ends its workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
