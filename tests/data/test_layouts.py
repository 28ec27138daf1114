"""Every built-in dataset on a small copy of its folders, names, ids and file kinds."""

import numpy as np
import pytest

from calseg_cli.data.catalog import IGNORE, LAYOUTS, find_items, find_layout, make_layout
from calseg_cli.data.check import check_items
from calseg_cli.data.dataset import SegmentationDataset
from calseg_cli.data.labels import read_label
from calseg_cli.errors import ConfigError

CITY_IDS = {7: "road", 11: "building", 23: "sky", 26: "car", 33: "bicycle"}


def classes_in(layout, label):
    return {layout.class_names[index] for index in np.unique(label) if index != IGNORE}


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_is_sound(name):
    layout = make_layout(LAYOUTS[name])
    assert layout == LAYOUTS[name]
    assert find_layout(name).name == name
    assert len(layout.class_ids) == layout.num_classes
    for raw, index in zip(layout.class_ids, range(layout.num_classes), strict=True):
        if layout.encoding != "color":
            assert layout.raw_classes()[raw] == index


@pytest.mark.parametrize(
    ("typed", "meant"), [("citiscapes", "cityscapes"), ("GTA", "gta5"), ("Synthia", "synthia"), ("folder", "folders")]
)
def test_the_nearest_name_comes_first(typed, meant):
    with pytest.raises(ConfigError, match=typed) as caught:
        find_layout(typed)
    assert caught.value.hint.startswith(f"known: {meant}")
    assert all(name in caught.value.hint for name in LAYOUTS)


def test_cityscapes(tmp_path, save_png, make_picture):
    layout = find_layout("cityscapes")
    values = np.array([[*CITY_IDS, 0, 9, 255]], np.uint8)
    for frame in ("aachen/aachen_000000_000019", "bonn/bonn_000001_000019"):
        save_png(tmp_path / f"leftImg8bit/train/{frame}_leftImg8bit.png", make_picture((1, 8)))
        for kind in ("labelIds", "instanceIds", "color"):
            save_png(tmp_path / f"gtFine/train/{frame}_gtFine_{kind}.png", values)
    items = find_items(layout, tmp_path, "train", with_labels=True)
    assert [item.id for item in items] == ["aachen/aachen_000000_000019", "bonn/bonn_000001_000019"]
    label = read_label(items[0].label, layout)
    assert [layout.class_names[index] for index in label[0, :5]] == list(CITY_IDS.values())
    assert (label[0, 5:] == IGNORE).all()


def test_gta5(tmp_path, save_png, make_picture):
    layout = make_layout(find_layout("gta5"), holdout=2)
    palette = np.random.default_rng(0).integers(0, 256, 768).tolist()
    values = np.full((1, 8), 34, np.uint8)  # licence plates
    values[0, :5] = list(CITY_IDS)
    for frame, height in (("00001", 3), ("00002", 4), ("00003", 4)):
        save_png(tmp_path / f"images/{frame}.png", make_picture((height, 8)))
        save_png(tmp_path / f"labels/{frame}.png", np.repeat(values, height, 0), palette=palette)
    items = find_items(layout, tmp_path, "train", with_labels=True)
    assert [item.id for item in items] == ["00001", "00003"]
    dataset = SegmentationDataset(items, layout, size=None, with_labels=True)
    assert [dataset.read(index).original_hw for index in range(2)] == [(3, 8), (4, 8)]
    assert classes_in(layout, dataset.read(0).label) == set(CITY_IDS.values())
    assert [item.id for item in find_items(layout, tmp_path, "val", with_labels=True)] == ["00002"]


@pytest.mark.parametrize(("name", "count"), [("synthia", 16), ("synthia13", 13)])
def test_synthia(tmp_path, save_png, make_picture, encode_png, name, count):
    layout = make_layout(find_layout(name), holdout=None, splits={"train": "train"})
    samples = np.zeros((2, 23, 3), np.uint16)
    samples[..., 0] = np.arange(23)
    samples[..., 1] = 40000  # instances
    save_png(tmp_path / "RGB/0000000.png", make_picture((2, 23)))
    (tmp_path / "GT/LABELS").mkdir(parents=True)
    (tmp_path / "GT/LABELS/0000000.png").write_bytes(encode_png(samples, filters=[1, 4]))
    (item,) = find_items(layout, tmp_path, "train", with_labels=True)
    label = read_label(item.label, layout)
    assert layout.num_classes == count
    assert classes_in(layout, label) == set(layout.class_names)
    names = {3: "road", 4: "sidewalk", 9: "traffic sign", 15: "traffic light", 17: "rider", 1: "sky"}
    assert {raw: layout.class_names[label[0, raw]] for raw in names} == names
    assert all(label[0, raw] == IGNORE for raw in (0, 13, 14, 16, 18, 20, 22))
    assert (label[0, 21] == IGNORE) == (count == 13)  # wall


