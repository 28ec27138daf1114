"""Prototypes that are counted in training: what is counted, what is forgotten, and what the state dict brings back."""

import copy

import numpy as np
import pytest
import torch

from calseg_cli.artifacts.geometry import Geometry
from calseg_cli.errors import ConfigError
from calseg_cli.methods.prototype_labels import PrototypeLabels
from calseg_cli.methods.prototype_state import PrototypeState
from calseg_cli.methods.prototypes import PrototypeOptions, Prototypes
from calseg_cli.methods.self_training import SelfTraining
from calseg_cli.methods.self_training_frame import Frame
from calseg_cli.networks.build import build_network
from tests.methods.self_training_examples import CLASSES, Spy, batch_of, step_of

OPTIONS = PrototypeOptions(prior=20.0)
WHOLE = Geometry(in_hw=(12, 20), out_hw=(12, 20), stride=4, pad=(0, 0), align_corners=False)


def logits_of(seed, rows=3, columns=5):
    return 2 * torch.randn(2, CLASSES, rows, columns, generator=torch.Generator().manual_seed(seed))


def test_without_forgetting_it_is_label_calibration_of_all_batches():
    online, state = PrototypeLabels(CLASSES, OPTIONS, keep=1.0), PrototypeState(CLASSES, OPTIONS.rule())
    for seed in range(4):
        online.count(logits_of(seed), WHOLE)
        for image in logits_of(seed):
            state.add(image)
    np.testing.assert_allclose(online.sums, state.sums, rtol=1e-12)
    np.testing.assert_array_equal(online.pixels, state.pixels)
    expected = Prototypes(state, OPTIONS)
    found = online(logits_of(9))
    assert torch.equal(found, torch.stack([expected(image) for image in logits_of(9)]))
    assert bool((found.argmax(dim=1) != logits_of(9).argmax(dim=1)).any())


def test_each_batch_leaves_its_share_of_those_before():
    online = PrototypeLabels(CLASSES, OPTIONS, keep=0.5)
    alone = []
    for seed in range(3):
        online.count(logits_of(seed), WHOLE)
        one = PrototypeLabels(CLASSES, OPTIONS)
        one.count(logits_of(seed), WHOLE)
        alone.append(one)
    expected = 0.25 * alone[0].sums + 0.5 * alone[1].sums + alone[2].sums
    torch.testing.assert_close(online.sums, expected)
    torch.testing.assert_close(online.weights, 0.25 * alone[0].weights + 0.5 * alone[1].weights + alone[2].weights)


def test_before_the_first_batch_nothing_changes():
    assert torch.equal(PrototypeLabels(CLASSES, OPTIONS)(logits_of(0)), logits_of(0))


def test_cells_on_padding_do_not_count():
    padded = Geometry(in_hw=(9, 14), out_hw=(9, 14), stride=4, pad=(3, 6), align_corners=False)
    online, inside = PrototypeLabels(CLASSES, OPTIONS), PrototypeLabels(CLASSES, OPTIONS)
    online.count(logits_of(0), padded)
    inside.count(logits_of(0)[:, :, :2, :3], WHOLE)  # centres at 2, 6 of 9 and at 2, 6, 10 of 14; the next are past it
    assert int(online.pixels.sum()) == 2 * 2 * 3
    assert torch.equal(online.sums, inside.sums)


@pytest.mark.parametrize("options", [{}, {"prior": 5.0, "iterations": 2}, {"prior": 5.0, "per_image": 10.0}])
def test_what_needs_all_images_at_once_is_refused(options):
    with pytest.raises(ConfigError):
        PrototypeLabels(CLASSES, PrototypeOptions(**options))


@pytest.fixture
def method():
    """A function that makes the method around the same network."""
    network = build_network("tiny", CLASSES, init="none", seed=0)

    def make(*plugins):
        prototypes = PrototypeLabels(CLASSES, OPTIONS, 0.9)
        return SelfTraining(copy.deepcopy(network), Frame(), plugins=plugins, prototypes=prototypes)

    return make


def test_a_batch_is_labelled_by_those_before_it_and_weighs_by_the_teachers_own_logits(method):
    spy = Spy()
    made = method(spy)
    step_of(made, 0)
    before = copy.deepcopy(made.prototypes)
    step_of(made, 1)
    assert torch.equal(spy.logits, before(spy.view.teacher_logits))
    assert not torch.equal(spy.logits.argmax(dim=1), spy.view.teacher_logits.argmax(dim=1))
    before.count(spy.view.teacher_logits, spy.view.geometry)
    assert torch.equal(made.prototypes.sums, before.sums)


def test_looking_counts_nothing(method):
    made = method()
    step_of(made, 0)
    counted = made.prototypes.sums.clone()
    made.look(batch_of(1))
    made.believed(batch_of(1).target_images)
    assert torch.equal(made.prototypes.sums, counted)


def test_the_state_dict_brings_it_all_back(method):
    first, second = method(), method()
    for step in range(2):
        step_of(first, step)
    second.load_state_dict(first.state_dict())
    mine, theirs = step_of(first, 2), step_of(second, 2)
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    assert torch.equal(first.prototypes.sums, second.prototypes.sums)
    assert not any("prototypes" in name for name in first.deployed().state_dict())
