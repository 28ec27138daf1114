"""The pattern language: what it captures, what it walks, what it refuses."""

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calseg_cli.data.patterns import find_files, pattern_fault, pattern_fields
from calseg_cli.errors import DataError

NAME = st.text("abcxyz019_.-", min_size=1, max_size=6).filter(
    lambda text: not text.startswith(".") and ".." not in text
)


def touch(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def found(root, pattern, split=None):
    return {path.relative_to(root).as_posix(): dict(fields) for fields, path in find_files(root, pattern, split)}


def test_captures_across_and_within_folders(tmp_path):
    touch(tmp_path, "img/x/1.png", "img/2.png", "img/x/y/3.JPG", "img/4.txt", "img/.5.png", "img/.git/6.png")
    assert found(tmp_path, "img/{path}.*") == {
        "img/x/1.png": {"path": "x/1"},
        "img/2.png": {"path": "2"},
        "img/x/y/3.JPG": {"path": "x/y/3"},
    }
    assert found(tmp_path, "img/{name}.png") == {"img/2.png": {"name": "2"}}
    assert found(tmp_path, "img/{folder}/{name}.png") == {"img/x/1.png": {"folder": "x", "name": "1"}}


def test_a_field_said_twice_must_agree(tmp_path):
    touch(tmp_path, "aachen/aachen_1.png", "aachen/bonn_2.png")
    assert found(tmp_path, "{city}/{city}_{frame}.png") == {"aachen/aachen_1.png": {"city": "aachen", "frame": "1"}}


def test_fixed_folders_may_stand_between_fields(tmp_path):
    touch(tmp_path, "fog/train/s/1.png", "fog/train_ref/s/1.png", "rain/train/s/2.png", "rain/val/s/3.png")
    assert sorted(found(tmp_path, "{condition}/{split}/{sequence}/{frame}.png", "train")) == [
        "fog/train/s/1.png",
        "rain/train/s/2.png",
    ]


def test_letters_of_expressions_are_only_letters(tmp_path):
    touch(tmp_path, "a+(b)/x.y.png", "aab/x.y.png", "a+(b)/xzy.png")
    assert list(found(tmp_path, "a+(b)/{name}.y.png")) == ["a+(b)/x.y.png"]


def test_a_split_may_be_the_root_itself(tmp_path):
    touch(tmp_path, "images/1.png")
    assert list(found(tmp_path, "{split}/images/{path}.png", ".")) == ["images/1.png"]


def test_folders_outside_the_pattern_are_not_listed(tmp_path, touched):
    touch(tmp_path, "train/images/1.png", "train/labels/1.png", "val/images/2.png", "fog/gt/s/3.png", "fog/rgb/s/3.png")
    touched.clear()
    assert found(tmp_path, "{split}/images/{path}.*", "train")
    assert found(tmp_path, "{condition}/rgb/{sequence}/{frame}.png")
    listed = {Path(path).relative_to(tmp_path).as_posix() for path in touched if path.startswith(str(tmp_path))}
    assert listed == {"train/images", ".", "fog/rgb", "fog/rgb/s"}


def test_links_are_followed_but_not_in_circles(tmp_path):
    touch(tmp_path, "elsewhere/1.png", "root/images/2.png")
    (tmp_path / "root/images/more").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "root/images/again").symlink_to(tmp_path / "root/images")
    assert sorted(found(tmp_path / "root", "images/{path}.png")) == ["images/2.png", "images/more/1.png"]


def test_a_missing_folder_names_what_is_there(tmp_path):
    touch(tmp_path, "training/images/1.png", "test/images/1.png")
    with pytest.raises(DataError, match=re.escape(str(tmp_path / "train" / "images"))) as caught:
        found(tmp_path, "{split}/images/{path}.png", "train")
    assert "test, training" in caught.value.hint


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        ("images/*.png", "has a *"),
        ("images/{path.png", "brace"),
        ("images/{}.png", "not a name"),
        ("images/{a b}.png", "not a name"),
        ("images/x.png", "captures nothing"),
        ("{split}/x.png", "captures nothing"),
        ("/data/{path}.png", "relative"),
        ("C:/data/{path}.png", "relative"),
        ("../{path}.png", "leave root"),
        ("images\\{path}.png", "backslash"),
        ("{path}.*.png", "has a *"),
    ],
)
def test_faults(pattern, words):
    assert words in pattern_fault(pattern)


@given(st.lists(NAME, min_size=1, max_size=3, unique=True), NAME, NAME)
def test_any_name_is_captured_as_it_is(tmp_path_factory, folders, name, suffix):
    root = tmp_path_factory.mktemp("any")
    relative = "/".join([*folders, f"{name}{suffix}.png"])
    touch(root, relative)
    pattern = "{path}" + f"{suffix}.png"
    assert pattern_fault(pattern) is None
    assert pattern_fields(pattern) == ("path",)
    assert found(root, pattern) == {relative: {"path": "/".join([*folders, name])}}
