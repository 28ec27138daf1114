"""What histograms of logits say: against the values themselves, against drawn pixels, and where there is little."""

import numpy as np
import pytest
import torch

from calseg_cli.metrics.bias import bias_of_shares, class_bias
from calseg_cli.metrics.logit_distributions import (
    distance,
    implied_shares,
    mean_logit,
    quantile_logits,
    read_distributions,
)
from calseg_cli.metrics.logit_histograms import LogitHistograms, count_logits


def drawn(means, number=60_000, seed=0, scale=2.0):
    """Independent logits: `means` (C,C) by true class and channel; (values (C,C,n), their histograms)."""
    classes = len(means)
    values = np.random.default_rng(seed).normal(size=(classes, classes, number)) * scale + means[..., None]
    values = values.astype(np.float32)
    labels = torch.arange(classes).repeat_interleave(number)
    return values, count_logits(torch.from_numpy(np.concatenate(list(values), axis=1)), labels)


MEANS = np.array([[4.0, 1.0, -2.0, -3.0], [2.5, 3.0, -1.0, -2.0], [1.0, 0.0, 2.0, -2.0], [0.5, 1.0, -1.0, 1.5]])


@pytest.fixture(scope="module")
def sample():
    return drawn(MEANS)


def test_the_logits_imply_what_drawn_pixels_do(sample):
    values, histograms = sample
    found = read_distributions(histograms)
    np.testing.assert_allclose(found.shares.sum(axis=1), 1, atol=1e-12)
    confusion = np.stack([np.bincount(row.argmax(axis=0), minlength=4) for row in values])
    np.testing.assert_allclose(found.shares, confusion / confusion.sum(axis=1, keepdims=True), atol=0.01)
    np.testing.assert_allclose(bias_of_shares(found.shares), class_bias(confusion), atol=0.005)


def test_equal_laws_imply_no_bias():
    cells = np.zeros((5, 5, 300))
    cells[..., 20:150] = 1 / 130
    cells[np.eye(5, dtype=bool)] = 0
    cells[np.eye(5, dtype=bool), 120:280] = 1 / 160
    np.testing.assert_allclose(bias_of_shares(implied_shares(cells)), 0, atol=1e-12)


def test_a_raised_channel_is_implied_to_be_preferred():
    raised = MEANS.copy()
    raised[:, 2] += 1.5
    before, after = (bias_of_shares(read_distributions(drawn(one, 4000)[1]).shares) for one in (MEANS, raised))
    assert after[2] > before[2] + 0.05
    assert (np.delete(after, 2) < np.delete(before, 2)).all()


def test_equal_constants_share_alike_and_a_larger_one_takes_all():
    cells = np.zeros((3, 3, 8))
    cells[..., 2] = 1
    np.testing.assert_allclose(implied_shares(cells), 1 / 3, atol=1e-14)
    cells[1, 1] = np.eye(8)[5]
    np.testing.assert_allclose(implied_shares(cells)[1], [0, 1, 0], atol=1e-14)


@pytest.mark.parametrize("classes", [2, 19, 48, 150])
def test_rows_add_up_to_one_with_any_number_of_classes(classes):
    cells = np.random.default_rng(classes).dirichlet(np.full(40, 0.2), size=(2, classes))
    shares = implied_shares(np.concatenate([cells, np.full((classes - 2, classes, 40), np.nan)]))
    np.testing.assert_allclose(shares[:2].sum(axis=1), 1, atol=1e-3 if classes > 48 else 1e-12)
    assert np.isnan(shares[2:]).all()


def test_two_channels_against_the_double_sum():
    first, second = np.random.default_rng(0).dirichlet(np.ones(30), size=2)
    exact = sum(first[i] * (second[:i].sum() + second[i] / 2) for i in range(30))
    found = implied_shares(np.stack([np.stack([first, second])] * 2))
    np.testing.assert_allclose(found[0], [exact, 1 - exact], atol=1e-14)


