"""Commands typed into several processes at once, as torchrun starts them: by torchrun itself, or forked."""

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

from tests.commands.conftest import SETTINGS
from tests.ranks import torchrun


def pair(calseg, folders, *words, world=2):
    """What a command says in each of the processes, in folders of their own or all in one."""
    folders = folders if isinstance(folders, list) else [folders] * world
    with torchrun(world) as environment, ThreadPoolExecutor(world) as threads:
        return list(
            threads.map(
                lambda rank: calseg(*words, cwd=folders[rank], env=environment(rank), timeout=120), range(world)
            )
        )


def by_torchrun(folder, *words):
    """What two processes that torchrun itself starts say together."""
    program = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--rdzv-backend", "c10d"]
    program += ["--rdzv-endpoint", "127.0.0.1:0", "--local-addr", "127.0.0.1", "-m", "calseg_cli", *words]
    env = {**os.environ, **SETTINGS, "GLOO_SOCKET_IFNAME": "lo"}
    return subprocess.run(program, cwd=folder, env=env, capture_output=True, text=True, timeout=300, check=False)


def ended_by(signum, calseg, folder, state, *words):
    """Start two processes, send the second one a signal as soon as they have written a state; their exit codes."""
    with torchrun() as environment:
        started = [calseg.start(*words, cwd=folder, env=environment(rank)) for rank in range(2)]
        before, end = state.stat().st_mtime_ns if state.exists() else 0, time.monotonic() + 180
        while not state.exists() or state.stat().st_mtime_ns == before:
            assert time.monotonic() < end, started[0].err
            time.sleep(0.01)
        started[1].send_signal(signum)
        said = "".join(one.communicate(180)[1] for one in started)
    assert said.count("error:") == 1
    assert "--resume" in said
    assert "Traceback" not in said
    return [one.returncode for one in started]
