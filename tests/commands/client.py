"""One command, done by the process that has torch loaded: `client.py SOCKET WORDS`, for a shell script's calseg."""

import os
import sys
import tempfile
from multiprocessing.connection import Client
from pathlib import Path


def main() -> int:
    with tempfile.TemporaryDirectory() as folder, Client(sys.argv[1]) as connection:
        said = [Path(folder, name) for name in ("out", "err")]
        for path in said:
            path.touch()
        connection.send((sys.argv[2:], str(Path.cwd()), dict(os.environ), *map(str, said)))
        connection.recv()  # the process id
        code: int = connection.recv()
        for path, stream in zip(said, (sys.stdout, sys.stderr), strict=True):
            stream.write(path.read_text(encoding="utf-8"))
    return code


if __name__ == "__main__":
    sys.exit(main())
