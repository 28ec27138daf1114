"""Mixtures of logits: the fit against scikit-learn, what a row remembers, and which pixels it is shown."""

import numpy as np
import pytest
import torch
from sklearn.mixture import GaussianMixture
from torch import Tensor

from calseg_cli.errors import ConfigError
from calseg_cli.methods.labelled_pixels import gathered, labelled_pixels, stratified
from calseg_cli.methods.logit_mixtures import (
    LogitAnchors,
    LogitCells,
    MixtureOptions,
    MixtureRows,
    Mixtures,
    blended,
    em_step,
    fit_mixtures,
    log_likelihood,
    quantile_start,
)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def skewed(rows: int, size: int, seed: int = 0) -> Tensor:
    """Samples (R,N), float64: two humps and a long tail, elsewhere in every row."""
    drawn = np.random.default_rng(seed)
    values = np.concatenate(
        [drawn.normal(-2, 1, (rows, size // 2)), 3 + drawn.gamma(2.0, 1.5, (rows, size - size // 2))], axis=1
    )
    return torch.from_numpy(values + np.linspace(-12, 8, rows)[:, None])


def batch_of(classes: int = 4, size: tuple[int, int] = (20, 24), seed: int = 0) -> tuple[Tensor, Tensor]:
    """Logits (2,C,H,W) whose means follow from label and channel, and labels, a tenth of them unknown."""
    drawn = generator(seed)
    labels = torch.randint(0, classes, (2, *size), generator=drawn)
    means = torch.randn(classes, classes, generator=generator(99)) * 3 + 4 * torch.eye(classes)
    logits = means[labels].permute(0, 3, 1, 2) + torch.randn(2, classes, *size, generator=drawn)
    labels[torch.rand(labels.shape, generator=drawn) < 0.1] = 255
    return logits, labels


def kolmogorov(shares: Tensor) -> float:
    """The greatest distance of values in [0,1] to the uniform distribution."""
    ordered = shares.double().sort().values
    steps = torch.arange(len(ordered) + 1, dtype=torch.float64) / len(ordered)
    return float(torch.maximum((ordered - steps[:-1]).abs(), (ordered - steps[1:]).abs()).max())


def equal(one: Mixtures, other: Mixtures) -> bool:
    return all(torch.equal(*pair) for pair in zip(one.parts(), other.parts(), strict=True))


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("loops", [1, 3, 50])
def test_em_is_scikit_learns(loops):
    samples = skewed(3, 400)
    start = quantile_start(samples, 5)
    found = fit_mixtures(samples, steps=loops, start=start)
    for row in range(3):
        theirs = GaussianMixture(
            5,
            covariance_type="diag",
            max_iter=loops,
            tol=0,
            reg_covar=0,
            weights_init=start.weights[row].numpy(),
            means_init=start.means[row].numpy()[:, None],
            precisions_init=1 / start.variances[row].numpy()[:, None],
        ).fit(samples[row].numpy()[:, None])
        np.testing.assert_allclose(found.weights[row], theirs.weights_, atol=1e-8)
        np.testing.assert_allclose(found.means[row], theirs.means_[:, 0], atol=1e-8)
        np.testing.assert_allclose(found.variances[row], theirs.covariances_[:, 0], atol=1e-8)


def test_em_never_lowers_the_likelihood_and_keeps_weights_and_moments():
    samples = skewed(6, 300)
    found = quantile_start(samples, 5)
    before = log_likelihood(samples, found)
    for _ in range(20):
        found = em_step(samples, found)
        after = log_likelihood(samples, found)
        assert bool((after >= before - 1e-12).all())
        before = after
        torch.testing.assert_close(found.weights.sum(-1), torch.ones(6, dtype=torch.float64))
        torch.testing.assert_close(found.mean, samples.mean(-1))
        torch.testing.assert_close(found.variance, samples.var(-1, correction=0))


def test_far_from_zero_in_single_precision_it_fits_all_the_same():
    """Where densities underflow, sums of them would make all components one."""
    samples = skewed(3, 2000) * 0.5 - 60
    found = fit_mixtures(samples.float(), 5, 10)
    for row in range(3):
        assert kolmogorov(found.cdf(samples.float())[row]) < 0.02
    exact = fit_mixtures(samples, 5, 10)
    assert float((found.cdf(samples.float()) - exact.cdf(samples)).abs().max()) < 2e-3


def test_the_distribution_function_is_the_sum_of_normal_ones_and_quantiles_invert_it():
    found = fit_mixtures(skewed(4, 500), 3, 5)
    values = torch.linspace(-40, 40, 801, dtype=torch.float64).expand(4, -1)
    shares = found.cdf(values)
    normal = torch.distributions.Normal(found.means[..., None], found.variances.sqrt()[..., None])
    torch.testing.assert_close(shares, (found.weights[..., None] * normal.cdf(values[:, None])).sum(1))
    assert bool((shares.diff(dim=1) >= 0).all())
    assert float(shares.min()) >= 0
    assert float(shares.max()) <= 1
    levels = torch.tensor([0.001, 0.2, 0.5, 0.97], dtype=torch.float64)
    torch.testing.assert_close(found.cdf(found.quantiles(levels)), levels.expand(4, -1), atol=1e-9, rtol=0)


def test_blending_moves_mean_and_second_moment_by_just_as_much():
    old, new = fit_mixtures(skewed(5, 300), 4, 3), fit_mixtures(skewed(5, 300, 1) + 7, 4, 3)
    keep = torch.tensor([0, 0.3, 0.5, 0.99, 1], dtype=torch.float64)
    found = blended(old, new, keep)
    torch.testing.assert_close(found.weights.sum(-1), torch.ones(5, dtype=torch.float64))
    torch.testing.assert_close(found.mean, keep * old.mean + (1 - keep) * new.mean)
    second = [one.variance + one.mean.square() for one in (found, old, new)]
    torch.testing.assert_close(second[0], keep * second[1] + (1 - keep) * second[2])
    for row, source in ((0, new), (4, old)):
        for mine, theirs in zip(found[row].parts(), source[row].parts(), strict=True):
            torch.testing.assert_close(mine, theirs)


def test_a_row_is_first_its_fit_then_an_average_and_grows_stale():
    options = MixtureOptions(components=1, em_steps=1, momentum=0.9)
    rows = MixtureRows(3, options)
    here = torch.tensor([1])
    first = torch.randn(1, 50, generator=generator()) + 5
    rows.update(first, here)
    torch.testing.assert_close(rows.mixtures.mean[1], first.mean())
    assert rows.updates.tolist() == [0, 1, 0]
    assert rows.seen.tolist() == [False, True, False]
    assert rows.stale.tolist() == [2, 1, 2]
    rows.updates[1] = 10**6  # as after many batches, when momentum alone counts
    for stale in (1, 2, 10):
        before = rows.mixtures.mean[1].clone()
        for _ in range(stale - 1):
            rows.update(first, torch.tensor([0]))
        assert rows.mixtures.mean[1] == before
        assert rows.stale[1] == stale
        rows.update(first + 3, here)
        kept = 0.9**stale
        torch.testing.assert_close(rows.mixtures.mean[1], kept * before + (1 - kept) * (first.mean() + 3))
        assert rows.stale[1] == 1


def test_the_first_updates_weigh_alike():
    rows = MixtureRows(1, MixtureOptions(components=1))
    for value in (1.0, 2.0, 6.0):
        rows.update(value + torch.tensor([[-0.5, 0.5]]), torch.tensor([0]))
    assert float(rows.mixtures.mean) == pytest.approx(3.0)


def test_it_converges_on_what_stays_and_follows_what_changes():
    rows, drawn = MixtureRows(1, MixtureOptions(momentum=0.9)), np.random.default_rng(0)

    def samples(shift: float) -> Tensor:
        values = np.where(drawn.random(1000) < 0.3, drawn.normal(0, 1, 1000), drawn.gamma(3, 1, 1000) - 9)
        return torch.from_numpy(values + shift).float()[None]

    for _ in range(60):
        rows.update(samples(0), torch.tensor([0]))
    fresh = torch.cat([samples(0) for _ in range(10)], dim=1)
    assert kolmogorov(rows.mixtures.cdf(fresh)[0]) < 0.02
    start = float(rows.mixtures.mean)
    for step in range(1, 11):
        rows.update(samples(8), torch.tensor([0]))
        assert float(rows.mixtures.mean) == pytest.approx(start + 8 * (1 - 0.9**step), abs=0.35)


def test_samples_that_are_no_numbers_change_no_row():
    rows = MixtureRows(2, MixtureOptions())
    rows.update(torch.randn(2, 50, generator=generator()), torch.arange(2))
    before = rows.state_dict()
    before = {name: one.clone() for name, one in before.items()}
    bad = torch.randn(1, 50, generator=generator())
    bad[0, 3] = float("nan")
    rows.update(bad, torch.tensor([0]))
    assert rows.stale.tolist() == [2, 2]
    assert all(torch.equal(before[name], one) for name, one in rows.state_dict().items() if name != "stale")


@pytest.mark.parametrize("samples", [torch.full((1, 40), 3.0), torch.tensor([[2.0]]), torch.zeros(1, 2)])
def test_constant_samples_have_the_least_variance(samples):
    found = fit_mixtures(samples, 5, 10)
    assert all(bool(part.isfinite().all()) for part in found.parts())
    assert float(found.variances.min()) == pytest.approx(1e-4)
    torch.testing.assert_close(found.mean, samples.mean(-1))


def test_every_pixel_is_as_likely_and_strata_do_not_leave_their_row():
    counts, size = torch.tensor([7, 0, 100, 3]), 10
    hits = torch.zeros(110)
    drawn = generator()
    for _ in range(2000):
        places = stratified(counts, size, torch.rand(4, size, generator=drawn, dtype=torch.float64))
        assert bool(((places[0] >= 0) & (places[0] < 7)).all())
        assert bool((places[1] == 0).all())
        assert bool(((places[2] >= 7) & (places[2] < 107)).all())
        assert len(set(places[2].tolist())) == size  # more pixels than samples: none twice
        assert sorted(places[3].bincount(minlength=110)[107:].tolist())[0] >= 2  # fewer: each about as often
        hits += sum(places[row].bincount(minlength=110) for row in (0, 2, 3))
    for part, share in ((slice(0, 7), 10 / 7), (slice(7, 107), 0.1), (slice(107, 110), 10 / 3)):
        torch.testing.assert_close(hits[part] / 2000, torch.full_like(hits[part], share), rtol=0.3, atol=0)


@pytest.mark.parametrize("channels_last", [False, True])
def test_the_sorted_pixels_are_those_with_a_label_and_their_logits_are_theirs(channels_last):
    logits, labels = batch_of()
    logits[0, 2, 3, 4], labels[0, 3, 4] = float("nan"), 1
    valid = torch.rand(labels.shape, generator=generator(5)) < 0.8
    pixels = labelled_pixels(logits, labels, valid)
    counted = valid & (labels != 255)
    counted[0, 3, 4] = False
    assert pixels.counts.tolist() == [int((counted & (labels == one)).sum()) for one in range(4)]
    if channels_last:
        logits = logits.contiguous(memory_format=torch.channels_last)
    start = 0
    for label, count in enumerate(pixels.counts.tolist()):
        found = gathered(logits, pixels.order[start : start + count][None])[0]
        expected = logits.permute(0, 2, 3, 1)[counted & (labels == label)]
        assert torch.equal(found, expected)
        start += count


def test_cells_become_their_pixels_and_unknown_ones_stay_away():
    logits, labels = batch_of(size=(60, 60))
    logits.permute(0, 2, 3, 1)[labels == 255] = 1000.0
    cells = LogitCells(4, MixtureOptions(min_pixels=10, em_steps=10))
    cells.update(logits, labelled_pixels(logits, labels), generator())
    assert cells.pixels.tolist() == [int((labels == one).sum()) for one in range(4)]
    assert cells.seen.all()
    for label in range(4):
        values = logits.permute(0, 2, 3, 1)[labels == label].t().contiguous()
        shares = cells.mixtures[label].cdf(values)
        assert max(kolmogorov(row) for row in shares) < 0.04


def test_a_labels_row_is_the_same_whichever_others_are_there():
    logits, labels = batch_of()
    alone = torch.where(labels == 2, labels, 255)
    both = [LogitCells(4, MixtureOptions(min_pixels=10)) for _ in range(2)]
    for cells, shown in zip(both, (labels, alone), strict=True):
        cells.update(logits, labelled_pixels(logits, shown), generator())
    for mine, theirs in zip(both[0].mixtures[2].parts(), both[1].mixtures[2].parts(), strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-5)
    assert both[1].seen.tolist() == [False, False, True, False]


def test_labels_of_few_pixels_are_left_bit_for_bit():
    cells, (logits, labels) = LogitCells(4, MixtureOptions(min_pixels=100)), batch_of()
    cells.update(logits, labelled_pixels(logits, labels), generator())
    before = cells.mixtures[1][:]
    before = Mixtures(*(part.clone() for part in before.parts()))
    more, where = batch_of(seed=3)
    few = torch.where(where == 1, 255, where).flatten()
    few[(where.flatten() == 1).nonzero()[:99, 0]] = 1
    cells.update(more, labelled_pixels(more, few.reshape(where.shape)), generator(1))
    assert equal(before, cells.mixtures[1])
    assert cells.rows.stale.reshape(4, 4).tolist() == [[1] * 4, [2] * 4, [1] * 4, [1] * 4]


@pytest.mark.parametrize("labels", [255, 0])
@pytest.mark.parametrize("pixels", [1, 400])
def test_nothing_to_fit_changes_nothing(labels, pixels):
    logits = torch.randn(1, 3, 1, pixels, generator=generator())
    found = labelled_pixels(logits, torch.full((1, 1, pixels), labels))
    for bank in (LogitCells(3), LogitAnchors()):
        bank.update(logits, found, generator())
        fits = labels == 0 and pixels == 400
        assert bool(bank.seen.any()) == fits
        assert bool(bank.rows.stale.eq(1).all()) or fits
        assert all(bool(one.isfinite().all()) for one in bank.state_dict().values())


def test_anchors_are_all_own_logits_and_all_others():
    logits, labels = batch_of(size=(60, 60))
    anchors = LogitAnchors(MixtureOptions(em_steps=30))
    anchors.update(logits, labelled_pixels(logits, labels), generator())
    known = labels != 255
    own = torch.nn.functional.one_hot(labels.masked_fill(~known, 0), 4).bool()[known]
    values = logits.permute(0, 2, 3, 1)[known]
    for row, chosen in enumerate((own, ~own)):
        assert kolmogorov(anchors.mixtures[row].cdf(values[chosen])) < 0.02
    assert float(anchors.gap) == pytest.approx(float(values[own].mean() - values[~own].mean()), abs=0.1)


def test_frozen_anchors_stay():
    anchors, (logits, labels) = LogitAnchors(), batch_of()
    given = fit_mixtures(torch.randn(2, 200, generator=generator()).double(), 5, 3)
    anchors.freeze(given)
    anchors.update(logits, labelled_pixels(logits, labels), generator())
    assert bool(anchors.seen)
    assert equal(anchors.mixtures, given.to(torch.device("cpu"), torch.float32))
    again = LogitAnchors()
    again.load_state_dict(anchors.state_dict())
    again.update(logits, labelled_pixels(logits, labels), generator())
    assert equal(again.mixtures, anchors.mixtures)
    with pytest.raises(ConfigError, match=r"anchors of shape \(2, 3\)"):
        anchors.freeze(fit_mixtures(torch.randn(2, 200), 3, 1))


@pytest.mark.parametrize("classes", [2, 4, 19])
def test_a_state_dict_is_all_it_remembers(classes):
    whole, half = (LogitCells(classes, MixtureOptions(min_pixels=5)) for _ in range(2))

    def go(cells: LogitCells, steps: range) -> LogitCells:
        for step in steps:
            logits, labels = batch_of(classes, seed=step)
            cells.update(logits, labelled_pixels(logits, labels), generator(step))
        return cells

    go(whole, range(4))
    rest = LogitCells(classes, MixtureOptions(min_pixels=5))
    rest.load_state_dict(go(half, range(2)).state_dict())
    go(rest, range(2, 4))
    assert all(torch.equal(one, rest.state_dict()[name]) for name, one in whole.state_dict().items())


@pytest.mark.parametrize(
    "options", [{"components": 0}, {"em_steps": 0}, {"momentum": 1.0}, {"momentum": -0.1}, {"max_samples": 0}]
)
def test_options_out_of_range_are_named(options):
    with pytest.raises(ConfigError, match=next(iter(options))):
        MixtureOptions(**options)
