"""Several processes that share one training, as torchrun would start them, but forked: no torch is loaded anew."""

import os
import pickle
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.distributed import TCPStore

from calseg_cli.engine.distributed import Ranks, process_group
from calseg_cli.engine.words import has_told, takes_the_word
from calseg_cli.errors import CalsegError

KILLED = 137


@contextmanager
def torchrun(world: int = 2) -> Iterator[Callable[[int], dict[str, str]]]:
    """The store that torchrun keeps, and the environment that it gives to each rank."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)

    def environment(rank: int) -> dict[str, str]:
        return {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(world),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(store.port),
            "TORCHELASTIC_USE_AGENT_STORE": "True",
            "GLOO_SOCKET_IFNAME": "lo",
        }

    yield environment


def together(work: Callable[[Ranks], Any], world: int = 2, seconds: float = 180) -> list[tuple[int, Any]]:
    """What `work` does in each of `world` processes: (0, what it gives), or (exit code, the error it tells or None).

    All are killed, with the code `KILLED`, when they take too long.
    """
    with torchrun(world) as environment, tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / str(rank) for rank in range(world)]
        children = [_forked(work, environment(rank), files[rank]) for rank in range(world)]
        end = time.monotonic() + seconds
        codes = [_ended(child, end) for child in children]
        return [
            (code, pickle.loads(file.read_bytes()) if file.exists() else None)
            for code, file in zip(codes, files, strict=True)
        ]


def _forked(work: Callable[[Ranks], Any], environment: dict[str, str], file: Path) -> int:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 on: of threads, which here hold nothing
        child = os.fork()
    if child:
        return child
    code = 1
    try:
        code = _run(work, environment, file)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(code)


def _run(work: Callable[[Ranks], Any], environment: dict[str, str], file: Path) -> int:
    os.environ.update(environment)
    torch.set_num_threads(1)
    try:
        with process_group("cpu") as ranks:
            file.write_bytes(pickle.dumps(work(ranks)))
        return 0
    except CalsegError as error:
        speaks, code = takes_the_word(error.exit_code)
        if speaks:
            file.write_bytes(pickle.dumps(error.message))
            has_told()
        return code


def _ended(child: int, end: float) -> int:
    while time.monotonic() < end:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(child, signal.SIGABRT)  # pytest's fault handler tells where it hangs
    time.sleep(1)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return KILLED
