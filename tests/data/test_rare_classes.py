"""Rare-class sampling: the formula, the frequencies, the images that stand for a class, and what a draw depends on."""

import math
import pickle
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calseg_cli.data.catalog import IGNORE, find_items, find_layout, make_layout
from calseg_cli.data.dataset import SegmentationDataset, resized_label
from calseg_cli.data.rare_classes import RareClassSampler, class_probabilities
from calseg_cli.errors import ConfigError, DataError

LAYOUT = make_layout(find_layout("folders"), classes=["common", "rare", "absent", "everywhere"])
# Pixels of classes 0, 1 and 3 by image of 10x10; what is missing is ignored.
COUNTS = [(90, 0, 10), (80, 12, 3), (40, 3, 50), (0, 0, 0), (99, 0, 1)]


def opened(root, *, size=None, with_labels=True):
    items = find_items(LAYOUT, root, "train", with_labels=with_labels)
    return SegmentationDataset(items, LAYOUT, size=size, with_labels=with_labels)


@pytest.fixture
def counted(tmp_path, save_png, make_picture):
    for number, counts in enumerate(COUNTS):
        label = np.full(100, IGNORE, np.uint8)
        label[: sum(counts)] = np.repeat(np.array([0, 1, 3], np.uint8), counts)
        save_png(tmp_path / f"train/images/{number}.png", make_picture((10, 10), number))
        save_png(tmp_path / f"train/labels/{number}.png", label.reshape(10, 10))
    return opened(tmp_path)


def formula(pixels, temperature):
    """In plain Python floats, the largest exponent taken out by hand."""
    shares = [count / sum(pixels) for count in pixels]
    least = min(share for share in shares if share)
    odds = [math.exp((least - share) / temperature) if share else 0.0 for share in shares]
    return [odd / math.fsum(odds) for odd in odds]


@given(
    pixels=st.lists(st.integers(0, 10**11), min_size=1, max_size=20).filter(any),
    temperature=st.floats(1e-4, 10),
)
@settings(max_examples=100, deadline=None)
def test_formula(pixels, temperature):
    probabilities = class_probabilities(np.array(pixels), temperature)
    np.testing.assert_allclose(probabilities, formula(pixels, temperature), rtol=1e-9, atol=1e-300)
    assert probabilities.sum() == pytest.approx(1)
    assert (probabilities[np.array(pixels) == 0] == 0).all()
    present = np.flatnonzero(pixels)
    assert probabilities[present].argmax() == np.array(pixels)[present].argmin()


def test_temperature_between_all_alike_and_the_rarest_alone():
    pixels = np.array([500, 300, 0, 200])
    np.testing.assert_allclose(class_probabilities(pixels, 1e6), [1 / 3, 1 / 3, 0, 1 / 3], atol=1e-6)
    np.testing.assert_allclose(class_probabilities(pixels, 1e-3), [0, 0, 0, 1], atol=1e-6)


def test_pixels_are_counted_over_all_images(counted):
    total = [309, 15, 0, 64]
    np.testing.assert_allclose(RareClassSampler(counted).probabilities, formula(total, 0.01), rtol=1e-9)
    np.testing.assert_allclose(RareClassSampler(counted, 0.3).probabilities, formula(total, 0.3), rtol=1e-9)


def test_they_are_counted_at_the_input_size(counted, tmp_path):
    small = opened(tmp_path, size=(7, 5))
    labels = np.stack([resized_label(counted.read_label(index), (7, 5)) for index in range(5)])
    total = [int((labels == value).sum()) for value in range(4)]
    np.testing.assert_allclose(RareClassSampler(small, 0.3).probabilities, formula(total, 0.3), rtol=1e-9)
    assert not np.allclose(RareClassSampler(small, 0.3).probabilities, RareClassSampler(counted, 0.3).probabilities)


def draws(sampler, number, seed=0):
    return [sampler.draw(seed, step, slot) for step in range(number // 2) for slot in range(2)]


def test_classes_come_as_often_as_they_should(counted):
    sampler = RareClassSampler(counted, temperature=0.5)
    drawn = Counter(label for _, label in draws(sampler, 6000))
    assert drawn[2] == 0
    for label, probability in enumerate(sampler.probabilities):
        assert abs(drawn[label] - 6000 * probability) <= 4 * math.sqrt(6000 * probability * (1 - probability))


@pytest.mark.parametrize(
    ("min_pixels", "expected"),
    [
        (1, {0: {0, 1, 2, 4}, 1: {1, 2}, 3: {0, 1, 2, 4}}),
        (0, {0: {0, 1, 2, 4}, 1: {1, 2}, 3: {0, 1, 2, 4}}),
        (10, {0: {0, 1, 2, 4}, 1: {1}, 3: {0, 2}}),
        (60, {0: {0, 1, 4}, 1: {1}, 3: {2}}),  # no image has 60 pixels of 1 or 3: the one with most
        (1000, {0: {4}, 1: {1}, 3: {2}}),
    ],
)
def test_an_image_shows_enough_of_its_class(counted, min_pixels, expected):
    drawn = Counter(draws(RareClassSampler(counted, 1.0, min_pixels), 1600))
    for label, images in expected.items():
        numbers = {image: count for (image, other), count in drawn.items() if other == label}
        assert set(numbers) == images
        mean = sum(numbers.values()) / len(numbers)
        assert all(abs(count - mean) <= 4.5 * math.sqrt(mean) for count in numbers.values())  # all alike


def test_a_draw_follows_from_its_numbers_alone(counted):
    sampler = RareClassSampler(counted, 0.5, 1)
    others = RareClassSampler(counted, 0.5, 1, 2), pickle.loads(pickle.dumps(sampler))
    global_state = np.random.get_state()[1].copy()
    assert all(draws(other, 100) == draws(sampler, 100) for other in others)
    assert draws(sampler, 100, seed=1) != draws(sampler, 100)
    assert len({sampler.draw(0, 0, slot) for slot in range(50)}) > 4
    assert len({sampler.draw(0, step, 0) for step in range(50)}) > 4
    assert (np.random.get_state()[1] == global_state).all()


def test_it_reads_labels_once_and_no_image(counted, touched):
    sampler = RareClassSampler(counted)
    draws(sampler, 100)
    assert sum(path.endswith(".png") for path in touched) == 5
    assert not any("/images/" in path for path in touched)


def test_mistakes(counted, tmp_path):
    with pytest.raises(ConfigError, match="temperature 0"):
        RareClassSampler(counted, temperature=0.0)
    with pytest.raises(DataError, match="no label shows any class") as caught:
        RareClassSampler(counted.subset([3]))
    assert caught.value.hint
    with pytest.raises(ValueError, match="labels"):
        RareClassSampler(opened(tmp_path, with_labels=False))
    (tmp_path / "train/labels/2.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"2\.png"):
        RareClassSampler(counted)
