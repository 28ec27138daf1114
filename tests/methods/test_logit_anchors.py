"""Anchors from counted logits: EM as scikit-learn does it, moments that are kept, and hard cases."""

import numpy as np
import pytest
import torch
from sklearn.mixture import GaussianMixture

from calseg_cli.methods.logit_anchors import anchor_mixtures
from calseg_cli.methods.logit_mixtures import LogitAnchors, MixtureOptions
from calseg_cli.metrics.logit_histograms import LogitHistograms, count_logits


def counted(classes: int = 4, pixels: int = 600, seed: int = 0) -> LogitHistograms:
    """Two humps of a pixel's own logit, a long tail of the others'."""
    drawn = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, classes, (pixels,), generator=drawn)
    logits = -3 - torch.randn(classes, pixels, generator=drawn).abs() * 2
    own = 4 * torch.randint(0, 2, (pixels,), generator=drawn) + torch.randn(pixels, generator=drawn)
    logits[labels, torch.arange(pixels)] = own
    return count_logits(logits, labels)


def values_of(histograms: LogitHistograms, own: bool) -> np.ndarray:
    """Every logit of that kind at the middle of its bin, one by one."""
    middles = (histograms.edges[:-1] + histograms.edges[1:]) / 2
    found = [
        np.repeat(middles, histograms.counts[label, channel])
        for label in range(histograms.num_classes)
        for channel in range(histograms.num_classes)
        if (label == channel) == own
    ]
    return np.concatenate(found)


@pytest.mark.parametrize("steps", [1, 3, 40])
@pytest.mark.parametrize("row", [0, 1])
def test_em_is_that_of_scikit_learn(steps, row):
    histograms = counted()
    start, found = (anchor_mixtures(histograms, 3, number)[row] for number in (0, steps))
    samples = values_of(histograms, own=row == 0)[:, None]
    theirs = GaussianMixture(
        3, tol=0, reg_covar=0, max_iter=steps, weights_init=start.weights.numpy(), means_init=start.means[:, None],
        precisions_init=1 / start.variances[:, None, None],
    )  # fmt: skip
    with pytest.warns(match="did not converge"):
        theirs.fit(samples)
    np.testing.assert_allclose(found.weights, theirs.weights_, atol=1e-8)
    np.testing.assert_allclose(found.means, theirs.means_[:, 0], atol=1e-8)
    np.testing.assert_allclose(found.variances, theirs.covariances_[:, 0, 0], atol=1e-8)


def test_they_have_the_mean_and_variance_of_all_logits_and_follow_their_distribution():
    histograms = counted()
    anchors = anchor_mixtures(histograms)
    assert anchors.means.dtype == torch.float64
    for row in (0, 1):
        samples = np.sort(values_of(histograms, own=row == 0))
        assert float(anchors.mean[row]) == pytest.approx(samples.mean(), abs=1e-9)
        assert float(anchors.variance[row]) == pytest.approx(samples.var(), rel=0.01)
        shares = anchors[row].cdf(torch.from_numpy(samples)).numpy()
        assert np.abs(shares - (np.arange(len(samples)) + 0.5) / len(samples)).max() < 0.05


def test_the_same_counts_give_the_same_bits_on_any_grid_that_is_as_fine():
    first, second = (anchor_mixtures(counted()) for _ in range(2))
    assert all(torch.equal(*pair) for pair in zip(first.parts(), second.parts(), strict=True))
    doubled = counted() + counted()
    for mine, theirs in zip(anchor_mixtures(doubled).parts(), first.parts(), strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-9, rtol=0)


@pytest.mark.parametrize("value", [0.0, 7.3, -4e6])
def test_constant_logits_give_a_finite_fit(value):
    histograms = count_logits(torch.full((2, 9), value), torch.tensor([0, 1] * 4 + [0]))
    anchors = anchor_mixtures(histograms)
    assert all(bool(part.isfinite().all()) for part in anchors.parts())
    assert bool((anchors.variances >= 1e-4).all())
    width = float(np.diff(histograms.edges[:2])[0])
    assert float(anchors.mean[0]) == pytest.approx(value, abs=width)


def test_they_can_be_frozen():
    held = LogitAnchors(MixtureOptions(components=3))
    held.freeze(anchor_mixtures(counted(), 3))
    assert float(held.gap) > 3
