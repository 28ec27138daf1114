"""The check of a split: each kind of fault found, counted and said."""

import json

import numpy as np
import pytest
from PIL import Image

from calseg_cli.data.catalog import find_layout, make_layout
from calseg_cli.data.check import check_items
from calseg_cli.errors import DataError

LAYOUT = make_layout(find_layout("folders"), classes=["a", "b", "c"])


def test_a_sound_split_has_no_problems(many):
    report = check_items(LAYOUT, many, "train")
    assert report.problems == []
    assert (report.images, report.labelled, dict(report.sizes)) == (5, 5, {(12, 16): 5})
    assert sum(report.class_pixels) + report.ignored_pixels == 5 * 12 * 16


def test_counts_are_those_of_the_files(many):
    """Frequencies against the red channel, which encodes the label."""
    report = check_items(LAYOUT, many, "train")
    reds = [np.asarray(Image.open(path))[..., 0] for path in sorted((many / "train/images").iterdir())]
    for index in range(3):
        assert report.class_pixels[index] == sum(int((red == index * 100).sum()) for red in reds)
        assert report.class_images[index] == sum(bool((red == index * 100).any()) for red in reds)


def test_everything_that_is_wrong(folders, save_png):
    folder = folders / "train"
    save_png(folder / "images/d.png", np.zeros((6, 8, 3), np.uint8))
    save_png(folder / "labels/d.png", np.zeros((6, 9), np.uint8))
    save_png(folder / "images/e.png", np.zeros((6, 8, 3), np.uint8))
    save_png(folder / "labels/e.png", np.full((6, 8), 9, np.uint8))
    whole = (folder / "images/a.png").read_bytes()
    (folder / "images/a.png").write_bytes(whole[: len(whole) // 2])
    save_png(folder / "images/f.png", np.zeros((6, 8, 3), np.uint8))
    (folder / "labels/f.png").write_bytes(b"")
    layout = make_layout(LAYOUT, classes=["a", "b", "c", "never"])
    report = check_items(layout, folders, "train")
    assert report.images == 6
    assert report.labelled == 2  # b/one and e
    counts = [report.unpaired_images, report.unpaired_labels, report.unreadable, report.size_mismatch]
    assert [finding.count for finding in counts] == [1, 1, 2, 1]
    assert report.unknown_values == {"9": 48}
    assert report.empty_classes == ["never"]
    text = "\n".join(report.problems)
    for words in ("c.png", "z.png", "a.png", "f.png", "6x9", "9 (48 pixels)", "ignore: [9]", "no pixel of never"):
        assert words in text
    assert len(report.problems) == 6
    assert all("\n" not in line for line in report.problems)
    document = json.loads(json.dumps(report.to_dict()))
    assert document["size_mismatch"]["count"] == 1
    assert document["classes"]["never"] == {"pixels": 0, "images": 0}
    assert document["problems"] == report.problems


def test_at_most_five_examples(many):
    for path in (many / "train/labels").iterdir():
        path.write_bytes(b"")
    for number in range(5, 9):
        (many / f"train/images/{number}.png").write_bytes(b"")
        (many / f"train/labels/{number}.png").write_bytes(b"")
    report = check_items(LAYOUT, many, "train")
    assert report.unreadable.count == 13
    assert len(report.unreadable.examples) == 5


def test_a_target_without_labels_is_sound(folders, touched):
    report = check_items(LAYOUT, folders, "test")
    assert (report.images, report.labelled, report.problems, report.empty_classes) == (1, 0, [], [])
    no_classes = make_layout(find_layout("folders"))
    assert check_items(no_classes, folders, "test").problems == []


def test_a_class_missing_outside_train_is_only_a_remark(many):
    (many / "val").symlink_to(many / "train")
    layout = make_layout(LAYOUT, classes=["a", "b", "c", "never"])
    assert check_items(layout, many, "val").problems == []
    assert check_items(layout, many, "val").remarks == ["no pixel of never"]


def test_labels_of_the_other_split_are_no_strays(many):
    layout = make_layout(LAYOUT, holdout=2)
    assert check_items(layout, many, "val").unpaired_labels.count == 0
    assert check_items(layout, many, "val").images == 2


def test_progress_and_emptiness(many, tmp_path):
    told = []
    check_items(LAYOUT, many, "train", progress=lambda done, total: told.append((done, total)))
    assert told == [(number, 5) for number in range(1, 6)]
    with pytest.raises(DataError):
        check_items(LAYOUT, tmp_path / "nothing", "train")


@pytest.mark.real
def test_real_scenes(real_data):
    names = [f"c{n}" for n in range(11)]
    root = real_data / "camvid_day_to_dusk"
    report = check_items(make_layout(find_layout("folders"), classes=names), root / "target", "test")
    assert report.problems == []
    assert (report.images, report.labelled, dict(report.sizes)) == (62, 62, {(360, 480): 62})
    published = json.loads((root / "stats.json").read_text())["target/test"]["pixels"]
    assert report.class_pixels == [published.get(str(index), 0) for index in range(11)]
    assert report.ignored_pixels == published["255"]
