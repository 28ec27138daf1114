"""Owns stopping on request: SIGINT and SIGTERM end the current step, not the process."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from calseg_cli.engine.launch import launched
from calseg_cli.errors import StoppedError


class StopRequest:
    """Whether somebody asked to stop; `signum` says with which signal."""

    def __init__(self) -> None:
        self.signum: int | None = None

    def __bool__(self) -> bool:
        return self.signum is not None

    def error(self, message: str, hint: str) -> StoppedError:
        """The error to leave with: exit code 130 after Ctrl-C, 143 after SIGTERM."""
        stopped = StoppedError(message, hint)
        stopped.exit_code = 128 + (self.signum or 0)
        return stopped


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Collect SIGINT and SIGTERM as a request while the block runs; a second one strikes at once.

    Of several processes under torchrun SIGTERM never strikes: schedulers signal them as well as torchrun, whose own
    signal follows, and one that was told to stop by another process has had none yet. A second Ctrl-C does. After a
    request SIGTERM stays without effect there, so that it cannot cut short what the process has yet to say.

    Outside the main thread, where Python delivers no signals, the request simply never comes.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    together = launched().world > 1
    received: list[int] = []

    def ask(signum: int, frame: FrameType | None) -> None:
        if received and not (together and signum == signal.SIGTERM):
            raise KeyboardInterrupt
        received.append(signum)
        request.signum = request.signum or signum

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield request
    finally:
        for number, handler in before.items():
            if not (together and request and number == signal.SIGTERM):
                signal.signal(number, handler)
