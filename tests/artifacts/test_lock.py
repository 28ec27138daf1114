"""One process at a time holds a result; a dead one holds nothing, whatever became of its children."""

import json
import os
import platform
import signal
import subprocess
import sys
import threading
from contextlib import ExitStack

import numpy as np
import pytest

from calseg_cli.artifacts import lock
from calseg_cli.artifacts.lock import sole_holder
from calseg_cli.artifacts.writer import ArtifactWriter
from calseg_cli.errors import ArtifactError

HOLD = """
import os, sys, time
from pathlib import Path
from calseg_cli.artifacts.lock import sole_holder
with sole_holder(Path(sys.argv[1])):
    children = []
    if sys.argv[2] == "with-child":
        child = os.fork()
        if not child:
            time.sleep(60)
            os._exit(0)
        children = [child]
    print(*children, "held", flush=True)
    sys.stdin.readline()
print("let go", flush=True)
"""

TRY = """
import sys
from pathlib import Path
from calseg_cli.artifacts.lock import sole_holder
from calseg_cli.errors import ArtifactError
try:
    with sole_holder(Path(sys.argv[1])):
        print("held")
except ArtifactError as error:
    print(error.message)
"""

CHILD = """
import os, sys
from pathlib import Path
from calseg_cli.artifacts.lock import sole_holder
from calseg_cli.errors import ArtifactError
path, tried, released = Path(sys.argv[1]), os.pipe(), os.pipe()
with sole_holder(path):
    print(os.getpid(), flush=True)
    if not os.fork():
        try:
            sole_holder(path).__enter__()
        except ArtifactError as error:
            print(error.message, flush=True)
        os.write(tried[1], b"x")
        os.read(released[0], 1)
        with sole_holder(path):
            print("held", flush=True)
        os._exit(0)
    os.read(tried[0], 1)
os.write(released[1], b"x")
os.wait()
"""

LEAVE = f"""
import os, subprocess, sys
from pathlib import Path
from calseg_cli.artifacts.lock import sole_holder
path = Path(sys.argv[1])
with sole_holder(path):
    child = os.fork()
    if child:
        os.wait()
        print([entry.name for entry in path.parent.iterdir()], flush=True)
        subprocess.run([sys.executable, "-c", {TRY!r}, str(path)])
if not child:
    os._exit(0)
"""

CONTEND = """
import os, sys, time
from pathlib import Path
from calseg_cli.artifacts.lock import sole_holder
from calseg_cli.errors import ArtifactError
path, inside = Path(sys.argv[1]), Path(sys.argv[1] + ".inside")
done, until = 0, time.monotonic() + 50
while done < 40 and time.monotonic() < until:
    try:
        with sole_holder(path):
            inside.mkdir()      # fails if anybody else is inside
            inside.rmdir()
            done += 1
    except ArtifactError:
        pass
print(done)
"""


@pytest.fixture
def holder(tmp_path):
    """Start a process that holds a path; it is ended after the test."""
    with ExitStack() as stack:

        def start(path, how="alone"):
            words = [sys.executable, "-c", HOLD, str(path), how]
            process = stack.enter_context(
                subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            )
            stack.callback(process.kill)
            *children, held = process.stdout.readline().split()
            assert held == "held"
            for child in children:
                stack.callback(os.kill, int(child), signal.SIGKILL)
            return process

        yield start


def from_another_process(path) -> str:
    ran = subprocess.run([sys.executable, "-c", TRY, str(path)], capture_output=True, text=True, check=True)
    return ran.stdout.strip()


def test_a_second_process_is_refused_and_told_who_holds_it(tmp_path, holder):
    process = holder(tmp_path / "a.h5")
    with pytest.raises(ArtifactError, match=rf"a\.h5 now \(process {process.pid} on ") as taken, ExitStack() as stack:
        stack.enter_context(sole_holder(tmp_path / "a.h5"))
    assert taken.value.exit_code == 3
    process.stdin.write("\n")
    process.stdin.flush()
    assert process.stdout.readline() == "let go\n"
    assert not list(tmp_path.iterdir())
    with sole_holder(tmp_path / "a.h5"):
        pass


@pytest.mark.parametrize("how", ["alone", "with-child"])
def test_a_killed_holder_lets_go(tmp_path, holder, how):
    process = holder(tmp_path / "a.h5", how)
    process.kill()
    process.wait()
    with sole_holder(tmp_path / "a.h5"):
        assert f"process {os.getpid()} on {platform.node()}" in from_another_process(tmp_path / "a.h5")
    assert not list(tmp_path.iterdir())


