"""A user's keys on a built-in layout, and the same labels in another class list."""

import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from calseg_cli.data.catalog import CITYSCAPES19, IGNORE, SYNTHIA13, SYNTHIA16, find_layout, make_layout, remap_classes
from calseg_cli.data.labels import classified
from calseg_cli.errors import ConfigError

BASE = find_layout("folders")
FOUR = make_layout(BASE, classes=["road", "sky", "car", "person"])


def test_class_names_are_enough():
    assert FOUR.class_names == ("road", "sky", "car", "person")
    assert FOUR.raw_classes() == {0: 0, 1: 1, 2: 2, 3: 3, 255: IGNORE}
    assert FOUR.class_ids == (0, 1, 2, 3)
    assert len(set(FOUR.palette)) == 4
    assert pickle.loads(pickle.dumps(FOUR)) == FOUR


def test_many_values_may_be_one_class():
    layout = make_layout(FOUR, ids={7: "road", 8: "road", 23: 1, 9: "ignore", 10: 255}, ignore=[0, 1])
    assert layout.raw_classes() == {7: 0, 8: 0, 23: 1, **dict.fromkeys((0, 1, 9, 10, 255), IGNORE)}
    assert layout.class_ids == (7, 23, 255, 255)


def test_a_user_may_ignore_more_of_a_built_in_dataset():
    layout = make_layout(find_layout("cityscapes"), ignore=[34])
    assert layout.raw_classes()[34] == IGNORE
    assert layout.raw_classes()[7] == 0
    assert layout.class_ids[0] == 7


def test_fewer_classes_of_a_built_in_dataset_go_by_name():
    layout = make_layout(find_layout("cityscapes"), classes=["car", "road"])
    assert layout.raw_classes()[26] == 0
    assert layout.raw_classes()[7] == 1
    assert layout.raw_classes()[8] == IGNORE
    assert layout.palette == ((0, 0, 142), (128, 64, 128))
    with pytest.raises(ConfigError, match="has no class kerb"):
        make_layout(find_layout("cityscapes"), classes=["road", "kerb"])


def test_own_classes_on_a_built_in_dataset_need_own_ids():
    layout = make_layout(find_layout("cityscapes"), classes=["flat", "rest"], ids={7: "flat", 8: "flat", 26: "rest"})
    assert {raw: index for raw, index in layout.raw_classes().items() if index != IGNORE} == {7: 0, 8: 0, 26: 1}
    assert layout.class_ids == (7, 26)


def test_ids_turn_a_painted_dataset_into_one_of_numbers():
    layout = make_layout(find_layout("camvid-color"), ids={0: "Sky", 1: "Road"}, labels="ids/{frame}.png")
    assert layout.encoding == "index"
    assert layout.raw_classes()[1] == layout.class_names.index("Road")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"classes": ["road", "road"]}, "listed twice: road"),
        ({"classes": ["road", " "]}, "no name"),
        ({"classes": [f"c{n}" for n in range(255)]}, "255 classes"),
        ({"palette": ["#000000"]}, "1 colours for 4 classes"),
        ({"palette": ["#00000", "#000000", "#000000", "#000000"]}, "not a colour"),
        ({"palette": [[0, 0, 300]] * 4}, "not a colour"),
        ({"images": "{path}.png", "labels": "{name}.png"}, "paired by their fields"),
        ({"images": "*.png"}, "images: '*.png' has a *"),
        ({"ids": {-1: "road"}}, "-1 cannot stand in a label file"),
        ({"ids": {1: 4}}, "go from 0 to 3"),
        ({"ids": {1: "raod"}}, "'raod', which is not one of its classes"),
        ({"colors": {"#12345": "road"}}, "not a colour"),
        ({"encoding": "color"}, "colors is empty"),
        ({"encoding": "rgb"}, "encoding: 'rgb'"),
        ({"ignore": [70000]}, "70000"),
        ({"splits": {"training": "x"}}, "training"),
        ({"lists": {"dev": "x.txt"}}, "dev"),
        ({"holdout": 1}, "holdout"),
        ({"lables": "x"}, "lables is not a known key"),
    ],
)
def test_mistakes(changes, words):
    with pytest.raises(ConfigError) as caught:
        make_layout(FOUR, **changes)
    assert words in caught.value.message
    assert "folders" in caught.value.message


def test_nearest_names_are_offered():
    with pytest.raises(ConfigError) as caught:
        make_layout(FOUR, ids={1: "raod"})
    assert "'road'" in caught.value.hint
    with pytest.raises(ConfigError) as caught:
        make_layout(FOUR, lables="x")
    assert "labels" in caught.value.hint


def test_all_faults_at_once():
    with pytest.raises(ConfigError) as caught:
        make_layout(FOUR, classes=["a", "a"], images="*.png", holdout=1)
    assert len(caught.value.message.splitlines()) == 3


@given(st.data())
def test_remapping_is_the_map_of_names(data):
    """Reading in the new list = reading in the old one, then looking the name up."""
    names = data.draw(st.lists(st.sampled_from("abcdefgh"), min_size=1, unique=True))
    target = data.draw(st.lists(st.sampled_from("abcdefgh"), min_size=1, unique=True))
    ids = data.draw(st.dictionaries(st.integers(0, 40), st.sampled_from(names), min_size=1))
    layout = make_layout(BASE, classes=names, ids=ids, ignore=[41, 42])
    if not set(names) & set(target):
        with pytest.raises(ConfigError, match="shares no class"):
            remap_classes(layout, target)
        return
    moved = remap_classes(layout, target)
    raw = np.array([[*ids, 41, 42, 255]])
    before, _ = classified(raw, layout)
    if not moved.ids:  # nothing shared ever occurs in the files
        return
    after, unknown = classified(raw, moved)
    assert not unknown
    for old, new in zip(before.ravel(), after.ravel(), strict=True):
        name = names[old] if old != IGNORE else None
        assert new == (target.index(name) if name in target else IGNORE)
    for name in set(names) & set(target):
        assert moved.palette[target.index(name)] == layout.palette[names.index(name)]


def test_remapping_identity_colours_and_spelling():
    moved = remap_classes(FOUR, ["SKY", "truck", "Road"])
    assert moved.raw_classes() == {0: 2, 1: 0, 2: IGNORE, 3: IGNORE, 255: IGNORE}
    painted = remap_classes(find_layout("camvid-color"), ["road", "sky"])
    assert painted.raw_classes()[0x804080] == 0
    assert painted.raw_classes()[0x800000] == IGNORE
    assert len(painted.raw_classes()) == 32


def test_synthia_lists_are_cityscapes_without_some():
    assert (len(CITYSCAPES19), len(SYNTHIA16), len(SYNTHIA13)) == (19, 16, 13)
    target = remap_classes(find_layout("cityscapes"), SYNTHIA16)
    lost = {CITYSCAPES19[find_layout("cityscapes").ids[raw]] for raw in find_layout("cityscapes").ids} - set(SYNTHIA16)
    assert lost == {"terrain", "truck", "train"}
    assert [raw for raw, index in target.raw_classes().items() if index != IGNORE and raw in (22, 27, 31)] == []
    assert set(target.raw_classes()) == set(find_layout("cityscapes").raw_classes())
