"""Criteria without labels: entropy and density against plain float64 sums, any order, and what counts as collapse."""

import math

import numpy as np
import pytest
import torch

from calseg_cli.methods.checkpoint_criteria import Outlook, OutlookSums, collapse, neighbour_entropy, sample


def scene(seed, classes=5, size=(9, 14), scale=3.0):
    return torch.from_numpy(np.random.default_rng(seed).normal(0, scale, (classes, *size)).astype(np.float32))


def outlook_of(*images):
    sums = OutlookSums()
    for image in images:
        sums.add(image)
    return sums.outlook()


def shares(*values):
    return Outlook(0.5, 0.5, 0.5, np.array(values, np.float64), 1000)


def softmax(logits):
    z = logits.double().numpy().reshape(len(logits), -1)
    e = np.exp(z - z.max(axis=0))
    return e / e.sum(axis=0)


def test_entropy_confidence_and_shares_are_means_over_all_pixels():
    images = [scene(0), scene(1, size=(20, 3)), scene(2, size=(1, 1))]
    p = np.concatenate([softmax(image) for image in images], axis=1)
    found = outlook_of(*images)
    assert found.pixels == p.shape[1] == 9 * 14 + 60 + 1
    assert found.entropy == pytest.approx((-(p * np.log(p)).sum(axis=0) / math.log(5)).mean(), abs=1e-6)
    assert found.confidence == pytest.approx(p.max(axis=0).mean(), abs=1e-6)
    np.testing.assert_allclose(found.class_shares, np.bincount(p.argmax(axis=0), minlength=5) / p.shape[1])


def test_density_is_the_entropy_of_a_softmax_over_the_other_pixels():
    p = softmax(scene(3, size=(4, 5))).T
    unit = p / np.sqrt((p * p).sum(axis=1, keepdims=True))
    expected = []
    for place in range(20):
        others = np.exp(np.delete(unit @ unit[place], place) / 0.05)
        q = others / others.sum()
        expected.append(-(q * np.log(q)).sum() / math.log(19))
    np.testing.assert_allclose(neighbour_entropy(torch.from_numpy(p)), expected, atol=1e-12)
    assert outlook_of(scene(3, size=(4, 5))).neighbourhood == pytest.approx(np.mean(expected), abs=1e-6)


def test_the_order_of_images_changes_no_bit():
    images = [scene(seed, scale=1 + seed) for seed in range(12)]
    assert outlook_of(*images) == outlook_of(*reversed(images))
    assert outlook_of(*images) != outlook_of(*images[1:])


@pytest.mark.parametrize("scale", [0.0, 1e4])
def test_entropy_is_one_where_uniform_and_zero_where_sure(scale):
    found = outlook_of(scene(0, scale=1.0) * scale)
    assert found.entropy == pytest.approx(1.0 if scale == 0 else 0.0, abs=1e-6)
    assert 0 <= found.entropy <= 1 + 1e-12
    assert found.confidence == pytest.approx(0.2 if scale == 0 else 1.0)


def test_the_rows_of_images_add_up_to_the_outlook():
    sums = OutlookSums()
    for seed in range(3):
        sums.add(scene(seed, size=(3 + seed, 7)))
    columns, found = sums.columns, sums.outlook()
    assert columns["pixels"].tolist() == [21, 28, 35]
    assert columns["entropy"].sum() / columns["pixels"].sum() == pytest.approx(found.entropy, rel=1e-12)
    assert columns["neighbourhood"].sum() / columns["sampled"].sum() == pytest.approx(found.neighbourhood, rel=1e-12)


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (16, 16), (17, 200)])
def test_sampled_pixels_are_distinct_and_lie_all_over(size):
    height, width = size
    places = torch.arange(height * width, dtype=torch.float32).reshape(1, height, width)
    picked = sample(places).flatten().tolist()
    rows = {int(place) // width for place in picked}
    assert len(set(picked)) == len(picked) == min(16, height) * min(16, width)
    assert len(rows) == min(16, height)
    assert min(rows) <= height / 16
    assert max(rows) >= height - 1 - height / 16


def test_float16_and_classes_and_emptiness():
    found = outlook_of(scene(0).half())
    assert found.entropy == pytest.approx(outlook_of(scene(0)).entropy, abs=1e-3)
    empty = OutlookSums().outlook()
    assert math.isnan(empty.entropy)
    assert empty.pixels == 0
    assert math.isnan(outlook_of(scene(0, size=(1, 2))).neighbourhood)  # one neighbour is no neighbourhood
    with pytest.raises(ValueError, match="4 classes after others of 5"):
        outlook_of(scene(0), scene(0, classes=4))
    with pytest.raises(ValueError, match="C,h,w"):
        OutlookSums().add(torch.zeros(2, 3))


def test_a_constant_network_has_the_best_scores_and_is_refused():
    images = [scene(seed) for seed in range(3)]
    constant = torch.zeros(5, 9, 14)
    constant[2] = 50
    start, gone = outlook_of(*images), outlook_of(constant)
    assert gone.entropy < start.entropy
    assert gone.neighbourhood > start.neighbourhood
    assert collapse(start, start) is None
    assert "1 of the 5 classes" in collapse(gone, start)


def test_collapse_counts_the_classes_of_the_start_alone():
    start = shares(0.4, 0.3, 0.2, 0.1, 0.0)
    assert collapse(shares(0.5, 0.3, 0.2, 0.0, 0.0), start) is None  # 3 of 4 is three quarters
    assert "2 of the 4" in collapse(shares(0.5, 0.5, 0.0, 0.0, 0.0), start)
    assert "2 of the 4" in collapse(shares(0.5, 0.3, 0.0, 0.0, 0.2), start)  # a new class is no old one
    assert "3 of the 4" in collapse(shares(0.5, 0.3, 0.2, 0.0, 0.0), start, kept_classes=0.8)
    rare = shares(0.5, 0.49995, 0.00005, 0.0, 0.0)
    assert "2 of the 4" in collapse(rare, start)
    assert collapse(rare, start, least_share=1e-5) is None
    assert collapse(shares(1.0, 0.0, 0.0, 0.0, 0.0), start, kept_classes=0.0, most_moved=1.0) is None


def test_collapse_measures_how_many_pixels_have_moved():
    start = shares(0.9, 0.1)
    assert collapse(shares(0.4, 0.6), start) is None  # exactly half
    assert "51%" in collapse(shares(0.39, 0.61), start)
    assert collapse(shares(0.39, 0.61), start, most_moved=0.6) is None


def test_answers_that_are_no_numbers_are_refused():
    broken = outlook_of(torch.full((3, 4, 4), math.nan))
    start = outlook_of(scene(0, classes=3))
    assert "finite" in collapse(broken, start)
    with pytest.raises(ValueError, match="5 classes beside 3"):
        collapse(outlook_of(scene(0)), start)
