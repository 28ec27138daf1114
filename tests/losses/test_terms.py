"""The other loss terms: symmetric cross-entropy, negative learning, entropy, class weights."""

import math

import pytest
import torch
import torch.nn.functional as F

from calseg_cli.losses.class_weights import threshold_class_weights
from calseg_cli.losses.entropy import entropy_loss, normalized_entropy
from calseg_cli.losses.negative_learning import complementary_rank, negative_learning
from calseg_cli.losses.symmetric_cross_entropy import symmetric_cross_entropy


@pytest.fixture
def drawn():
    """Logits (2,5,4,6) in float64, and labels of which a fifth is ignored."""
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(2, 5, 4, 6, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, 5, (2, 4, 6), generator=generator)
    labels[torch.rand(labels.shape, generator=generator) < 0.2] = 255
    return logits, labels


WEIGHTS = torch.tensor([0.1, 2.0, 0.5, 1.0, 3.0], dtype=torch.float64)


@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_symmetric_cross_entropy_is_its_closed_form(drawn, weights):
    logits, labels = drawn
    kept = labels != 255
    likely = logits.softmax(dim=1).permute(0, 2, 3, 1)[kept].gather(1, labels[kept][:, None])[:, 0]
    ce = F.cross_entropy(logits, labels, weight=weights, ignore_index=255)
    expected = 0.3 * ce + 0.7 * (-math.log(1e-4) * (1 - likely)).mean()
    found = symmetric_cross_entropy(logits, labels, class_weights=weights, ce_weight=0.3, rce_weight=0.7)
    torch.testing.assert_close(found, expected)


def test_the_ancestors_sums_over_clamped_labels(drawn):
    logits, labels = drawn
    kept = labels != 255
    probs = logits.softmax(dim=1).permute(0, 2, 3, 1)[kept]
    hard = F.one_hot(labels[kept], 5).double()
    expected = -(probs.clamp(1e-7, 1) * hard.clamp(1e-4, 1).log()).sum(dim=1).mean()
    torch.testing.assert_close(symmetric_cross_entropy(logits, labels, ce_weight=0, rce_weight=1), expected)


def test_alone_the_first_half_is_the_cross_entropy(drawn):
    found = symmetric_cross_entropy(*drawn, ce_weight=1, rce_weight=0)
    torch.testing.assert_close(found, F.cross_entropy(*drawn, ignore_index=255))


@pytest.mark.parametrize("soft", [False, True])
def test_nothing_believed_is_zero_and_teaches_nothing(drawn, soft):
    logits, labels = drawn
    leaf = logits.clone().requires_grad_()
    given = logits.softmax(dim=1) if soft else None
    loss = symmetric_cross_entropy(leaf, labels * 0 + 255, class_weights=WEIGHTS, soft_labels=given)
    (grad,) = torch.autograd.grad(loss, leaf)
    assert float(loss.detach()) == 0
    assert float(grad.abs().sum()) == 0


def test_classes_without_weight_do_not_divide_by_zero(drawn):
    assert float(symmetric_cross_entropy(*drawn, class_weights=torch.zeros(5), rce_weight=0)) == 0


def test_one_hot_soft_labels_are_hard_ones(drawn):
    logits, labels = drawn
    hard = F.one_hot(labels.masked_fill(labels == 255, 3), 5).permute(0, 3, 1, 2).double()
    found = symmetric_cross_entropy(logits, labels, class_weights=WEIGHTS, soft_labels=hard)
    torch.testing.assert_close(found, symmetric_cross_entropy(logits, labels, class_weights=WEIGHTS))


def test_soft_labels_by_loops(drawn):
    logits, labels = drawn
    soft = (0.7 * logits.flip(1)).softmax(dim=1)
    p, q = logits.softmax(dim=1), soft
    forward = reverse = weights = count = 0.0
    for b, i, j in (labels != 255).nonzero().tolist():
        weight = float(WEIGHTS[labels[b, i, j]])
        forward -= weight * float((q[b, :, i, j] * p[b, :, i, j].log()).sum())
        reverse -= float((p[b, :, i, j] * q[b, :, i, j].clamp_min(1e-4).log()).sum())
        weights, count = weights + weight, count + 1
    found = symmetric_cross_entropy(logits, labels, class_weights=WEIGHTS, soft_labels=soft)
    assert float(found) == pytest.approx(0.1 * forward / weights + reverse / count, rel=1e-9)


@pytest.mark.parametrize("soft", [False, True])
def test_symmetric_cross_entropy_passes_gradcheck(drawn, soft):
    logits, labels = drawn[0][:1, :, :2, :3].clone(), drawn[1][:1, :2, :3]
    given = logits.detach().flip(1).softmax(dim=1) if soft else None
    assert torch.autograd.gradcheck(
        lambda z: symmetric_cross_entropy(z, labels, class_weights=WEIGHTS, soft_labels=given), logits.requires_grad_()
    )


def test_terms_are_float32_under_autocast(drawn):
    logits, labels = drawn[0].bfloat16(), drawn[1]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = [symmetric_cross_entropy(logits, labels), negative_learning(logits, 3), entropy_loss(logits)]
        assert normalized_entropy(logits).dtype == torch.float32
    assert [term.dtype for term in found] == [torch.float32] * 3
    plain = symmetric_cross_entropy(logits.float(), labels)
    torch.testing.assert_close(found[0], plain)


