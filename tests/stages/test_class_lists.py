"""--classes and --ids: names in order, official values as published, and every mistake said."""

import json
from dataclasses import replace

import numpy as np
import pytest

from calseg_cli.config import load_config
from calseg_cli.data.catalog import CITYSCAPES19, IGNORE, LAYOUTS, SYNTHIA16
from calseg_cli.data.labels import classified
from calseg_cli.errors import ArtifactError, ConfigError, DataError
from calseg_cli.stages.class_lists import CLASSES_FILE, ClassList, find_classes, labels_layout, raw_values

# The official list of the public evaluation, typed here a second time on purpose.
CITYSCAPES_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
THREE = ClassList(("road", "car", "sky"), ((1, 2, 3), (4, 5, 6), (7, 8, 9)))
CITY = ClassList(CITYSCAPES19, ((0, 0, 0),) * 19)


@pytest.fixture
def configured(tmp_path):
    def make(text):
        (tmp_path / "calseg.yaml").write_text(text, encoding="utf-8")
        return load_config(tmp_path / "calseg.yaml", environ={})

    return make


def write_classes(folder, **changes):
    table = {"names": list(THREE.names), "palette": [list(color) for color in THREE.palette], "ignore": 255, **changes}
    (folder / CLASSES_FILE).write_text(json.dumps(table), encoding="utf-8")


# Class names


def test_names_on_the_line_or_in_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "names.txt").write_text("# of the network\nroad\n traffic light \n\nsky\n", encoding="utf-8")
    assert find_classes("road, car,sky", None, tmp_path).names == ("road", "car", "sky")
    assert find_classes("names.txt", None, tmp_path).names == ("road", "traffic light", "sky")
    assert find_classes("road,", None, tmp_path).names == ("road",)
    assert len(set(find_classes("a,b,c", None, tmp_path).palette)) == 3


@pytest.mark.parametrize(
    ("given", "told"), [("absent.txt", "no file"), ("a,b,a", "lists a twice"), (",", "lists no class"), ("", "no file")]
)
def test_names_that_are_none(tmp_path, given, told):
    with pytest.raises(ConfigError, match=told):
        find_classes(given, None, tmp_path)


def test_more_classes_than_colours_can_still_be_drawn(tmp_path):
    found = find_classes(",".join(f"c{n}" for n in range(1000)), None, tmp_path)
    assert len(found.palette) == 1000


def test_the_configuration_comes_before_what_an_export_recorded(tmp_path, configured):
    resolved = configured("source: {root: s, classes: [road, car, sky]}\n")
    assert find_classes(None, resolved, tmp_path).names == THREE.names
    write_classes(tmp_path)
    assert find_classes(None, None, tmp_path) == THREE
    assert find_classes(None, resolved, tmp_path).palette != THREE.palette
    other = configured("source: {root: s, classes: [road, bus, sky]}\n")
    with pytest.raises(ArtifactError, match="class 1 is 'car' there and 'bus' here"):
        find_classes(None, other, tmp_path)
    assert find_classes("x,y", other, tmp_path).names == ("x", "y")


def test_nobody_names_the_classes(tmp_path, configured):
    for resolved in (None, configured("source: {root: s}\n"), configured("name: x\n")):
        with pytest.raises(ConfigError, match="nothing says which classes"):
            find_classes(None, resolved, tmp_path)


@pytest.mark.parametrize(
    "changes",
    [{"names": ["a"]}, {"names": 3}, {"palette": [1, 2, 3]}, {"palette": None}, {"ignore": 0}],
    ids=str,
)
def test_a_class_file_of_something_else(tmp_path, changes):
    write_classes(tmp_path, **changes)
    with pytest.raises(DataError, match=r"classes\.json is no class list"):
        find_classes(None, None, tmp_path)


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 100000, '"x"'])
def test_a_class_file_that_is_no_table(tmp_path, text):
    (tmp_path / CLASSES_FILE).write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=r"classes\.json is no class list"):
        find_classes(None, None, tmp_path)


# Raw values to classes


def read(ids, values, classes=THREE, resolved=None):
    found, unknown = classified(np.array([values]), labels_layout(ids, classes, resolved, None))
    return found.ravel().tolist(), unknown


def test_class_indices(tmp_path):
    assert read("train", [0, 1, 2, 255]) == ([0, 1, 2, IGNORE], {})
    assert read("train", [3, 3, 254, 0]) == ([IGNORE, IGNORE, IGNORE, 0], {3: 2, 254: 1})


