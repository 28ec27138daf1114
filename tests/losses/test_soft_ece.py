"""The calibration error as a loss: against float64 loops, its gradient, and what must not change it."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from calseg_cli.losses.pixel_confidence import PixelConfidence, log_probabilities, pixel_confidence
from calseg_cli.losses.soft_ece import (
    bin_index,
    class_conditional_ece,
    ece_of_sets,
    image_ece,
    smoothed_confidence,
)


def draw(seed=0, *, images=3, classes=5, size=(6, 7), ignore=0.2, spread=2.0, dtype=torch.float32):
    """Logits (B,C,H,W) and labels (B,H,W), of which some are ignored and class 1 is absent from the first image."""
    generator = torch.Generator().manual_seed(seed)
    logits = spread * torch.randn(images, classes, *size, generator=generator, dtype=dtype)
    labels = torch.randint(0, classes, (images, *size), generator=generator)
    labels[0][labels[0] == 1] = 0
    labels[torch.rand(labels.shape, generator=generator) < ignore] = 255
    return logits, labels


def brute_ece(confidence, correct, bins):
    """ECE of one set by its definition, in float64; bins are (m-1)/M < c <= m/M, the last one has no end."""
    edges = np.linspace(0, 1, bins + 1, dtype=np.float32).astype(np.float64)
    total = 0.0
    for m in range(bins):
        last = m == bins - 1
        held = [n for n, c in enumerate(confidence) if edges[m] < c and (last or c <= edges[m + 1])]
        if held:
            gap = np.mean([confidence[n] for n in held]) - np.mean([correct[n] for n in held])
            total += len(held) / len(confidence) * abs(gap)
    return total


def brute(logits, labels, *, bins=10, temperature=1e-5, absent="count", over="class"):
    """Every image's error by loops over images, classes and bins."""
    found = []
    for z, y in zip(logits.double().numpy(), labels.numpy(), strict=True):
        z = z.reshape(len(z), -1)
        p = np.exp(z - z.max(0)) / np.exp(z - z.max(0)).sum(0)
        c = p.max(0) + temperature * np.log(np.exp((p - p.max(0)) / temperature).sum(0))
        a, y = (p.argmax(0) == y.ravel()).astype(float), y.ravel()
        if over == "image":
            kept = y != 255
            found.append(brute_ece(c[kept], a[kept], bins) if kept.any() else 0.0)
            continue
        errors = [brute_ece(c[y == k], a[y == k], bins) if (y == k).any() else 0.0 for k in range(len(z))]
        divisor = len(z) if absent == "count" else max(1, sum((y == k).any() for k in range(len(z))))
        found.append(sum(errors) / divisor)
    return torch.tensor(found, dtype=torch.float64)


# The confidence


@pytest.mark.parametrize("temperature", [1e-1, 1e-2, 1e-3, 1e-5])
def test_confidence_lies_just_above_the_largest(temperature):
    probs = draw(spread=3.0)[0].softmax(dim=1)
    excess = smoothed_confidence(probs, temperature) - probs.amax(dim=1)
    assert float(excess.min()) >= 0
    assert float(excess.max()) <= temperature * math.log(5) + 1e-7


def test_confidence_tends_to_the_largest():
    probs = draw(dtype=torch.float64)[0].softmax(dim=1)
    excess = [smoothed_confidence(probs, t) - probs.amax(dim=1) for t in (1e-1, 1e-2, 1e-3, 1e-4, 1e-5)]
    assert all(bool((after <= before).all()) for before, after in pairwise(excess))
    assert float(excess[-1].max()) < 2e-5


def test_uniform_confidence_is_the_known_one():
    uniform = torch.full((1, 3, 1, 1), 1 / 3, dtype=torch.float64)
    assert float(smoothed_confidence(uniform, 0.1)) == pytest.approx(1 / 3 + 0.1 * math.log(3), abs=1e-12)


@pytest.mark.parametrize("temperature", [0.1, 1e-5])
def test_confidences_gradient_is_a_distribution(temperature):
    probs = draw()[0].softmax(dim=1).requires_grad_()
    (grad,) = torch.autograd.grad(smoothed_confidence(probs, temperature).sum(), probs)
    assert bool((grad >= 0).all())
    torch.testing.assert_close(grad.sum(dim=1), torch.ones(3, 6, 7))


