"""Foreign names find their image, or nobody's: decorations match, numbers tell images apart, doubt is named."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calseg_cli.stages.id_matching import match_ids

CITY = {
    f"{city}/{city}_00000{n}_000019": Path(f"/data/{city}/{city}_00000{n}_000019_leftImg8bit.png")
    for city in ("bonn", "bielefeld")
    for n in range(3)
}
PLAIN = {f"{folder}/{n}": Path(f"/data/{folder}/{n}.png") for folder in ("fog/a", "night/a") for n in (1, 10)}
NAMES = st.text(st.sampled_from("ab01_"), min_size=1, max_size=6)


@pytest.mark.parametrize(
    "shape",
    [
        "{id}",
        "{name}",
        "{name}_leftImg8bit",
        "{id}_leftImg8bit",
        "{name}_gtFine_labelIds",
        "{name}_logits.f16",
        "val/{id}",
        "run-3/val/{id}_prob",
        "elsewhere/{name}",
    ],
)
def test_decorated_names(shape):
    names = {shape.format(id=name, name=name.rpartition("/")[2]): name for name in CITY}
    found = match_ids(list(names), CITY)
    assert found.pairs == names
    assert not found.unmatched
    assert not found.ambiguous


def test_images_with_words_behind_the_foreign_name():
    images = {f"{n}_rgb_anon": Path(f"{n}_rgb_anon.png") for n in ("f_1", "f_12")}
    assert match_ids(["f_1", "f_12"], images).pairs == {"f_1": "f_1_rgb_anon", "f_12": "f_12_rgb_anon"}


def test_numbers_are_no_decoration():
    images = {"frame": Path("frame.png"), "frame_1": Path("frame_1.png")}
    found = match_ids(["frame_2", "frame_1_2", "frame_1_logits", "fram", "frame_1logits"], images)
    assert found.pairs == {"frame_1_logits": "frame_1"}
    assert found.unmatched == ["frame_2", "frame_1_2", "fram", "frame_1logits"]


def test_folders_settle_what_names_do_not():
    found = match_ids(["fog/a/1", "x/night/a/1", "fog/a/10_logits", "1", "a/10", "day/a/1"], PLAIN)
    assert found.pairs == {"fog/a/1": "fog/a/1", "x/night/a/1": "night/a/1", "fog/a/10_logits": "fog/a/10"}
    assert set(found.ambiguous) == {"1", "a/10", "day/a/1"}
    assert found.ambiguous["1"] == ["fog/a/1", "night/a/1"]


def test_the_same_folder_comes_before_one_that_ends_alike():
    images = {name: Path(f"{name}.png") for name in ("1", "a/1", "b/a/1")}
    assert match_ids(["a/1_logits"], images).pairs == {"a/1_logits": "a/1"}


def test_two_files_of_one_image_are_both_named():
    found = match_ids(["bonn_000001_000019_a", "bonn_000001_000019_b", "bonn_000002_000019"], CITY)
    assert list(found.pairs) == ["bonn_000002_000019"]
    assert sorted(found.ambiguous) == ["bonn_000001_000019_a", "bonn_000001_000019_b"]
    assert set(map(tuple, found.ambiguous.values())) == {("bonn/bonn_000001_000019",)}


@given(st.sets(NAMES, min_size=1, max_size=8), st.lists(NAMES, max_size=8, unique=True))
def test_every_name_has_one_fate_and_every_image_one_name(images, names):
    files = {name: Path(f"{name}.png") for name in images}
    found = match_ids(names, files)
    assert sorted([*found.pairs, *found.unmatched, *found.ambiguous]) == sorted(names)
    assert len(set(found.pairs.values())) == len(found.pairs)
    for name, image in found.pairs.items():
        assert image in images
        assert name.startswith(image) or image.startswith(name)
    for name in set(names) & images:
        assert found.pairs.get(name) == name or name in found.ambiguous
