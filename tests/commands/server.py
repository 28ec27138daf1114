"""A process that has torch and calseg loaded, and forks itself for each command: spares two seconds a command.

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
from multiprocessing.connection import Connection, Listener


def load() -> None:
    """Everything that a stage imports."""
    import calseg_cli.app
    import calseg_cli.stages

    for module in pkgutil.iter_modules(calseg_cli.stages.__path__):
        importlib.import_module(f"calseg_cli.stages.{module.name}")


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
    try:
        from calseg_cli.app import main

        main()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        code = 1
    threading._shutdown()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        if stream is not None and not stream.closed:
            stream.flush()
    return code


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
