"""Images as a torch dataset: sizes, what is read and when, and what is refused."""

import pickle

import numpy as np
import pytest
from PIL import Image

from calseg_cli.data.catalog import IGNORE, Item, find_items, find_layout, make_layout
from calseg_cli.data.dataset import SegmentationDataset
from calseg_cli.errors import DataError

LAYOUT = make_layout(find_layout("folders"), classes=["a", "b", "c"])


def opened(root, *, size=None, with_labels=True):
    items = find_items(LAYOUT, root, "train", with_labels=True)
    return SegmentationDataset(items, LAYOUT, size=size, with_labels=with_labels)


def test_reads_what_is_stored(many):
    dataset = opened(many)
    assert len(dataset) == 5
    for sample in (dataset[0], dataset.read(4)):
        stored = np.asarray(Image.open(many / f"train/images/{sample.id}.png"))
        np.testing.assert_array_equal(sample.image, stored)
        np.testing.assert_array_equal(sample.label * 100, stored[..., 0])
        assert sample.original_hw == (12, 16)


@pytest.mark.parametrize("size", [(6, 8), (24, 32), (7, 50), (12, 16)])
def test_size_is_that_of_the_network_for_training(many, size):
    sample = opened(many, size=size).read(0)
    assert sample.image.shape == (*size, 3)
    assert sample.label.shape == size
    assert sample.original_hw == (12, 16)
    assert set(np.unique(sample.label)) <= set(np.unique(opened(many).read(0).label))


def test_halving_averages_the_image_and_picks_from_the_label(tmp_path, save_png):
    """Blocks of one value survive; fine stripes become their mean, as antialiasing must make them."""
    stripes = np.zeros((8, 16, 3), np.uint8)
    stripes[:, ::2] = 200
    save_png(tmp_path / "train/images/x.png", stripes)
    save_png(
        tmp_path / "train/labels/x.png", np.kron(np.array([[0, 1], [2, 255]], np.uint8), np.ones((4, 8), np.uint8))
    )
    sample = opened(tmp_path, size=(4, 4)).read(0)
    assert np.abs(sample.image.astype(int) - 100).max() <= 15
    np.testing.assert_array_equal(sample.label, np.kron([[0, 1], [2, 255]], np.ones((2, 2))))


def test_evaluation_keeps_the_label_at_its_own_size(many):
    sample = opened(many, size=(6, 8)).read_for_evaluation(1)
    assert sample.image.shape == (6, 8, 3)
    np.testing.assert_array_equal(sample.label, opened(many).read(1).label)


def test_without_labels_none_is_opened(many, touched):
    dataset = opened(many, with_labels=False)
    touched.clear()
    assert dataset.read(0).label is None
    assert dataset.read_for_evaluation(0).label is None
    assert dataset.read_label(0) is None
    assert any("/images/" in path for path in touched)
    assert not any("/labels/" in path for path in touched)
    assert all(item.label is None for item in dataset.items)


def test_labels_that_are_wanted_must_be_there(many):
    with pytest.raises(DataError, match="1 images have no label, such as 'x'"):
        SegmentationDataset([Item("x", many / "x.png", None)], LAYOUT, size=None, with_labels=True)


@pytest.mark.parametrize("read", ["read", "read_for_evaluation"])
def test_image_and_label_of_different_size(many, save_png, read):
    save_png(many / "train/labels/2.png", np.zeros((12, 15), np.uint8))
    with pytest.raises(DataError, match=r"12x16.*12x15") as caught:
        getattr(opened(many, size=(6, 8)), read)(2)
    assert "images/2.png" in caught.value.message
    assert "labels/2.png" in caught.value.message


def test_picking_and_counting(many):
    dataset = opened(many, size=(6, 8))
    part = dataset.subset([3, 1])
    assert [part.read(index).id for index in range(2)] == ["3", "1"]
    assert (part.size, part.num_classes) == ((6, 8), 3)
    labels = [dataset.read_label(index) for index in range(5)]
    assert labels[0].shape == (12, 16)
    np.testing.assert_array_equal(
        dataset.count_pixels(), [sum(int((label == index).sum()) for label in labels) for index in range(3)]
    )
    np.testing.assert_array_equal(dataset.read_image("3"), opened(many).read(3).image)
    np.testing.assert_array_equal(dataset.read_image(3), dataset.read_image("3"))
    with pytest.raises(KeyError):
        dataset.read_image("30")


def test_ignored_pixels_are_not_counted(folders):
    dataset = SegmentationDataset(
        find_items(LAYOUT, folders, "train", with_labels=True), LAYOUT, size=None, with_labels=True
    )
    labels = [dataset.read_label(index) for index in range(len(dataset))]
    ignored = sum(int((label == IGNORE).sum()) for label in labels)
    assert ignored > 0
    assert dataset.count_pixels().sum() == sum(label.size for label in labels) - ignored


def test_can_be_sent_to_another_process(many):
    dataset = pickle.loads(pickle.dumps(opened(many, size=(6, 8))))
    np.testing.assert_array_equal(dataset.read(0).image, opened(many, size=(6, 8)).read(0).image)