EXTREME = {
    "one-hot": torch.tensor([1e4, 0.0, 0.0, -1e4]),
    "uniform": torch.zeros(4),
    "tie": torch.tensor([3.0, 3.0, -1.0, -2.0]),
    "huge": torch.tensor([1e4, -1e4, 1e4, 1e4]),
}


@pytest.mark.parametrize("name", EXTREME)
@pytest.mark.parametrize("binning", ["hard", "soft"])
@pytest.mark.parametrize("amp", [None, torch.bfloat16, torch.float16])
def test_extremes_stay_finite_and_in_float32(name, binning, amp):
    logits = EXTREME[name].view(1, 4, 1, 1).expand(1, 4, 3, 3).clone()
    logits = (logits if amp is None else logits.clamp(-6e4, 6e4).to(amp)).requires_grad_()
    labels = torch.tensor([[[0, 1, 2], [3, 255, 0], [1, 1, 1]]])
    with torch.autocast("cpu", dtype=amp or torch.bfloat16, enabled=amp is not None):
        confidence = smoothed_confidence(logits.softmax(dim=1))
        errors = class_conditional_ece(logits, labels, binning=binning)
    assert confidence.dtype == errors.dtype == torch.float32
    assert bool(torch.isfinite(confidence).all() & torch.isfinite(errors).all())
    (grad,) = torch.autograd.grad(errors.sum(), logits)
    assert bool(torch.isfinite(grad).all())


def test_half_precision_would_have_lost_it():
    assert not bool(torch.isfinite(torch.tensor(0.7, dtype=torch.float16) / torch.tensor(1e-5).half()))


# What a pixel gives, quickly, against the plain way


@pytest.mark.parametrize("temperature", [0.3, 1e-2, 1e-3, 1e-5, 1e-9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_pixel_confidence_is_the_plain_one_in_value_and_gradient(temperature, dtype):
    logits, labels = draw(dtype=dtype)
    logits[:, :, 0] = 1.5  # exact ties of all classes
    logits[0, 1, 1] = logits[0, 0, 1] + 1e-5  # and near ones of two
    known = labels.clamp_max(4)
    weight = torch.randn(labels.shape, generator=torch.Generator().manual_seed(1), dtype=dtype)
    grads, values = [], []
    for quick in (True, False):
        leaf = logits.clone().requires_grad_()
        log_probs = leaf.log_softmax(dim=1)
        if quick:
            found = pixel_confidence(log_probs, labels, temperature)
        else:
            likelihood = log_probs.gather(1, known[:, None])[:, 0] * (labels != 255)
            right = log_probs.argmax(dim=1) == labels
            found = PixelConfidence(likelihood, smoothed_confidence(log_probs.exp(), temperature), right)
        total = (found.label_log_prob * weight.flip(0) + found.confidence * weight).sum()
        grads.append(torch.autograd.grad(total, leaf)[0])
        values.append(found)
    close = {"rtol": 2e-5, "atol": 2e-6} if dtype == torch.float32 else {"rtol": 1e-9, "atol": 1e-10}
    torch.testing.assert_close(grads[0], grads[1], **close)
    assert torch.equal(values[0].label_log_prob, values[1].label_log_prob)
    assert torch.equal(values[0].correct, values[1].correct)
    torch.testing.assert_close(values[0].confidence, values[1].confidence, rtol=0, atol=1e-6)


def test_pixel_confidence_passes_gradcheck():
    logits, labels = draw(images=1, classes=3, size=(2, 3), dtype=torch.float64)

    def function(leaf):
        return pixel_confidence(leaf.log_softmax(dim=1), labels, 0.05)[:2]

    assert torch.autograd.gradcheck(function, logits.requires_grad_())


# The error


@pytest.mark.parametrize("bins", [1, 10, 15, 300])
@pytest.mark.parametrize("temperature", [1e-5, 0.05])
@pytest.mark.parametrize("absent", ["count", "skip"])
def test_class_conditional_error_is_the_slow_one(bins, temperature, absent):
    logits, labels = draw()
    found = class_conditional_ece(logits, labels, bins=bins, temperature=temperature, absent=absent)
    expected = brute(logits, labels, bins=bins, temperature=temperature, absent=absent)
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-6)


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    classes=st.integers(2, 8),
    spread=st.sampled_from([0.1, 1.0, 5.0, 30.0]),
    ignore=st.sampled_from([0.0, 0.5, 1.1]),
)
def test_both_errors_are_the_slow_ones(seed, classes, spread, ignore):
    logits, labels = draw(seed, classes=classes, spread=spread, ignore=ignore, size=(4, 5))
    for function, over in ((class_conditional_ece, "class"), (image_ece, "image")):
        found = function(logits, labels)
        torch.testing.assert_close(found.double(), brute(logits, labels, over=over), rtol=0, atol=2e-6)
        assert bool((found >= 0).all() & (found <= 1 + 1e-5 * math.log(classes) + 1e-6).all())