def test_the_lock_goes_with_the_block_however_it_ends(tmp_path):
    with pytest.raises(KeyboardInterrupt), sole_holder(tmp_path / "a.h5"):
        assert [entry.name for entry in tmp_path.iterdir()] == ["a.h5.lock"]
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())


def other_names(folder):
    (folder / "link").symlink_to(folder / "real")
    return [folder / "real/a.h5", folder / "real/../real/a.h5", folder / "link/a.h5"]


@pytest.mark.parametrize("name", range(3))
def test_one_process_does_not_hold_it_twice_under_any_name(tmp_path, name):
    """Were the file opened a second time, closing it would drop the system's lock for both."""
    (tmp_path / "real").mkdir()
    names = other_names(tmp_path)
    with sole_holder(names[0]):
        with pytest.raises(ArtifactError, match="this process"), sole_holder(names[name]):
            pass
        assert "another calseg works on" in from_another_process(names[0])


def test_threads_do_not_hold_it_together(tmp_path):
    inside, most, outcomes = [], [], []

    def work():
        for _ in range(50):
            try:
                with sole_holder(tmp_path / "a.h5"):
                    inside.append(1)
                    most.append(len(inside))
                    inside.pop()
                    outcomes.append("held")
            except ArtifactError:
                outcomes.append("refused")

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(outcomes) == 400
    assert max(most) == 1


def test_processes_that_contend_are_never_inside_together(tmp_path):
    """The lock file is removed by each: whoever waited at the old one must not take it for the new one."""
    words = [sys.executable, "-c", CONTEND, str(tmp_path / "a.h5")]
    processes = [subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(4)]
    for process in processes:
        out, err = process.communicate(timeout=60)
        assert process.returncode == 0, err
        assert out == "40\n"
    assert not list(tmp_path.iterdir())


def test_a_forked_child_is_another_process(tmp_path):
    """It is told who holds it, and may hold it once its parent let go."""
    ran = subprocess.run(
        [sys.executable, "-c", CHILD, str(tmp_path / "a.h5")], capture_output=True, text=True, check=True
    )
    pid, told, after = ran.stdout.splitlines()
    assert f"process {pid} on" in told
    assert after == "held"


def test_a_forked_child_that_leaves_the_block_changes_nothing(tmp_path):
    ran = subprocess.run(
        [sys.executable, "-c", LEAVE, str(tmp_path / "a.h5")], capture_output=True, text=True, check=True
    )
    there, told = ran.stdout.splitlines()
    assert there == "['a.h5.lock']"
    assert "another calseg works on" in told
    assert not list(tmp_path.iterdir())


def dead_process() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def signed(pid, host=None) -> str:
    return json.dumps({"pid": pid, "host": host or platform.node()})


@pytest.mark.parametrize("locks", [True, False], ids=["locks", "no locks"])
@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"pid": 1e999, "host": "x"}', "[" * 1000, "dead", "0", "-1"])
def test_what_a_dead_process_left_is_no_obstacle(tmp_path, monkeypatch, text, locks):
    if not locks:
        monkeypatch.setattr(lock, "_lock", lambda stream: False)  # as on a file system that knows none
    known = {"dead": signed(dead_process()), "0": signed(0), "-1": signed(-1)}
    (tmp_path / "a.h5.lock").write_text(known.get(text, text))
    with sole_holder(tmp_path / "a.h5"):
        pass
    assert not list(tmp_path.iterdir())


def test_without_the_systems_locks_the_file_is_the_lock(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "_lock", lambda stream: False)
    for text, who in ((signed(os.getppid()), f"process {os.getppid()}"), (signed(1, "elsewhere"), "on elsewhere")):
        (tmp_path / "a.h5.lock").write_text(text)
        with pytest.raises(ArtifactError, match=who), sole_holder(tmp_path / "a.h5"):
            pass
        assert (tmp_path / "a.h5.lock").read_text() == text


def test_two_writers_of_one_file(store, tmp_path):
    path = tmp_path / "a.h5"
    with ArtifactWriter(path, "logits", meta=store.META) as first:
        first.add_item("x", {"logits": np.zeros((2, 3, 3), np.float16)}, store.GEOMETRY)
        for options in ({}, {"force": True}, {"resume": True}):
            with (
                pytest.raises(ArtifactError, match="works on"),
                ArtifactWriter(path, "logits", meta=store.META, **options),
            ):
                pass
        assert "another calseg works on" in from_another_process(path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.h5"]
    assert store.read_all(path)["digest"] == first.digest
