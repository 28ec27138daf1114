"""Owns a connection of each process to the main one over which nothing is said: that it closes tells of the main's end.

The system closes it with the main process, however that ended, and asks a machine that has gone silent from time to
time whether it is still there. Neither needs a thread, so no work, however long, can look like an end. Needs no torch.
"""

import os
import socket
import time
from contextlib import suppress

_TO_CONNECT = 10.0  # seconds
_HERE = b"."
_ASKS = {"TCP_KEEPIDLE": 60, "TCP_KEEPINTVL": 30, "TCP_KEEPCNT": 8}  # a machine that died is noticed in 5 minutes
_held: list[socket.socket] = []  # this process's ends: the main one has one for each other process, those one each


class Offer:
    """The main process's door, open within the block: what comes in is held until `let_go` or the process's end."""

    def __init__(self) -> None:
        self._door = _door()
        self.port: int = self._door.getsockname()[1]

    def __enter__(self) -> "Offer":
        return self

    def __exit__(self, *error: object) -> None:
        self._door.close()

    def take_in(self, seconds: float) -> None:
        """Let one process in, if one comes within so many seconds."""
        self._door.settimeout(seconds)
        with suppress(OSError):  # nobody came, or one that left again
            found, _ = self._door.accept()
            _held.append(found)
            found.sendall(_HERE)


def hold_on(host: str, port: int) -> bool:
    """Connect this process to the main one; False where no way leads there, which `main_lives` then cannot see."""
    try:
        line = socket.create_connection((host, port), _TO_CONNECT)
    except OSError:
        return False
    try:
        line.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in _ASKS.items():
            if hasattr(socket, name):  # macOS calls some otherwise
                line.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
        if line.recv(1) == _HERE:
            _held.append(line)
            return True
    except OSError:
        pass
    line.close()
    return False


def main_lives(seconds: float) -> bool:
    """Whether the main process still lives after so many seconds, at once where it does not. Not for itself to ask."""
    if not _held:
        time.sleep(seconds)
        return True
    _held[0].settimeout(seconds)
    try:
        return _held[0].recv(1) != b""
    except TimeoutError as error:
        return error.errno is None  # the seconds are over; with a number, a machine that did not answer
    except OSError:
        return False


def let_go() -> None:
    """Close this process's ends."""
    while _held:
        _held.pop().close()


def _door() -> socket.socket:
    """Open on every address, by whichever protocol the others come."""
    with suppress(OSError):  # IPv6 may be known and switched off
        if socket.has_dualstack_ipv6():
            return socket.create_server(("", 0), family=socket.AF_INET6, backlog=128, dualstack_ipv6=True)
    return socket.create_server(("", 0), backlog=128)


if hasattr(os, "register_at_fork"):  # a process that reads images may outlive the one that started it
    os.register_at_fork(after_in_child=let_go)