def test_edges_belong_to_the_bin_below_and_more_than_one_to_the_last():
    edges = torch.linspace(0, 1, 11)
    after = torch.nextafter(edges, torch.tensor(2.0))
    assert bin_index(edges[1:], 10).tolist() == list(range(10))
    assert bin_index(after, 10).tolist() == [*range(10), 9]
    assert bin_index(torch.tensor([1e-9, 1.00003]), 10).tolist() == [0, 9]
    values = torch.rand(1000, generator=torch.Generator().manual_seed(0))
    assert torch.equal(bin_index(values, 10).long(), torch.bucketize(values, edges[1:-1]))


def of_pixels(confidence, correct):
    """ECE of one set from its pixels' confidence and correctness."""
    c, a = torch.as_tensor(confidence).view(1, 1, -1), torch.as_tensor(correct).bool().view(1, 1, -1)
    return float(ece_of_sets(PixelConfidence(c, c, a), torch.zeros_like(c, dtype=torch.int64), 1, 10, "hard")[0])


def test_points_on_edges_count_as_in_the_oracle():
    confidence = torch.cat([torch.linspace(0, 1, 11)[1:], torch.tensor([1.00002, 0.55, 0.31])])
    correct = torch.tensor([1, 0, 0, 1, 1, 0, 1, 0, 1, 1, 0, 1, 0])
    assert of_pixels(confidence, correct) == pytest.approx(
        brute_ece(confidence.double().tolist(), correct.tolist(), 10), abs=1e-7
    )


def test_known_errors():
    assert of_pixels([1.0, 1.0], [1, 1]) == 0
    assert of_pixels([1.0, 1.0], [0, 0]) == 1
    assert of_pixels([0.75] * 4, [1, 0, 0, 0]) == pytest.approx(0.5)


@pytest.mark.parametrize("binning", ["hard", "soft"])
@pytest.mark.parametrize("function", [class_conditional_ece, image_ece])
def test_order_and_ignored_pixels_change_nothing(function, binning):
    logits, labels = draw()
    before = function(logits, labels, binning=binning)
    order = torch.randperm(42, generator=torch.Generator().manual_seed(3))
    mixed = function(
        logits.flatten(2)[:, :, order].view_as(logits), labels.flatten(1)[:, order].view_as(labels), binning=binning
    )
    torch.testing.assert_close(mixed, before)
    wider = torch.cat([logits, 9 * torch.randn_like(logits)], dim=3), torch.cat([labels, 0 * labels + 255], dim=2)
    torch.testing.assert_close(function(*wider, binning=binning), before)


@pytest.mark.parametrize("binning", ["hard", "soft"])
@pytest.mark.parametrize("function", [class_conditional_ece, image_ece])
def test_an_image_without_labels_is_zero_and_teaches_nothing(function, binning):
    logits, labels = draw()
    labels[1] = 255
    errors = function(logits.requires_grad_(), labels, binning=binning)
    (grad,) = torch.autograd.grad(errors.sum(), logits)
    assert float(errors[1].detach()) == 0
    assert float(grad[1].abs().sum()) == 0
    assert float(grad[0].abs().sum()) > 0
    assert float(grad.permute(0, 2, 3, 1)[labels == 255].abs().sum()) == 0


