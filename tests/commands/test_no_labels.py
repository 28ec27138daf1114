"""Target labels: opened by commands that measure, by nothing else; and neither does adaptation need the source."""

import shutil

import pytest


def labels(paths):
    """Label files and folders of the target among them."""
    return [path for path in paths if "target" in path and "labels" in path]


@pytest.mark.parametrize(
    "words",
    [
        ("pretrain", "--steps", "2", "--name", "watched"),
        ("adapt", "--method", "adabn", "--split", "test"),
        ("predict", "--png", "--split", "test"),
    ],
    ids=lambda words: words[0],
)
def test_no_target_label_is_opened_or_listed(workspace, words, opened):
    assert labels(opened(workspace, *words)) == []


def test_the_watch_sees_what_measuring_opens(workspace, opened):
    there = len(list((workspace / "data/target/test/labels").glob("*.png")))
    assert len([path for path in labels(opened(workspace, "evaluate")) if path.endswith(".png")]) == there > 0


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
