"""The choice of tau: counts and scores against brute force, and which of equals is taken."""

import numpy as np
import pytest
import torch

from calseg_cli.errors import DataError
from calseg_cli.methods.logit_adjustment import LogitAdjustment
from calseg_cli.methods.tau_sweep import (
    TAUS,
    Curve,
    count_changed,
    count_expected,
    count_labelled,
    read_curve,
)
from calseg_cli.metrics.confusion import class_accuracy, mean_accuracy, mean_iou

PRIOR = np.array([0.6, 0.3, 0.1])


def pixels(size=400):
    """Logits (C,P) of a network that prefers common classes, and labels (P,)."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.multinomial(torch.from_numpy(PRIOR), size, replacement=True, generator=generator)
    logits = torch.randn(3, size, generator=generator) + 1.5 * torch.from_numpy(PRIOR).log().float()[:, None]
    logits[labels, torch.arange(size)] += 1.5
    return logits, labels


def decided(logits, tau):
    return LogitAdjustment(PRIOR, tau)(logits[..., None])[..., 0].argmax(0).numpy()


def confusion(true, found):
    matrix = np.zeros((3, 3), np.int64)
    np.add.at(matrix, (true, found), 1)
    return matrix


def test_the_strengths_are_those_that_are_told():
    assert pytest.approx([0, 0.05, *np.arange(1, 11) / 10]) == list(TAUS)


def test_labelled_scores_and_the_choice_are_those_of_brute_force():
    logits, labels = pixels()
    curve = read_curve(count_labelled(LogitAdjustment(PRIOR, 0).classes, logits, labels))
    matrices = [confusion(labels.numpy(), decided(logits, tau)) for tau in TAUS]
    assert curve.miou == pytest.approx([mean_iou(one) for one in matrices])
    assert curve.macc == pytest.approx([mean_accuracy(one) for one in matrices])
    assert curve.accuracy_spread == pytest.approx([class_accuracy(one).std() for one in matrices])
    for wanted, score in (("miou", mean_iou), ("macc", mean_accuracy)):
        values = [score(one) for one in matrices]
        best = next(tau for tau, value in zip(TAUS, values, strict=True) if max(values) - value < 1e-3)
        assert 0 < curve.best(wanted) == best


def test_expected_confusions_are_those_of_brute_force():
    logits, _ = pixels(60)
    found = count_expected(LogitAdjustment(PRIOR, 0).classes, logits)
    p = torch.softmax(logits.double(), dim=0).numpy()
    for place, tau in enumerate(TAUS):
        expected = np.zeros((3, 3))
        for pixel, k in enumerate(decided(logits, tau)):
            expected[:, k] += p[:, pixel]
        np.testing.assert_allclose(found[place], expected, atol=1e-9)
    assert found.sum(axis=(1, 2)) == pytest.approx(60)


def test_changed_pixels_are_counted():
    logits, _ = pixels()
    found = count_changed(LogitAdjustment(PRIOR, 0).classes, logits)
    assert found.tolist() == [int((decided(logits, tau) != decided(logits, 0)).sum()) for tau in TAUS]
    assert found[0] == 0 < found[-1]


def test_classes_that_do_not_occur_count_for_nothing():
    logits, labels = pixels()
    here = labels != 2
    curve = read_curve(count_labelled(LogitAdjustment(PRIOR, 0).classes, logits[:, here], labels[here]))
    matrix = confusion(labels[here].numpy(), decided(logits[:, here], 0.5))
    assert curve.miou[TAUS.index(0.5)] == pytest.approx(mean_iou(matrix))


@pytest.mark.parametrize(
    ("scores", "best"),
    [
        ([0.5, 0.5, 0.5], 0.0),
        ([0.5, 0.5004, 0.5008], 0.0),
        ([0.5, 0.52, 0.5205], 0.1),
        ([0.5, 0.4, 0.6], 0.2),
        ([0.5, 0.501, 0.5018], 0.1),
    ],
)
def test_of_scores_that_are_alike_the_smaller_strength_is_taken(scores, best):
    curve = Curve(np.array(scores), np.zeros(3), np.zeros(3))
    assert curve.best("miou", (0.0, 0.1, 0.2)) == best
    assert curve.best("macc", (0.0, 0.1, 0.2)) == 0


def test_nothing_to_judge_by_is_told():
    with pytest.raises(DataError, match="judge tau"):
        read_curve(np.zeros((3, 2, 2)))
