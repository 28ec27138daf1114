"""Owns a bounded queue before one writing thread, so that computing does not wait for packing."""

import queue
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

Job = TypeVar("Job")


class Background(Generic[Job]):
    """Calls `work` on each job, in order, in a thread of its own; at most `size` jobs wait.

    The first exception of `work` is raised by the next `put` or by `close`; the jobs behind it are dropped, because
    what they build on is not there.
    """

    def __init__(self, work: Callable[[Job], None], size: int) -> None:
        self._work = work
        self._jobs: queue.Queue[Job | None] = queue.Queue(size)
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="calseg-writer", daemon=True)
        self._thread.start()

    def put(self, job: Job) -> None:
        """Hand a job over; waits while the queue is full. Raises what an earlier job raised."""
        self._raise()
        self._jobs.put(job)

    def close(self) -> None:
        """Wait until every job is done. Raises what a job raised, once."""
        if self._thread.is_alive():
            self._jobs.put(None)
            self._thread.join()
        self._raise()

    def _raise(self) -> None:
        error, self._error = self._error, None
        if error is not None:
            raise error

    def _run(self) -> None:
        failed = False
        while (job := self._jobs.get()) is not None:
            if failed:
                continue
            try:
                self._work(job)
            except BaseException as error:
                self._error, failed = error, True