def test_acdc_and_its_conditions(tmp_path, save_png, make_picture):
    values = np.array([[0, 13, 18, 255]], np.uint8)
    for condition in ("fog", "night", "rain", "snow"):
        frame = f"{condition}/val/GOPR1/GOPR1_frame_7"
        save_png(tmp_path / f"rgb_anon/{frame}_rgb_anon.png", make_picture((1, 4)))
        save_png(tmp_path / f"rgb_anon/{frame}_rgb_anon.png".replace("/val/", "/val_ref/"), make_picture((1, 4)))
        for kind in ("labelTrainIds", "labelIds", "invIds"):
            save_png(tmp_path / f"gt/{frame}_gt_{kind}.png", values)
    layout = find_layout("acdc")
    items = find_items(layout, tmp_path, "val", with_labels=True)
    assert [item.id for item in items] == [f"{c}/GOPR1/GOPR1_frame_7" for c in ("fog", "night", "rain", "snow")]
    assert classes_in(layout, read_label(items[0].label, layout)) == {"road", "car", "bicycle"}
    night = find_items(find_layout("acdc-night"), tmp_path, "val", with_labels=True)
    assert [item.image for item in night] == [items[1].image]


def test_bdd100k_with_strays(tmp_path, save_png, make_picture):
    layout = find_layout("bdd100k")
    for name in ("a-1", "b-2"):
        (tmp_path / "images/10k/train").mkdir(parents=True, exist_ok=True)
        save_png(tmp_path / f"images/10k/train/{name}.jpg", make_picture((3, 4)))
    for name in ("a-1", "c-3"):
        save_png(tmp_path / f"labels/sem_seg/masks/train/{name}.png", np.zeros((3, 4), np.uint8))
    assert [item.id for item in find_items(layout, tmp_path, "train", with_labels=True)] == ["a-1"]
    report = check_items(layout, tmp_path, "train")
    assert (report.unpaired_images.count, report.unpaired_labels.count) == (1, 1)


def test_camvid(tmp_path, save_png, make_picture):
    layout = find_layout("camvid")
    save_png(tmp_path / "train/0001TP_006690.png", make_picture((2, 12)))
    save_png(tmp_path / "trainannot/0001TP_006690.png", np.tile(np.arange(12, dtype=np.uint8), (2, 1)))
    (item,) = find_items(layout, tmp_path, "train", with_labels=True)
    np.testing.assert_array_equal(read_label(item.label, layout)[0], [*range(11), IGNORE])


def test_camvid_in_colours(tmp_path, save_png, make_picture):
    layout = make_layout(find_layout("camvid-color"), holdout=None, splits={"train": "train"})
    colors = np.array([[[128, 128, 128], [64, 0, 64], [128, 0, 192], [192, 128, 64], [0, 0, 0]]], np.uint8)
    save_png(tmp_path / "701_StillsRaw_full/0001TP_006690.png", make_picture((1, 5)))
    save_png(tmp_path / "LabeledApproved_full/0001TP_006690_L.png", colors)
    (item,) = find_items(layout, tmp_path, "train", with_labels=True)
    label = read_label(item.label, layout)[0]
    assert [layout.class_names[index] for index in label[:4]] == ["Sky", "Building", "Road", "Pedestrian"]
    assert label[4] == IGNORE
    assert len(layout.raw_classes()) == 32


def test_published_counts_of_cityscapes_ids():
    """30 label ids and void ones are published: 0 to 33, of which 19 are evaluated."""
    raw = find_layout("cityscapes").raw_classes()
    assert set(raw) == {*range(34), 255}
    assert sum(index != IGNORE for index in raw.values()) == 19