def test_means_quantiles_and_distances_are_those_of_the_values(sample):
    values, histograms = sample
    found = read_distributions(histograms)
    width = found.edges[1] - found.edges[0]
    own = np.eye(4, dtype=bool)
    positive = values[own]
    np.testing.assert_allclose(mean_logit(found.positive, found.edges), positive.mean(axis=1), atol=width / 10)
    levels = np.array([0.05, 0.5, 0.95])
    exact = np.quantile(positive, levels, axis=1).T
    np.testing.assert_allclose(quantile_logits(found.positive, found.edges, levels), exact, atol=width)
    negative = [np.mean([values[c, k].mean() for c in range(4) if c != k]) for k in range(4)]
    np.testing.assert_allclose(mean_logit(found.negative, found.edges), negative, atol=width / 10)
    anchors = [values[own].ravel(), values[~own].ravel()]
    np.testing.assert_allclose(mean_logit(found.anchors, found.edges), [one.mean() for one in anchors], atol=width / 10)
    away = [between(values[c, c], anchors[0]) for c in range(4)]
    np.testing.assert_allclose(found.positive_distance, away, atol=width)
    away = [np.mean([between(values[c, k], anchors[1]) for c in range(4) if c != k]) for k in range(4)]
    np.testing.assert_allclose(found.negative_distance, away, atol=width)


def between(one, other):
    """Wasserstein-1 by quantiles, as the mean size of the monotone map between the values."""
    levels = (np.arange(4000) + 0.5) / 4000
    return np.abs(np.quantile(one, levels) - np.quantile(other, levels)).mean()


def test_a_distance_is_the_area_between_straight_lines():
    edges = np.array([0.0, 0.5, 2.0, 3.0])
    one, other = np.array([0.2, 0.5, 0.3]), np.array([0.6, 0.0, 0.4])
    at = (np.arange(300_000) + 0.5) / 100_000
    functions = [np.interp(at, edges, np.concatenate([[0], shares.cumsum()])) for shares in (one, other)]
    area = np.abs(functions[0] - functions[1]).mean() * 3
    assert distance(one, other, edges) == pytest.approx(area, abs=1e-6)
    assert distance(one, one, edges) == 0


def test_anchors_pool_pixels_and_negatives_pool_classes():
    logits = torch.tensor([[1.0, 1.0, 1.0, 5.0, -7.0], [-3.0, -3.0, -3.0, 2.0, 0.0], [-3.0, -3.0, -3.0, -3.0, 1.0]])
    found = read_distributions(count_logits(logits, torch.tensor([0, 0, 0, 1, 2])))
    width = found.edges[1] - found.edges[0]
    np.testing.assert_allclose(mean_logit(found.anchors, found.edges), [1.2, (-3 * 7 + 5 - 7 + 0) / 10], atol=width)
    np.testing.assert_allclose(mean_logit(found.negative, found.edges), [-1, -1.5, -3], atol=width)


def test_a_class_without_pixels_has_negative_logits_only():
    logits, labels = torch.randn(3, 50, generator=torch.Generator().manual_seed(0)), torch.arange(50) % 2
    found = read_distributions(count_logits(logits, labels))
    assert np.isnan(found.positive[2]).all()
    assert np.isnan(found.positive_distance[2])
    assert np.isnan(found.shares[2]).all()
    assert not np.isnan(found.negative).any()
    assert not np.isnan(found.anchors).any()
    assert bias_of_shares(found.shares)[2] > 0


@pytest.mark.parametrize("labels", [[], [0], [0, 0, 0]])
@pytest.mark.parametrize("classes", [1, 2])
def test_little_or_nothing_is_no_trouble(labels, classes):
    logits = torch.arange(classes * len(labels)).reshape(classes, len(labels)).float()
    found = read_distributions(count_logits(logits, torch.tensor(labels, dtype=torch.int64)))
    assert np.isnan(found.shares).all() == (not labels)
    assert np.isnan(found.anchors[0]).all() == (not labels)
    assert np.isnan(found.anchors[1]).all() == (not labels or classes == 1)
    assert quantile_logits(found.positive, found.edges, np.array([0.5])).shape == (classes, 1)
    assert len(read_distributions(LogitHistograms.zeros(classes)).edges) == 2
