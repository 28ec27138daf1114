"""TENT, CBST and Cal-SFDA: their losses against closed forms, what they move, and how a round is begun."""

import copy
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from calseg_cli.engine.forward import dense_logits
from calseg_cli.errors import ConfigError
from calseg_cli.methods.calsfda import CalSFDA, smoothed_labels
from calseg_cli.methods.cbst import CBST
from calseg_cli.methods.round_self_training import Beliefs
from calseg_cli.methods.tent import Tent

PLAIN = {"ce_weight": 1.0, "rce_weight": 0.0, "negative_weight": 0.0, "entropy_weight": 0.0}


@pytest.fixture
def batch(make_batch):
    batch = make_batch(1)
    batch.source_images = batch.source_labels = None
    return batch


def nothing_believed(batch):
    batch.target_labels = torch.full_like(batch.target_labels, 255)
    return batch


# TENT


def test_tent_moves_scales_and_shifts_alone(network, batch):
    before = copy.deepcopy(network.state_dict())
    method = Tent(network)
    method.train()
    groups = [one for group in method.parameter_groups() for one in group.parameters]
    sum(method(batch).values()).backward()
    torch.optim.SGD(groups, lr=1.0).step()
    moved = {name for name, one in network.named_parameters() if not torch.equal(one, before[name])}
    assert moved == {"encoder.1.weight", "encoder.1.bias"}


def test_tent_is_the_entropy_under_the_statistics_of_the_batch(network, batch):
    method = Tent(network)
    method.train()
    value = method(batch)["entropy"]
    other = copy.deepcopy(network).double().train()
    p = other(batch.target_images.double()).softmax(dim=1)
    expected = -(p * p.log()).sum(dim=1).mean().detach() / math.log(3)
    assert float(value.detach()) == pytest.approx(float(expected), abs=1e-6)


def test_tent_needs_batch_norm():
    with pytest.raises(ConfigError, match="no batch-norm layer"):
        Tent(nn.Sequential(nn.Conv2d(3, 3, 1), nn.LayerNorm(3)))


# CBST


def test_cbst_is_the_mean_cross_entropy_of_believed_pixels(network, batch):
    method = CBST(network).eval()
    logits = dense_logits(network.eval(), batch.target_images).detach().double()
    log_probs, labels = logits.log_softmax(dim=1), batch.target_labels
    values = [-float(log_probs[b, labels[b, y, x], y, x]) for b, y, x in np.argwhere(labels.numpy() != 255)]
    assert method(batch)["ce"].item() == pytest.approx(sum(values) / len(values), rel=1e-5)


@pytest.mark.parametrize("kind", [CBST, CalSFDA])
def test_a_batch_without_belief_is_no_loss_and_no_nan(kind, network, batch):
    method = kind(network, **({"negative_weight": 0.0, "entropy_weight": 0.0} if kind is CalSFDA else {}))
    method.train()
    (loss,) = method(nothing_believed(batch)).values()
    loss.backward()
    assert loss.item() == 0
    assert all(float(one.grad.abs().sum()) == 0 for one in network.parameters() if one.grad is not None)


# Cal-SFDA


def test_with_one_half_and_nothing_else_it_is_cbst(network, batch):
    other = copy.deepcopy(network)
    method, plain = CalSFDA(network, **PLAIN, class_weights="none").eval(), CBST(other).eval()
    torch.testing.assert_close(method(batch)["sce"], plain(batch)["ce"])


def test_terms_are_there_where_they_weigh_something(network, batch):
    assert set(CalSFDA(network)(batch)) == {"sce", "negative", "entropy"}
    assert set(CalSFDA(network, anchor=1.0, negative_weight=0.0, entropy_weight=0.0)(batch)) == {"sce", "anchor"}


def test_the_rank_of_the_complement_follows_from_the_step(network, batch):
    """Resumed at a step, the same class is unlearned: nothing is drawn from a generator that runs on."""
    method = CalSFDA(network).eval()
    first = method(batch)["negative"].item()
    torch.manual_seed(99)
    assert method(batch)["negative"].item() == first


