"""Target labels: opened by commands that measure, by nothing else; and neither does adaptation need the source."""

import os
import shutil
import subprocess
import sys

import pytest

WATCH = """
import sys
seen = []
def hook(event, arguments):
    if event in ("open", "os.listdir", "os.scandir") and isinstance(arguments[0], str):
        seen.append(arguments[0])
sys.addaudithook(hook)
from calseg_cli.app import main
sys.argv = ["calseg", *sys.argv[1:]]
try:
    main()
finally:
    sys.stderr.write("".join(f"SEEN {path}\\n" for path in seen))
"""


def watched(folder, *words):
    """The paths of label files and label folders that a command opened or listed."""
    done = subprocess.run(
        [sys.executable, "-c", WATCH, *words],
        cwd=folder, capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    seen = [line.removeprefix("SEEN ") for line in done.stderr.splitlines() if line.startswith("SEEN ")]
    assert seen, "the hook saw nothing"
    return [path for path in seen if "target" in path and "labels" in path]


@pytest.mark.parametrize(
    "words",
    [
        ("pretrain", "--steps", "2", "--name", "watched"),
        ("adapt", "--method", "adabn", "--split", "test"),
        ("predict", "--png", "--split", "test"),
    ],
    ids=lambda words: words[0],
)
def test_no_target_label_is_opened_or_listed(workspace, words):
    assert watched(workspace, *words) == []


def test_the_watch_sees_what_measuring_opens(workspace):
    assert len([path for path in watched(workspace, "evaluate") if path.endswith(".png")]) == 40


def test_adaptation_needs_neither_the_source_nor_a_label(workspace, calseg):
    shutil.rmtree(workspace / "data/source")
    for labels in (workspace / "data/target").glob("*/labels"):
        shutil.rmtree(labels)
    assert calseg("adapt", "--method", "adabn", cwd=workspace).code == 0
    assert calseg("predict", cwd=workspace).code == 0


def test_commands_never_write_into_the_dataset(workspace, calseg):
    def files():
        return {path: path.stat().st_mtime_ns for path in (workspace / "data").rglob("*")}

    before = files()
    for words in (("data", "check"), ("adapt",), ("predict", "--png"), ("evaluate", "--html")):
        assert calseg(*words, cwd=workspace).code == 0
    assert files() == before
