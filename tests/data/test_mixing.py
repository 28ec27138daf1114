"""Mixing: what is pasted, that nothing is lost between the two mixes, and what a draw depends on."""

import math
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from calseg_cli.data.catalog import IGNORE
from calseg_cli.data.mixing import class_mix_masks, mixed


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def scenes(seed, number=3, hw=(6, 7), classes=5, ignored=0.2):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, (number, *hw))
    labels[rng.random(labels.shape) < ignored] = IGNORE
    return torch.from_numpy(labels)


SEED = st.integers(0, 2**32 - 1)


@given(seed=SEED, number=st.integers(1, 4), classes=st.sampled_from([2, 3, 4, 19, 254]))
@settings(max_examples=80, deadline=None)
def test_half_of_the_classes_whole_and_nothing_ignored(seed, number, classes):
    labels = scenes(seed, number, classes=classes)
    masks = class_mix_masks(labels, seeded(seed))
    assert masks.shape == (number, 1, 6, 7)
    assert masks.dtype == torch.bool
    for label, mask in zip(labels, masks[:, 0], strict=True):
        shown, pasted = set(label.unique().tolist()) - {IGNORE}, set(label[mask].tolist())
        assert pasted <= shown
        assert len(pasted) == math.ceil(len(shown) / 2)
        assert not pasted & set(label[~mask].tolist())


def test_every_class_is_drawn_as_often():
    """Two of three classes: each in two thirds of the draws, whatever their values and sizes."""
    label = torch.tensor([[[0, 0, 0, 0, 7, 253]]])
    drawn = Counter(
        value for seed in range(1500) for value in label[class_mix_masks(label, seeded(seed))[:, 0]].unique().tolist()
    )
    assert set(drawn) == {0, 7, 253}
    assert all(abs(count - 1000) < 4 * math.sqrt(1500 * 2 / 9) for count in drawn.values())


@given(seed=SEED)
@settings(max_examples=30, deadline=None)
def test_a_mask_does_not_depend_on_the_others_of_its_batch(seed):
    labels = scenes(seed, 4)
    others = scenes(seed + 1, 4, classes=2)
    others[1] = 3
    others[2] = labels[2]
    generators = seeded(seed), seeded(seed)
    whole = class_mix_masks(labels, generators[0])
    assert torch.equal(whole[2], class_mix_masks(others, generators[1])[2])
    assert torch.equal(generators[0].get_state(), generators[1].get_state())
    assert torch.equal(whole[:2], class_mix_masks(labels[:2], seeded(seed)))
    assert torch.equal(whole, class_mix_masks(labels, seeded(seed)))


def test_seeds_and_places_differ():
    labels = scenes(0, 1, classes=19).expand(6, -1, -1)
    masks = class_mix_masks(labels, seeded(0))
    assert len({tuple(mask.flatten().tolist()) for mask in masks}) == 6
    assert not torch.equal(masks, class_mix_masks(labels, seeded(1)))


def test_labels_and_global_draws_are_left_alone():
    labels = scenes(0)
    before, state = labels.clone(), torch.get_rng_state()
    class_mix_masks(labels, seeded(0))
    assert torch.equal(labels, before)
    assert torch.equal(torch.get_rng_state(), state)


@given(seed=SEED, hw=st.tuples(st.integers(1, 30), st.integers(1, 30)))
@settings(max_examples=100, deadline=None)
def test_one_class_gets_a_box_of_half_the_area(seed, hw):
    mask = class_mix_masks(torch.full((1, *hw), 4), seeded(seed))[0, 0]
    rows, columns = mask.any(1).nonzero()[:, 0], mask.any(0).nonzero()[:, 0]
    tall, wide = (int(span.max() - span.min()) + 1 for span in (rows, columns))
    assert int(mask.sum()) == tall * wide  # one full rectangle
    assert 2 * tall >= hw[0]
    assert abs(tall * wide - hw[0] * hw[1] / 2) <= tall / 2


def test_boxes_reach_every_pixel_and_differ_in_shape():
    masks = torch.stack([class_mix_masks(torch.zeros(1, 8, 10, dtype=torch.long), seeded(n))[0, 0] for n in range(200)])
    share = masks.double().mean(0)
    assert 0.02 < share.min() < 0.2  # the corners
    assert abs(float(share.mean()) - 0.5) < 0.05
    assert {int(mask.any(1).sum()) for mask in masks} == {5, 6, 7, 8}
    mirrored = share.flip(0), share.flip(1)  # no side is preferred
    assert all(float((share - other).abs().mean()) < 0.05 for other in mirrored)


def test_ignored_pixels_are_no_class_and_in_no_box():
    labels = torch.full((2, 8, 8), IGNORE)
    labels[1, :, :6] = 3
    masks = class_mix_masks(labels, seeded(0))
    assert not masks[0].any()
    assert masks[1].any()
    assert not masks[1, 0, :, 6:].any()
    assert not masks[1, 0, :, :6].all()


@given(seed=SEED)
@settings(max_examples=30, deadline=None)
def test_the_two_mixes_use_every_pixel_once(seed):
    source, target = torch.rand(2, 3, 3, 6, 7, generator=seeded(seed))
    labels, guesses = scenes(seed), scenes(seed + 1)
    masks = class_mix_masks(labels, seeded(seed))
    inner, outer = mixed(source, target, masks), mixed(target, source, masks)
    assert torch.equal(inner + outer, source + target)
    where = masks.expand_as(source)
    assert torch.equal(inner[where], source[where])
    assert torch.equal(inner[~where], target[~where])
    assert torch.equal(mixed(labels, guesses, masks) + mixed(guesses, labels, masks), labels + guesses)
    assert torch.equal(mixed(labels, guesses, masks)[masks[:, 0]], labels[masks[:, 0]])
    assert not (mixed(labels, guesses, masks)[masks[:, 0]] == IGNORE).any()


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (2, 19, 4, 5), (2, 4, 5)])
def test_all_or_nothing(shape):
    source, target = torch.rand(2, *shape)
    every = torch.ones(2, 1, 4, 5, dtype=torch.bool)
    assert torch.equal(mixed(source, target, every), source)
    assert torch.equal(mixed(source, target, ~every), target)
    assert torch.equal(mixed(target, source, ~every), source)
