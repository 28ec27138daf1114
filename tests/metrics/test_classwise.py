"""The probability of every class against other people's code and plain float64."""

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from calseg_cli.metrics import pixels
from calseg_cli.metrics.calibration import ece_by_group
from calseg_cli.metrics.classwise import cece, classwise_counts
from calseg_cli.metrics.fine_histogram import FINE_BINS, ONE, CalibrationCounts
from calseg_cli.metrics.pixels import measure_pixels, probabilities


def draw(classes=4, count=5000, seed=0, scale=2.0):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(classes, count, generator=generator) * scale
    labels = (logits + 2 * torch.randn(classes, count, generator=generator)).argmax(0)
    return logits, labels


@pytest.mark.parametrize("bins", [10, 15])
def test_each_class_is_torchmetrics_of_its_probability(bins, reference):
    logits, labels = draw()
    probs = probabilities(logits).double().numpy()
    counts = classwise_counts(logits, labels)
    ours = ece_by_group(counts, bins)
    for index in range(4):
        right = (labels == index).numpy()
        assert ours[index] == pytest.approx(reference.torchmetrics_error(probs[index], right, bins, "l1"), abs=3e-10)
    assert cece(counts, bins) == pytest.approx(ours.mean(), abs=1e-15)


def test_a_pixel_is_counted_once_a_class():
    logits, labels = draw()
    counts = classwise_counts(logits, labels)
    assert counts.count.sum(axis=1).tolist() == [5000] * 4
    assert counts.correct.sum(axis=1).tolist() == np.bincount(labels.numpy(), minlength=4).tolist()
    total = counts.confidence.sum() / ONE
    assert total == pytest.approx(5000, abs=5000 * 1e-6)
    probs = probabilities(logits).double()
    units = probs.mul(ONE).numpy()
    assert counts.confidence.sum(axis=1).tolist() == np.rint(units).astype(np.int64).sum(axis=1).tolist()
    assert (units % 1 != 0).any()  # some are below 1/256 and rounded
    assert counts.confidence.sum(axis=1) / ONE / 5000 == pytest.approx(probs.mean(1).numpy(), abs=2.4e-10)


def test_the_top_probability_is_the_confidence():
    logits, labels = draw(scale=8.0)
    assert torch.equal(probabilities(logits).amax(0), measure_pixels(logits, labels, 255).confidence)


def test_classes_without_a_pixel_may_be_left_out():
    logits, labels = draw()
    labels[labels == 3] = 0
    counts = classwise_counts(logits, labels)
    by_class = ece_by_group(counts)
    assert cece(counts, present=True) == pytest.approx(by_class[:3].mean(), abs=1e-15)
    assert cece(counts) == pytest.approx(by_class.mean(), abs=1e-15)
    assert by_class[3] == pytest.approx(float(probabilities(logits)[3].double().mean()), abs=1e-9)


def test_two_classes_have_one_error_twice():
    """They are p and 1 - p: the same gaps, mirrored."""
    logits, labels = draw(classes=2)
    left, right = ece_by_group(classwise_counts(logits, labels))
    assert left == pytest.approx(right, abs=1e-7)


def test_netcal_averages_the_same_numbers():
    logits, labels = draw(classes=3)
    probs = probabilities(logits).double()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from netcal.metrics import ECE

        theirs = [float(ECE(10).measure(probs[k].numpy(), (labels == k).long().numpy())) for k in range(3)]
    assert cece(classwise_counts(logits, labels), 10) == pytest.approx(np.mean(theirs), abs=3e-10)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 5), st.sampled_from(["right", "left"]))
def test_parts_add_to_the_whole_bit_for_bit(seed, parts, edges):
    logits, labels = draw(count=300, seed=seed)
    order = torch.randperm(300, generator=torch.Generator().manual_seed(seed))
    total = CalibrationCounts.zeros(4, edges)
    for piece in order.chunk(parts):
        total += classwise_counts(logits[:, piece], labels[piece], edges)
    whole = classwise_counts(logits, labels, edges)
    # A softmax of another number of columns may differ in its last bit; where it does not, no bit differs here.
    cut = torch.cat([probabilities(logits[:, piece].contiguous()) for piece in order.chunk(parts)], dim=1)
    if torch.equal(cut, probabilities(logits)[:, order]):
        assert total == whole
    assert cece(total) == pytest.approx(cece(whole), abs=1e-6)


def test_blocks_only_cut(monkeypatch):
    logits, labels = draw(count=4001)
    whole = classwise_counts(logits, labels)
    monkeypatch.setattr(pixels, "_BLOCK_ON_CPU", 512)
    assert cece(classwise_counts(logits, labels)) == pytest.approx(cece(whole), abs=1e-6)


def test_nothing_is_not_available():
    none = classwise_counts(torch.zeros(3, 0), torch.zeros(0, dtype=torch.long))
    assert none == CalibrationCounts.zeros(3)
    assert np.isnan(cece(none))
    assert np.isnan(cece(none, present=True))
    assert none.count.shape == (3, FINE_BINS)
