"""Owns reading ahead: `read(key)` for many keys in their order, in a thread or in worker processes."""

import atexit
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any, Generic, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

from calseg_cli.errors import CalsegError

T = TypeVar("T")
_AHEAD = 3
_FOR_THE_PARENT = (signal.SIGINT, signal.SIGTERM)
_RUNNING: list[Any] = []  # torch's iterators whose workers live
_READER = threading.local()  # of a reading thread: whether its consumer is gone


def read_ahead(read: Callable[[int], T], keys: Sequence[int], workers: int) -> Iterator[T]:
    """`read(key)` of every key, in order; the same for any number of workers where `read` depends on its key alone.

    With 0 workers one thread reads ahead: decoding and resizing leave Python's lock to the consumer. An error comes
    out where its result would have. Raises CalsegError when a worker process is killed, and there alone: whatever else
    the main process does goes on undisturbed. No worker ends by SIGINT or by another's SIGTERM, all do when the main
    process ends, however it ends.
    """
    if workers == 0 or not keys:
        return _by_thread(read, keys)
    return _by_processes(read, keys, workers)


@contextmanager
def closing_reader(values: Iterable[object]) -> Iterator[None]:
    """End what reads `values` with the block, whatever ends that: an error keeps alive what its traceback knows.

    Does nothing for what has no `close`, such as a list.
    """
    try:
        yield
    finally:
        close = getattr(values, "close", None)
        if close is not None:
            close()


@atexit.register  # and so before multiprocessing, loaded earlier, waits for all processes
def end_readers() -> None:
    """End all worker processes, of readers that nobody closed too."""
    while _RUNNING:
        _end(_RUNNING.pop())


def check_wanted() -> None:
    """Raise in a reading thread whose consumer has gone: to be asked between the parts of what takes long to read."""
    gone = getattr(_READER, "gone", None)
    if gone is not None and gone.is_set():
        raise CalsegError("what was being read is no longer wanted")


def _by_thread(read: Callable[[int], T], keys: Sequence[int]) -> Iterator[T]:
    waiting: deque[Future[T]] = deque()
    gone = threading.Event()
    with ThreadPoolExecutor(1, "calseg-reader", initializer=_begin, initargs=(gone,)) as pool:
        remaining = iter(keys)
        try:
            waiting.extend(pool.submit(read, key) for key in islice(remaining, _AHEAD))
            while waiting:
                result = waiting.popleft().result()
                waiting.extend(pool.submit(read, key) for key in islice(remaining, 1))
                yield result
        finally:
            gone.set()  # the pool waits for what is being read
            for future in waiting:
                future.cancel()


def _begin(gone: threading.Event) -> None:
    _READER.gone = gone


def _by_processes(read: Callable[[int], T], keys: Sequence[int], workers: int) -> Iterator[T]:
    loader = DataLoader(
        _Reader(read),
        sampler=keys,
        batch_size=None,
        num_workers=workers,
        collate_fn=_as_it_is,
        worker_init_fn=_obey_the_parent_alone,
        # A generator of its own: torch draws a base seed per iterator, which must not move the global random state.
        generator=torch.Generator(),
    )
    try:
        with _running(loader) as results:
            for result in results:
                if isinstance(result, _Failure):
                    raise result.error
                yield result
    except RuntimeError as error:
        if "DataLoader worker (pid" not in str(error):  # an error that a worker hands on names no process id
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


@contextmanager
def _running(loader: DataLoader[T]) -> Iterator[Iterator[T]]:
    """What the workers read; they end with the block."""
    with _no_signals():
        results = iter(loader)
    _RUNNING.append(results)
    try:
        yield results
    finally:
        if results in _RUNNING:
            _RUNNING.remove(results)
            _end(results)


@contextmanager
def _no_signals() -> Iterator[None]:
    """Put off SIGINT and SIGTERM while workers are started, which have them blocked from their first moment.

    Ctrl-C reaches every process of the terminal, and torchrun, `timeout` and schedulers signal all that a process
    started. The parent notices by its handlers: the system may hand it a signal by a thread that does not block it.
    """
    put_off: list[int] = []
    in_main_thread = threading.current_thread() is threading.main_thread()  # elsewhere no handler is run or set
    changed = (*_FOR_THE_PARENT, signal.SIGCHLD) if in_main_thread else ()
    before = {number: signal.getsignal(number) or signal.SIG_DFL for number in changed}
    blocked_before = signal.pthread_sigmask(signal.SIG_BLOCK, _FOR_THE_PARENT)
    for number in _FOR_THE_PARENT if in_main_thread else ():
        signal.signal(number, lambda signum, frame: put_off.append(signum))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked_before)
        # Of SIGCHLD it takes back torch's own handler, which would raise its RuntimeError anywhere, in the midst of
        # writing a state too. Without it a dead worker is noticed within five seconds where its result is waited for.
        for number, handler in before.items():
            signal.signal(number, handler)
    for signum in put_off:
        signal.raise_signal(signum)


def _end(results: Any) -> None:
    """Tell the workers to end, and wait for it.

    Torch does so when nothing knows `results` any more, but an error's traceback does; and a collection of garbage
    takes the queue to them apart first, and then waits five seconds for each. There is no public name for it.
    """
    end = getattr(results, "_shutdown_workers", None)
    if end is not None:
        end()


def _obey_the_parent_alone(worker: int) -> None:
    """End by no SIGTERM but the parent's, which torch and multiprocessing send to one that does not heed their word."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if not hasattr(signal, "sigwaitinfo"):  # macOS tells no sender: SIGTERM ends it there, whoever sends it
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _FOR_THE_PARENT)
        return
    threading.Thread(target=_end_when_the_parent_says, daemon=True).start()


def _end_when_the_parent_says() -> None:
    while signal.sigwaitinfo([signal.SIGTERM]).si_pid != os.getppid():
        pass
    os._exit(0)  # torch takes any other code for a failure
