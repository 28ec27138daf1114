"""Logit adjustment as a calibrator: Menon's formula, the optimum that it promises, what is refused."""

import numpy as np
import pytest
import torch

from calseg_cli.errors import ArtifactError
from calseg_cli.methods.logit_adjustment import LogitAdjustment

PRIOR = np.array([0.7, 0.25, 0.05, 0.0])


def picture(seed=5):
    return 4 * torch.randn(4, 6, 8, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("tau", [0.0, 0.3, 1.0])
def test_it_takes_the_prior_away(tau):
    logits = picture()
    found = LogitAdjustment(PRIOR, tau)(logits)
    expected = logits.double().numpy()
    expected[:3] -= tau * np.log(PRIOR[:3])[:, None, None]
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert torch.equal(found[3], logits[3])


def test_at_tau_0_nothing_changes():
    assert torch.equal(LogitAdjustment(PRIOR, 0.0)(picture()), picture())


def test_it_decides_as_it_corrects():
    logits = picture()
    found = LogitAdjustment(PRIOR, 0.0).classes(logits.flatten(1), (0.0, 0.4, 1.0))
    for place, tau in enumerate((0.0, 0.4, 1.0)):
        assert torch.equal(found[place], LogitAdjustment(PRIOR, tau)(logits).flatten(1).argmax(0))


def test_the_posteriors_of_another_prior_become_those_of_a_uniform_one():
    """Bayes: with logits that are log posteriors under the prior, tau 1 gives the likelihoods' posterior."""
    drawn = np.random.default_rng(0)
    likelihood, prior = drawn.uniform(0.01, 1, (4, 50)), np.array([0.6, 0.2, 0.15, 0.05])
    posterior = likelihood * prior[:, None]
    logits = torch.from_numpy(np.log(posterior / posterior.sum(axis=0))).float()[..., None]
    found = LogitAdjustment(prior, 1.0)(logits).softmax(dim=0)[..., 0]
    np.testing.assert_allclose(found, likelihood / likelihood.sum(axis=0), atol=1e-5)


@pytest.mark.parametrize(
    "change",
    [{"prior": np.array([0.5, 0.6])}, {"prior": np.array([1.5, -0.5])}, {"tau": np.array([-1.0])}, {"tau": np.ones(2)}],
)
def test_what_are_no_frequencies_is_refused(change):
    one = LogitAdjustment(PRIOR, 0.3)
    with pytest.raises(ArtifactError, match=r"which it cannot be|sums to"):
        LogitAdjustment.from_artifact({**one.to_arrays(), **change}, one.facts())
