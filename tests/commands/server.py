"""A process that has torch and calseg loaded, and forks itself for each command: spares some seconds a command.

Started as `python server.py SOCKET`. Each connection is one command: (words, folder, environment, out file, err file)
comes in; the process id, then the exit code go back.
"""

import atexit
import importlib
import os
import pkgutil
import signal
import sys
import threading
from contextlib import suppress
from multiprocessing.connection import Connection, Listener

WATCHED = "TEST_SEES_WHAT_IS_OPENED"
"""Where it is set among a command's environment, its stderr ends with a line "SEEN path" for each path it opened."""
LATE = (
    *("numba", "tensorboard.summary.writer.record_writer", "torch._dynamo"),
    *("matplotlib.backends.backend_agg", "matplotlib.backends.backend_svg", "PIL.PngImagePlugin", "rich.table"),
)
"""What is imported where it is first used, as an optimiser's first step does: seconds of every command's time."""


def load() -> None:
    """Everything that a command imports, and the compiled kernel."""
    import calseg_cli.app
    import calseg_cli.commands
    import calseg_cli.stages

    for package in (calseg_cli.stages, calseg_cli.commands):
        for module in pkgutil.iter_modules(package.__path__):
            importlib.import_module(f"{package.__name__}.{module.name}")
    for name in LATE:
        with suppress(ImportError):  # some are optional
            importlib.import_module(name)
    count_one_image()


def count_one_image() -> None:
    """The kernel is read from its cache, or compiled, when it is first used."""
    import torch

    from calseg_cli.metrics.tally import tally_image

    tally_image(torch.zeros(2, 4, 4), torch.zeros(4, 4, dtype=torch.uint8), image_id="", ignore=255)


def run(words: list[str], folder: str, environment: dict[str, str], out: str, err: str) -> int:
    """The command, in this process; its exit code."""
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    for number, path, flags in ((0, os.devnull, os.O_RDONLY), (1, out, os.O_WRONLY), (2, err, os.O_WRONLY)):
        handle = os.open(path, flags)
        os.dup2(handle, number)
        os.close(handle)
    sys.argv = ["calseg", *words]
    seen = watch() if environment.get(WATCHED) else []
    try:
        from calseg_cli.app import main

        main()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        code = 1
    if seen:
        sys.stderr.write("".join(f"SEEN {path}\n" for path in seen))
    threading._shutdown()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        if stream is not None and not stream.closed:
            stream.flush()
    return code


def watch() -> list[str]:
    """The list of every path that is opened or listed from now on."""
    seen: list[str] = []

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        if event in ("open", "os.listdir", "os.scandir") and isinstance(arguments[0], str):
            seen.append(arguments[0])

    sys.addaudithook(hook)
    return seen


def serve(connection: Connection) -> None:
    """One command, in a process of its own, and its end."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    request = connection.recv()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            code = run(*request)
        finally:
            os._exit(code)
    connection.send(child)
    connection.send(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))


def main() -> None:
    """Listen until the tests end."""
    load()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with Listener(sys.argv[1]) as listener:
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        while True:
            connection = listener.accept()
            if os.fork() == 0:
                serve(connection)
                os._exit(0)
            connection.close()


if __name__ == "__main__":
    main()