def test_lists_of_values(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ids.txt").write_text("7=0 # road\n8=road\n26=car\n23=2\n0=ignore\n", encoding="utf-8")
    for ids in ("7=0,8=road,26=car,23=2,0=ignore", "ids.txt"):
        assert read(ids, [7, 8, 26, 23, 0, 255]) == ([0, 0, 1, 2, IGNORE, IGNORE], {})
        assert read(ids, [1])[1] == {1: 1}
    assert read("7,26,23", [23, 7]) == ([2, 0], {})


@pytest.mark.parametrize(
    ("ids", "told"),
    [
        ("7=0,7=1", "names 7 twice"),
        ("7=3", "'3' is no class"),
        ("7=bus", "'bus' is no class"),
        ("7=-1", "'-1' is no class"),
        ("-1=0", "no value of 0 to 65535"),
        ("65536=0", "no value of 0 to 65535"),
        ("7,8", "lists 2 values for 3 classes"),
        ("7=0,8,9", "mixes"),
        ("trains", "there is no such file"),
        ("", "lists 0 values"),
        ("folders", "no values of its own"),
        ("dataset", "needs a configuration"),
        ("९=0", "no value of 0 to 65535"),
    ],
)
def test_values_that_mean_nothing(ids, told):
    for use in (labels_layout, raw_values):
        with pytest.raises(ConfigError, match=told):
            use(ids, THREE, None, None)


# Classes to raw values


def test_the_official_values():
    assert raw_values("cityscapes", CITY, None, None) == (CITYSCAPES_IDS, 0)
    assert raw_values("gta5", CITY, None, None) == (CITYSCAPES_IDS, 0)
    assert raw_values("acdc", CITY, None, None) == (tuple(range(19)), IGNORE)
    assert raw_values("train", CITY, None, None) == (tuple(range(19)), IGNORE)
    synthia = ClassList(SYNTHIA16, ((0, 0, 0),) * 16)
    assert raw_values("cityscapes", synthia, None, None)[0] == tuple(
        raw for raw, name in zip(CITYSCAPES_IDS, CITYSCAPES19, strict=True) if name in SYNTHIA16
    )


@pytest.mark.parametrize("name", [name for name, layout in LAYOUTS.items() if layout.class_names])
def test_what_is_written_is_read_back(name):
    layout = LAYOUTS[name]
    classes = ClassList(layout.class_names, layout.palette)
    if layout.encoding == "color":
        with pytest.raises(ConfigError, match="are painted"):
            raw_values(name, classes, None, None)
        return
    values, ignored = raw_values(name, classes, None, None)
    found, unknown = read(name, [*values, ignored], classes)
    assert found == [*range(len(values)), IGNORE]
    assert not unknown


def test_the_configured_dataset(configured):
    resolved = configured(
        "source: {root: s, classes: [road, car, sky], ids: {5: road, 6: road, 9: sky, 2: car, 0: ignore}}\n"
        "target: {root: t, layout: cityscapes, classes: [sky, road, car]}\n"
    )
    assert raw_values("dataset", THREE, resolved, "source") == ((5, 2, 9), 0)
    assert raw_values("dataset", THREE, resolved, None) == ((7, 26, 23), 0)
    assert read("dataset", [7, 26, 23, 0, 33], resolved=resolved) == ([0, 1, 2, IGNORE, IGNORE], {})
    with pytest.raises(ConfigError, match="has no value for bus"):
        raw_values("dataset", replace(THREE, names=("road", "car", "bus")), resolved, "source")


@pytest.mark.parametrize(
    ("ids", "told"),
    [
        ("7=0,8=0,9=1,10=2", "'road' has the raw values 7, 8"),
        ("7=0,8=1", "'sky' has no raw value"),
        ("7,8,300", "do not fit an 8-bit file: sky"),
    ],
)
def test_an_exported_class_has_one_value(ids, told):
    with pytest.raises(ConfigError, match=told):
        raw_values(ids, THREE, None, None)


def test_too_many_classes_for_a_label():
    many = ClassList(tuple(f"c{n}" for n in range(255)), ((0, 0, 0),) * 255)
    with pytest.raises(ConfigError, match="255 classes; a label tells 254 apart"):
        labels_layout("train", many, None, None)
    with pytest.raises(ConfigError, match="do not fit"):
        raw_values("train", replace(many, names=(*many.names, "x", "y")), None, None)
