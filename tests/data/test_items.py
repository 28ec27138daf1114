"""Images of a split and their labels: paired by name, sorted, and never more touched than asked for."""

import logging

import pytest

from calseg_cli.data.catalog import find_items, find_layout, make_layout
from calseg_cli.errors import DataError

LAYOUT = make_layout(find_layout("folders"), classes=["a", "b", "c"])
FLAT = make_layout(LAYOUT, images="images/{path}.*", labels="labels/{path}.png")


def ids(items):
    return [item.id for item in items]


def flat(root, count, labelled=True):
    for number in range(count):
        for folder in ("images", "labels") if labelled else ("images",):
            (root / folder).mkdir(exist_ok=True)
            (root / folder / f"{number:02}.png").touch()
    return root


def test_pairs_are_sorted_and_the_unpaired_are_told_once(folders, caplog):
    with caplog.at_level(logging.WARNING):
        items = find_items(LAYOUT, folders, "train", with_labels=True)
    assert ids(items) == ["a", "b/one"]
    assert all(item.label.name == item.image.name for item in items)
    assert len(caplog.records) == 1
    assert "1 of 3 images" in caplog.text
    assert "calseg data check" in caplog.text


def test_without_labels_no_label_folder_is_touched(folders, touched):
    touched.clear()
    items = find_items(LAYOUT, folders, "train", with_labels=False)
    assert ids(items) == ["a", "b/one", "c"]
    assert all(item.label is None for item in items)
    assert any("/images" in path for path in touched)
    assert not any("/labels" in path for path in touched)
    touched.clear()
    find_items(LAYOUT, folders, "train", with_labels=True)
    assert any("/labels" in path for path in touched)  # the ear is not deaf


def test_labels_may_be_absent_where_they_are_not_asked_for(folders):
    assert ids(find_items(LAYOUT, folders, "test", with_labels=False)) == ["t"]
    with pytest.raises(DataError, match="labels"):
        find_items(LAYOUT, folders, "test", with_labels=True)


def test_holdout_divides_train(tmp_path):
    layout = make_layout(FLAT, holdout=3)
    root = flat(tmp_path, 10)
    train, val = (ids(find_items(layout, root, role, with_labels=True)) for role in ("train", "val"))
    assert val == ["02", "05", "08"]
    assert sorted(train + val) == [f"{number:02}" for number in range(10)]
    with pytest.raises(DataError, match="no test split"):
        find_items(layout, root, "test", with_labels=True)


def test_holdout_takes_val_from_the_train_folder(folders):
    layout = make_layout(LAYOUT, holdout=3)
    assert ids(find_items(layout, folders, "val", with_labels=False)) == ["c"]
    assert ids(find_items(layout, folders, "train", with_labels=False)) == ["a", "b/one"]
    assert ids(find_items(layout, folders, "test", with_labels=False)) == ["t"]


def test_lists_pick_images(tmp_path):
    root = flat(tmp_path, 6)
    (tmp_path / "val.txt").write_text("# drives of March\n03\n\n01\n")
    layout = make_layout(FLAT, lists={"val": tmp_path / "val.txt"})
    assert ids(find_items(layout, root, "val", with_labels=True)) == ["01", "03"]
    with pytest.raises(DataError, match="no train split, only val"):  # not silently the same images
        find_items(layout, root, "train", with_labels=True)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("07\n1\n", "2 ids without an image, such as '07'"),
        ("", "is empty"),
        (b"\xff", "UTF-8"),
        (None, "cannot be read"),
    ],
)
def test_bad_lists(tmp_path, content, words):
    root = flat(tmp_path, 3)
    file = tmp_path / "list.txt"
    if content is not None:
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=words) as caught:
        find_items(make_layout(FLAT, lists={"train": file}), root, "train", with_labels=True)
    assert "list.txt" in caught.value.message


def test_without_splits_train_is_test_but_never_val(tmp_path):
    root = flat(tmp_path, 2)
    assert find_items(FLAT, root, "train", with_labels=True) == find_items(FLAT, root, "test", with_labels=True)
    with pytest.raises(DataError, match="no val split") as caught:
        find_items(FLAT, root, "val", with_labels=True)
    assert "holdout" in caught.value.hint


def test_mistakes(tmp_path, folders):
    def message(layout, root, role, with_labels=False):
        with pytest.raises(DataError) as caught:
            find_items(layout, root, role, with_labels=with_labels)
        assert caught.value.hint
        return caught.value.message

    assert "nowhere is not a folder" in message(LAYOUT, tmp_path / "nowhere", "train")
    assert "val/images is not a folder" in message(LAYOUT, folders, "val")
    assert "no split 'dev'" in message(LAYOUT, folders, "dev")
    assert "has no val split, only train" in message(make_layout(LAYOUT, splits={"train": "train"}), folders, "val")
    assert "holds no image that fits {path}.bmp" in message(
        make_layout(LAYOUT, images="{split}/images/{path}.bmp"), folders, "train"
    )
    assert "has none" in message(make_layout(LAYOUT, labels=None), folders, "train", with_labels=True)
    (folders / "train/images/a.jpg").touch()
    assert "same id 'a'" in message(LAYOUT, folders, "train")


def test_no_pair_at_all_shows_both_names(tmp_path):
    for name in ("images/frame_1.png", "labels/label_1.png"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    with pytest.raises(DataError, match=r"'frame_1'.*'label_1'"):
        find_items(FLAT, tmp_path, "train", with_labels=True)
    (tmp_path / "labels/label_1.png").unlink()
    with pytest.raises(DataError, match=r"labels holds no file"):
        find_items(FLAT, tmp_path, "train", with_labels=True)


@pytest.mark.real
def test_real_scenes(real_data):
    root = real_data / "camvid_day_to_dusk"
    layout = make_layout(find_layout("folders"), classes=[f"c{n}" for n in range(11)])
    counts = [len(find_items(layout, root / "source", role, with_labels=True)) for role in ("train", "val", "test")]
    assert counts == [305, 86, 85]
    dusk = make_layout(layout, splits={"train": "adapt", "test": "test"})
    assert len(find_items(dusk, root / "target", "train", with_labels=False)) == 62