@pytest.mark.parametrize("over", ["class", "image"])
def test_gradient_of_hard_bins_is_the_sign_over_the_size(over):
    logits, labels = draw(dtype=torch.float64)
    leaf = logits.clone().requires_grad_()
    log_probs = log_probabilities(leaf)
    pixels = pixel_confidence(log_probs, labels, 1e-5)
    confidence = pixels.confidence.detach().requires_grad_()
    images, classes = 3, 5
    set_of = torch.arange(images)[:, None, None] * (classes if over == "class" else 1)
    set_of = set_of + (labels if over == "class" else 0)
    count = images * (classes if over == "class" else 1)
    members = torch.where(labels == 255, count, set_of)
    errors, sizes = ece_of_sets(PixelConfidence(confidence, confidence, pixels.correct), members, count, 10, "hard")
    (grad,) = torch.autograd.grad(errors.sum(), confidence)
    gap = confidence.detach() - pixels.correct.double()
    index = bin_index(confidence.detach(), 10)
    for n in np.ndindex(*labels.shape):
        same = (members == members[n]) & (index == index[n])
        expected = 0.0 if labels[n] == 255 else float(gap[same].sum().sign() / sizes[members[n]])
        assert float(grad[n]) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(("binning", "worst"), [("hard", 0.9), ("soft", 1.0)])
def test_gradient_is_the_central_difference(binning, worst):
    """Away from the edges of bins: with hard bins a step over an edge is a jump, so a few may differ."""
    logits, labels = draw(images=1, size=(3, 4), ignore=0.1, dtype=torch.float64)
    leaf = logits.clone().requires_grad_()
    (grad,) = torch.autograd.grad(class_conditional_ece(leaf, labels, binning=binning, temperature=1e-3).sum(), leaf)
    right = 0
    for n in np.ndindex(*logits.shape):
        sides = []
        for step in (1e-6, -1e-6):
            moved = logits.clone()
            moved[n] += step
            sides.append(float(class_conditional_ece(moved, labels, binning=binning, temperature=1e-3).sum()))
        right += abs((sides[0] - sides[1]) / 2e-6 - float(grad[n])) < 1e-6
    assert right >= worst * logits.numel()


def test_a_step_lowers_the_confidence_of_the_overconfident():
    logits, labels = draw(spread=4.0, ignore=0.0)
    leaf = logits.clone().requires_grad_()
    (grad,) = torch.autograd.grad(image_ece(leaf, labels).sum(), leaf)
    before, after = (z.softmax(dim=1).amax(dim=1).mean() for z in (logits, logits - 0.5 * grad))
    accuracy = (logits.argmax(dim=1) == labels).float().mean()
    assert float(before) > float(accuracy)
    assert float(after) < float(before)


def test_labels_and_correctness_carry_no_gradient():
    logits, labels = draw()
    pixels = pixel_confidence(log_probabilities(logits.requires_grad_()), labels, 1e-5)
    assert not pixels.correct.requires_grad
    assert pixels.confidence.requires_grad


def test_soft_bins_are_the_stated_formula():
    logits, labels = draw(images=1, ignore=0.3, dtype=torch.float64)
    c = smoothed_confidence(logits.softmax(dim=1)).numpy().ravel()
    y, a = labels.numpy().ravel(), (logits.argmax(dim=1) == labels).numpy().ravel()
    total = 0.0
    distance = -(((c[:, None] - (np.arange(10) + 0.5) / 10) * 20) ** 2)
    weights = np.exp(distance) / np.exp(distance).sum(axis=1, keepdims=True)
    for k in range(5):
        held = y == k
        if held.any():
            total += np.abs((weights[held] * (c - a)[held][:, None]).sum(axis=0)).sum() / held.sum() / 5
    assert float(class_conditional_ece(logits, labels, binning="soft")) == pytest.approx(total, abs=1e-9)


def test_soft_bins_pass_gradcheck():
    logits, labels = draw(images=2, classes=3, size=(2, 3), dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda leaf: class_conditional_ece(leaf, labels, binning="soft", temperature=0.05), logits.requires_grad_()
    )


def test_pooled_error_is_at_most_the_mean_of_images():
    logits, labels = draw(images=6, ignore=0.3)
    pooled = image_ece(logits.permute(1, 0, 2, 3).reshape(1, 5, -1, 7), labels.reshape(1, -1, 7))  # all images as one
    sizes = (labels != 255).sum(dim=(1, 2))
    assert float(pooled) <= float((image_ece(logits, labels) * sizes).sum() / sizes.sum()) + 1e-6


def test_divisors_of_absent_classes():
    logits, labels = draw(images=1)
    present = len(set(labels.unique().tolist()) - {255})
    assert present == 4
    counted, skipped = (class_conditional_ece(logits, labels, absent=how) for how in ("count", "skip"))
    torch.testing.assert_close(counted * 5, skipped * present)


def test_another_binning_is_refused():
    with pytest.raises(ValueError, match="wide"):
        image_ece(*draw(), binning="wide")
