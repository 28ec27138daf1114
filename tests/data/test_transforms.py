"""Augmentation: image and label stay together, no label is made up, everything follows from the generator."""

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from calseg_cli.data.catalog import IGNORE
from calseg_cli.data.transforms import PLAIN, Augmentation, augment, jittered
from calseg_cli.errors import ConfigError

LEVELS = np.array([10, 90, 170, 250], np.uint8)  # grey level of classes 0 to 3


def scene(hw, seed, block=8):
    """Blocks of four classes, and an image whose grey level says the class."""
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 4, (-(-hw[0] // block), -(-hw[1] // block)))
    label = np.kron(blocks, np.ones((block, block), int))[: hw[0], : hw[1]].astype(np.uint8)
    return np.repeat(LEVELS[label][..., None], 3, axis=2), label


def inner(label, margin):
    """Pixels whose surroundings are of one class: resizing mixes nothing there."""
    alike = np.ones(label.shape, bool)
    padded = np.pad(label.astype(int), margin, constant_values=-1)
    for down in range(2 * margin + 1):
        for right in range(2 * margin + 1):
            alike &= padded[down : down + label.shape[0], right : right + label.shape[1]] == label
    return alike


HW = st.tuples(st.integers(9, 60), st.integers(9, 60))


@given(
    seed=st.integers(0, 2**32 - 1),
    hw=HW,
    crop=st.none() | HW,
    scale=st.floats(0.5, 2.5),
    spread=st.floats(0, 0.5),
    flip=st.sampled_from([0.0, 0.5, 1.0]),
)
@settings(max_examples=150, deadline=None)
def test_image_and_label_move_together(seed, hw, crop, scale, spread, flip):
    image, label = scene(hw, seed)
    setting = Augmentation(scale=(scale, scale + spread), crop=crop, flip=flip)
    changed, moved = augment(image, label, setting, np.random.default_rng(seed))
    assert changed.shape == (*moved.shape, 3)
    assert moved.shape == (crop or hw)
    assert changed.dtype == moved.dtype == np.uint8
    assert changed.flags.c_contiguous
    assert moved.flags.c_contiguous
    assert set(np.unique(moved)) <= {*np.unique(label), IGNORE}
    sure = inner(moved, 3) & (moved != IGNORE)
    np.testing.assert_array_equal(changed[sure][:, 0], LEVELS[moved[sure]])


@given(seed=st.integers(0, 2**32 - 1), hw=HW, crop=HW)
@settings(max_examples=60, deadline=None)
def test_at_scale_one_a_crop_is_a_copy(seed, hw, crop):
    image, label = scene(hw, seed, block=1)
    changed, moved = augment(image, label, Augmentation(crop=crop), np.random.default_rng(seed))
    inside = moved != IGNORE
    np.testing.assert_array_equal(changed[inside][:, 0], LEVELS[moved[inside]])
    assert inside.sum() == min(hw[0], crop[0]) * min(hw[1], crop[1])


def test_plain_changes_nothing():
    image, label = scene((20, 30), 0, block=1)
    changed, moved = augment(image, label, PLAIN, np.random.default_rng(0))
    np.testing.assert_array_equal(changed, image)
    np.testing.assert_array_equal(moved, label)
    assert augment(image, None, PLAIN, np.random.default_rng(0))[1] is None


def test_flip_is_a_mirror():
    image, label = scene((20, 30), 1, block=1)
    changed, moved = augment(image, label, Augmentation(flip=1.0), np.random.default_rng(0))
    np.testing.assert_array_equal(changed, image[:, ::-1])
    np.testing.assert_array_equal(moved, label[:, ::-1])


def test_every_place_of_a_crop_occurs():
    image, label = scene((4, 5), 2, block=1)
    image[..., 0] = np.arange(20).reshape(4, 5)
    setting = Augmentation(crop=(3, 3), flip=0.0)
    corners = {int(augment(image, label, setting, np.random.default_rng(n))[0][0, 0, 0]) for n in range(200)}
    assert corners == {0, 1, 2, 5, 6, 7}


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=20, deadline=None)
def test_the_generator_decides_everything(seed):
    image, label = scene((24, 30), seed)
    setting = Augmentation((0.5, 2.0), (20, 20), 0.5, color=0.7, blur=0.7)
    first, second = (augment(image, label, setting, np.random.default_rng(seed)) for _ in range(2))
    np.testing.assert_array_equal(first[0], second[0])
    np.testing.assert_array_equal(first[1], second[1])


def test_switching_colour_on_leaves_geometry_as_it_was():
    image, label = scene((40, 40), 3)
    geometry = {"scale": (0.5, 2.0), "crop": (30, 30)}
    for seed in range(10):
        _, plain = augment(image, label, Augmentation(**geometry), np.random.default_rng(seed))
        _, colored = augment(image, label, Augmentation(**geometry, color=1, blur=1), np.random.default_rng(seed))
        np.testing.assert_array_equal(plain, colored)


def test_outside_is_ignored_and_of_the_mean_colour():
    image = np.full((10, 10, 3), (200, 100, 50), np.uint8)
    label = np.zeros((10, 10), np.uint8)
    changed, moved = augment(image, label, Augmentation(scale=(0.5, 0.5), crop=(20, 20)), np.random.default_rng(0))
    assert (moved == 0).sum() == 25
    assert (moved == IGNORE).sum() == 375
    assert (changed == image[0, 0]).all()


def test_the_input_is_left_alone():
    image, label = scene((24, 24), 4)
    before = image.copy(), label.copy()
    augment(image, label, Augmentation((0.5, 2.0), None, 1.0, color=1.0, blur=1.0), np.random.default_rng(0))
    np.testing.assert_array_equal(image, before[0])
    np.testing.assert_array_equal(label, before[1])


def colors(pixels, strength, draws):
    return np.asarray(jittered(Image.fromarray(pixels), strength, np.array(draws, float))).astype(int)


def test_jitter_one_by_one():
    """Each of the four against its plain definition, on colours that nothing cuts off."""
    pixels = np.random.default_rng(0).integers(90, 150, (6, 6, 3), dtype=np.uint8)
    grey = pixels @ [0.299, 0.587, 0.114]
    np.testing.assert_allclose(colors(pixels, 0.5, [0, 0, 0, 0]), pixels, atol=1)
    np.testing.assert_allclose(colors(pixels, 0.5, [0.4, 0, 0, 0]), pixels * 1.2, atol=1)
    mean = grey.mean()
    np.testing.assert_allclose(colors(pixels, 0.5, [0, 0.6, 0, 0]), mean + (pixels - mean) * 1.3, atol=2)
    np.testing.assert_allclose(colors(pixels, 1.0, [0, 0, -1, 0]), np.repeat(grey[..., None], 3, 2), atol=1)
    turned = colors(pixels, 1.0, [0, 0, 0, 0.5])
    np.testing.assert_allclose(turned @ [0.299, 0.587, 0.114], grey, atol=1.5)


def test_half_a_turn_of_hue_is_the_opposite_colour():
    """A strength of 2.5 turns by half a circle: every colour lands as far on the other side of its grey."""
    pixels = np.random.default_rng(1).integers(100, 150, (6, 6, 3), dtype=np.uint8)
    grey = (pixels @ [0.299, 0.587, 0.114])[..., None]
    np.testing.assert_allclose(colors(pixels, 2.5, [0, 0, 0, 1.0]), 2 * grey - pixels, atol=1.5)
    small = [colors(pixels, 0.5, [0, 0, 0, draw]) for draw in (-1.0, 1.0)]
    assert np.abs(small[0] - small[1]).max() > 10


def test_blur_smooths_and_keeps_the_mean():
    image = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    setting = Augmentation(flip=0.0, blur=1.0, blur_sigma=(1.5, 1.5))
    changed, _ = augment(image, None, setting, np.random.default_rng(0))
    assert changed.std() < 0.5 * image.std()
    assert abs(changed.mean() - image.mean()) < 2


@pytest.mark.parametrize(("keys", "words"), [({"scale": (2.0, 1.0)}, "scale"), ({"crop": (0, 4)}, "crop")])
def test_mistakes(keys, words):
    with pytest.raises(ConfigError, match=words):
        Augmentation(**keys)


def test_fast_enough():
    image, label = scene((240, 320), 5)
    setting = Augmentation((0.5, 2.0), (240, 320), color=1.0, blur=1.0)
    times = []
    for seed in range(15):
        start = time.perf_counter()
        augment(image, label, setting, np.random.default_rng(seed))
        times.append(time.perf_counter() - start)
    assert np.median(times) < 0.04  # some 4 ms alone on a core; a busy machine gets ten times that
