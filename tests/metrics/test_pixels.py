"""The softmax's word on each pixel."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from calseg_cli.metrics import pixels
from calseg_cli.metrics.pixels import first_index, measure_pixels, softmax_scores


@pytest.mark.parametrize("classes", [1, 2, 19, 150])
@pytest.mark.parametrize("offset", [0.0, 1000.0, -1000.0])
def test_matches_softmax_in_float64(classes, offset, reference):
    generator = torch.Generator().manual_seed(classes)
    logits = torch.randn(classes, 2000, generator=generator) * 4 + offset
    labels = torch.randint(0, classes, (2000,), generator=generator)
    scores = softmax_scores(logits, labels)
    probs = reference.softmax(logits.numpy())
    one_hot = np.eye(classes)[:, labels]
    picked = probs[labels, np.arange(2000)]
    top = probs.max(axis=0)
    np.testing.assert_array_equal(scores.predictions, logits.numpy().argmax(axis=0))
    np.testing.assert_allclose(scores.confidence, top, rtol=1e-6)
    np.testing.assert_allclose(scores.nll, -np.log(picked), rtol=1e-5, atol=2e-6)
    np.testing.assert_allclose(scores.brier, ((probs - one_hot) ** 2).sum(axis=0), rtol=1e-5, atol=1e-8)
    np.testing.assert_allclose(
        scores.brier_top, (top - (logits.numpy().argmax(0) == labels.numpy())) ** 2, rtol=1e-5, atol=1e-8
    )
    np.testing.assert_allclose(
        scores.nll, F.cross_entropy(logits.T.double(), labels, reduction="none"), atol=2e-6, rtol=1e-5
    )


@pytest.mark.parametrize("margin", [20.0, 100.0, 1e5, 3e38])
def test_a_sure_answer_saturates_without_a_nan(margin):
    logits = torch.zeros(3, 2)
    logits[1] = margin
    scores = softmax_scores(logits, torch.tensor([1, 0]))
    assert scores.confidence.max() <= 1.0
    assert scores.confidence.tolist() == pytest.approx([1.0, 1.0], abs=1e-8)
    assert scores.brier.tolist() == pytest.approx([0.0, 2.0], abs=1e-7)
    assert scores.nll.tolist() == pytest.approx([0.0, margin], rel=1e-6, abs=1e-7)


def test_equal_logits_take_the_lowest_class():
    logits = torch.randint(0, 3, (7, 5000), generator=torch.Generator().manual_seed(0)).float()
    found = first_index(logits, logits.amax(0))
    np.testing.assert_array_equal(found, logits.numpy().argmax(axis=0))  # numpy promises the first
    assert measure_pixels(torch.zeros(4, 3), torch.zeros(3, dtype=torch.long), 255).predictions.tolist() == [0, 0, 0]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("row", [0, 2])
def test_a_pixel_with_a_broken_logit_is_counted_and_left_out(bad, row):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 10, generator=generator)
    labels = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1, 255, 255])
    clean = measure_pixels(logits[:, [0, 1, 2, 3, 4, 6, 7]], labels[[0, 1, 2, 3, 4, 6, 7]], 255)
    logits[row, 5] = bad
    logits[row, 8] = bad  # ignored before it is invalid
    measured = measure_pixels(logits, labels, 255)
    assert (measured.ignored, measured.invalid) == (2, 1)
    assert measured.labels.tolist() == clean.labels.tolist()
    assert measured.predictions.tolist() == clean.predictions.tolist()
    np.testing.assert_allclose(measured.confidence, clean.confidence, rtol=3e-7)
    assert (measured.nll, measured.brier) == pytest.approx((clean.nll, clean.brier), rel=1e-6)


def test_large_finite_logits_are_no_broken_ones():
    """Their sum overflows, so the quick look at the sum must not be the last word."""
    logits = torch.full((3, 4), 3e38)
    measured = measure_pixels(logits, torch.zeros(4, dtype=torch.long), 255)
    assert measured.invalid == 0
    assert measured.confidence.tolist() == pytest.approx([1 / 3] * 4)


def test_blocks_only_cut(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(5, 4001, generator=generator)
    labels = torch.randint(0, 5, (4001,), generator=generator)
    whole = measure_pixels(logits, labels, 255)
    monkeypatch.setattr(pixels, "_BLOCK_ON_CPU", 512)
    cut = measure_pixels(logits, labels, 255)
    assert cut.labels.tolist() == whole.labels.tolist()
    assert cut.predictions.tolist() == whole.predictions.tolist()
    np.testing.assert_allclose(cut.confidence, whole.confidence, rtol=3e-7)
    assert (cut.nll, cut.brier, cut.brier_top) == pytest.approx((whole.nll, whole.brier, whole.brier_top), rel=1e-7)


def test_the_number_of_threads_changes_no_bit():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(8, 150_000, generator=generator) * 3
    labels = torch.randint(0, 8, (150_000,), generator=generator)
    before = torch.get_num_threads()
    measured = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            measured.append(measure_pixels(logits, labels, 255))
    finally:
        torch.set_num_threads(before)
    one, two = measured
    assert torch.equal(one.confidence, two.confidence)
    assert (one.nll, one.brier, one.brier_top) == (two.nll, two.brier, two.brier_top)


def test_no_gradient_is_kept():
    logits = torch.zeros(2, 3, requires_grad=True)
    assert not measure_pixels(logits, torch.zeros(3, dtype=torch.long), 255).confidence.requires_grad
