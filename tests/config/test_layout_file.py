"""Datasets described in a file of their own."""

from pathlib import Path

import pytest

BASE = "layout: cityscapes\nroot: pictures\nclasses: [a, b]\nids: {7: a, 8: b}\n"


@pytest.fixture
def describe(tmp_path):
    def describe(text, name="sets/mine.yaml"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)

    return describe


def test_its_keys_are_the_base_of_those_given_here(load, describe):
    describe(BASE)
    resolved = load("source:\n  layout: sets/mine.yaml\n  ids: {9: a}\n")
    source = resolved.config.source
    assert source.layout == "cityscapes"
    assert source.root == Path("sets/pictures")  # relative to the file that says so
    assert source.classes == ("a", "b")
    assert source.ids == {9: "a"}
    assert resolved.sources["source.classes"] == "sets/mine.yaml:3"
    assert resolved.sources["source.layout"] == "sets/mine.yaml:1"
    assert resolved.sources["source.ids.9"] == "calseg.yaml:3"


def test_the_resolved_text_needs_the_file_no_more(load, describe, tmp_path):
    describe(BASE)
    resolved = load("source:\n  layout: sets/mine.yaml\n")
    (tmp_path / "sets" / "mine.yaml").unlink()
    assert load(resolved.dump_yaml(with_sources=True)).config == resolved.config


def test_files_may_build_on_files_but_not_in_a_circle(load, describe, complaints):
    describe("layout: lower.yaml\nclasses: [c]\n")
    describe("root: r\nholdout: 5\n", "sets/lower.yaml")
    source = load("source: {layout: sets/mine.yaml}").config.source
    assert (source.layout, source.classes, source.holdout, source.root) == ("folders", ("c",), 5, Path("sets/r"))
    describe("layout: mine.yaml\n", "sets/lower.yaml")
    assert any("circle" in line for line in complaints("source: {layout: sets/mine.yaml, root: x}"))


def test_complaints_name_that_file_and_its_line_once(describe, complaints):
    describe("root: x\nimagess: y\nholdout: 1\nsize: [1, 2]\nsize: [1, 3]\n")
    lines = complaints("source: {layout: sets/mine.yaml}\ntarget: {layout: sets/mine.yaml}\n")
    assert lines == [
        "sets/mine.yaml:2: imagess is not a known key; did you mean images?",
        "sets/mine.yaml:3: holdout must be at least 2, not 1",
        "sets/mine.yaml:5: size is given twice; the first is in line 4",
    ]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, "calseg.yaml:2: source.layout: sets/mine.yaml: no such file"),
        ("[a]", "calseg.yaml:2: source.layout: sets/mine.yaml: it holds a list"),
        ("a: [", "calseg.yaml:2: source.layout: sets/mine.yaml:1:5: broken YAML"),
    ],
)
def test_a_file_that_cannot_be_read_is_one_complaint(describe, complaints, content, told):
    if content is not None:
        describe(content)
    (line,) = complaints("source:\n  layout: sets/mine.yaml\n  root: x\n")
    assert line.startswith(told)


def test_a_layout_given_by_set_is_found_from_the_working_directory(load, describe):
    describe(BASE, "mine.yml")
    resolved = load("target: {root: t}", sets=["target.layout=mine.yml"])
    assert resolved.config.target.layout == "cityscapes"
    assert resolved.config.target.root == Path("t")