@pytest.mark.parametrize("scale", [1e4, 1e-4])
def test_extreme_logits_stay_finite(drawn, scale):
    logits, labels = (drawn[0] * scale).float().requires_grad_(), drawn[1]
    total = symmetric_cross_entropy(logits, labels) + negative_learning(logits, 2) + entropy_loss(logits)
    (grad,) = torch.autograd.grad(total, logits)
    assert bool(torch.isfinite(total) & torch.isfinite(grad).all())


# Negative learning


@pytest.mark.parametrize("rank", [1, 3, 5])
def test_negative_learning_by_sorting(drawn, rank):
    logits = drawn[0]
    ranked = logits.softmax(dim=1).sort(dim=1, descending=True).values[:, rank - 1]
    torch.testing.assert_close(negative_learning(logits, rank), -(1 - ranked).clamp(1e-5, 1).log().mean())


def test_it_lowers_the_complementary_class_alone(drawn):
    logits = drawn[0].clone().requires_grad_()
    (grad,) = torch.autograd.grad(negative_learning(logits, 3), logits)
    chosen = logits.detach().argsort(dim=1, descending=True)[:, 2:3]
    assert not bool((chosen == logits.detach().argmax(dim=1, keepdim=True)).any())
    assert bool((grad.gather(1, chosen) > 0).all())
    assert bool((grad.scatter(1, chosen, -1.0) < 0).all())


def test_equal_logits_have_a_complement_that_repeats():
    zeros = torch.zeros(1, 4, 2, 2, requires_grad=True)
    (grad,) = torch.autograd.grad(negative_learning(zeros, 2), zeros)
    assert torch.equal((grad > 0).nonzero()[:, 1], torch.ones(4, dtype=torch.int64))


@pytest.mark.parametrize("rank", [0, 6, -1])
def test_ranks_outside_the_classes_are_refused(drawn, rank):
    with pytest.raises(ValueError, match="rank"):
        negative_learning(drawn[0], rank)


@pytest.mark.parametrize("classes", [2, 3, 4, 8, 16, 19])
def test_ranks_lie_around_the_middle(classes):
    generator = torch.Generator().manual_seed(0)
    drawn = {complementary_rank(classes, generator) for _ in range(400)}
    expected = {min(max(classes // 2 + shift, 2), classes) for shift in range(-3, 4)}
    assert drawn == expected
    if classes == 19:
        assert drawn == set(range(6, 13))


def test_ranks_repeat_with_their_generator():
    first, second = (torch.Generator().manual_seed(5) for _ in range(2))
    assert [complementary_rank(19, first) for _ in range(20)] == [complementary_rank(19, second) for _ in range(20)]


# Entropy


def test_entropy_lies_within_zero_and_one(drawn):
    for scale in (0.0, 1e-3, 1.0, 30.0, 1e4):
        found = normalized_entropy((drawn[0] * scale).float())
        assert found.shape == (2, 4, 6)
        assert float(found.min()) >= 0
        assert float(found.max()) <= 1


def test_entropy_of_the_known():
    one_hot, uniform = torch.tensor([1e4, 0, 0.0]), torch.zeros(3)
    half = torch.tensor([0.0, 0.0, -1e4])
    found = [float(normalized_entropy(z.view(1, 3, 1, 1))) for z in (one_hot, uniform, half)]
    assert found == pytest.approx([0, 1, math.log(2) / math.log(3)], abs=1e-6)


@pytest.mark.parametrize("power", [0.5, 1.5, 2.0])
def test_entropy_loss_by_its_formula(drawn, power):
    probs = drawn[0].softmax(dim=1)
    entropy = -(probs * probs.log()).sum(dim=1) / math.log(5)
    torch.testing.assert_close(entropy_loss(drawn[0], power=power), ((entropy**2 + 1e-8) ** power).mean())


def test_entropy_loss_passes_gradcheck(drawn):
    assert torch.autograd.gradcheck(entropy_loss, drawn[0][:, :, :2, :2].clone().requires_grad_())


# Class weights


@pytest.mark.parametrize(
    "thresholds", [(0.95, 0.9, 0.5, 0.1), (0.95, 0.9, 0.5, 1e-9), (0.3, math.nan, 0.8), (0.0, 1.0), (math.nan, 0.2)]
)
def test_class_weights_are_finite_mean_one_and_reverse_the_order(thresholds):
    weights = threshold_class_weights(torch.tensor(thresholds))
    there = [n for n, threshold in enumerate(thresholds) if not math.isnan(threshold)]
    assert weights.dtype == torch.float32
    assert bool((weights[there] > 0).all() & torch.isfinite(weights).all())
    assert float(weights[there].mean()) == pytest.approx(1)
    assert all(float(weights[n]) == 0 for n in range(len(thresholds)) if n not in there)
    pairs = [(m, n) for m in there for n in there if thresholds[m] < thresholds[n] and thresholds[n] > 0.1]
    assert all(weights[m] > weights[n] for m, n in pairs)


def test_class_weights_are_the_softmax_of_inverses():
    thresholds = torch.tensor([0.9, 0.6, 0.02])
    expected = 3 * (1 / torch.tensor([0.9, 0.6, 0.3])).softmax(dim=0)
    torch.testing.assert_close(threshold_class_weights(thresholds, lowest=0.3), expected)


def test_no_class_has_a_threshold():
    assert threshold_class_weights(torch.full((3,), math.nan)).tolist() == [0, 0, 0]