def test_classes_with_low_thresholds_weigh_more(network, batch):
    def loss(thresholds):
        method = CalSFDA(copy.deepcopy(network), **PLAIN).eval()
        method.believe(Beliefs(thresholds=np.array(thresholds)))
        return method(batch)["sce"].item()

    logits = dense_logits(network.eval(), batch.target_images).detach()
    by_class = [
        float(
            F.cross_entropy(
                logits, batch.target_labels.where(batch.target_labels == k, torch.tensor(255)), ignore_index=255
            )
        )
        for k in range(3)
    ]
    heavy = int(np.argmax(by_class))
    thresholds = [0.9, 0.9, 0.9]
    even = loss(thresholds)
    thresholds[heavy] = 0.4
    assert loss(thresholds) > even


def test_smoothed_labels_are_distributions_with_the_class_at_one_minus_e():
    labels = torch.randint(0, 5, (2, 3, 4))
    labels[0, 0, 0] = 255
    soft = smoothed_labels(labels, torch.tensor([0.0, 0.3])[:, None, None, None], 5)
    torch.testing.assert_close(soft.sum(dim=1), torch.ones(2, 3, 4))
    valid = labels != 255
    taken = soft.gather(1, labels.masked_fill(~valid, 0)[:, None])[:, 0]
    assert torch.equal(taken[0][valid[0]], torch.ones(11))
    torch.testing.assert_close(taken[1], torch.full((3, 4), 0.7))


def test_smoothing_without_an_expected_error_is_hard(network, batch):
    hard, soft = (CalSFDA(copy.deepcopy(network), softness=kind).eval() for kind in ("none", "smoothing"))
    torch.testing.assert_close(soft(batch)["sce"], hard(batch)["sce"])
    soft.believe(Beliefs(expected_error=dict.fromkeys(batch.target_ids, 0.2)))
    assert soft(batch)["sce"].item() != pytest.approx(hard(batch)["sce"].item(), rel=1e-3)


def test_a_network_that_is_its_own_teacher_at_temperature_one_gains_nothing(network, batch):
    """Soft labels that are the student's own answer: the gradient of cross-entropy is zero."""
    method = CalSFDA(network, **PLAIN, class_weights="none", softness="temperature").eval()
    method.believe(Beliefs(), copy.deepcopy(network))
    method(batch)["sce"].backward()
    assert max(float(one.grad.abs().max()) for one in network.parameters()) < 1e-6
    with pytest.raises(ValueError, match="needs the network"):
        method.believe(Beliefs())


def test_the_teacher_is_neither_trained_nor_kept(network, batch):
    teacher = copy.deepcopy(network)
    method = CalSFDA(network, softness="temperature")
    names = set(method.state_dict())
    method.believe(Beliefs(temperature=dict.fromkeys(batch.target_ids, 2.0)), teacher)
    method.train()
    sum(method(batch).values()).backward()
    assert set(method.state_dict()) == names
    assert not teacher.training
    assert all(one.grad is None for one in teacher.parameters())


def test_the_anchor_is_the_gap_to_the_expected_accuracy(network, batch):
    method = CalSFDA(network, anchor=2.0).eval()
    assert method(batch)["anchor"].item() == 0  # nothing is known of these images
    confidence = network(batch.target_images).softmax(dim=1).amax(dim=1).mean(dim=(1, 2)).detach()
    before = dict.fromkeys(batch.target_ids, 0.9)
    errors = {name: 0.1 * place for place, name in enumerate(batch.target_ids)}
    method.believe(Beliefs(confidence=before, expected_error=errors))
    wanted = torch.tensor([(1 - 0.1 * place) * 0.9 for place in range(4)])
    expected = 2 * float((confidence - wanted).abs().mean())
    assert method(batch)["anchor"].item() == pytest.approx(expected, rel=1e-5)


def test_only_the_head_moves_where_only_it_is_to_train(network, batch):
    before = copy.deepcopy(network.state_dict())
    method = CalSFDA(network, train="head")
    method.train()
    sum(method(batch).values()).backward()
    torch.optim.SGD([one for group in method.parameter_groups() for one in group.parameters], lr=1.0).step()
    after = network.state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {"head.weight", "head.bias"}  # the frozen encoder's statistics stand still, too
