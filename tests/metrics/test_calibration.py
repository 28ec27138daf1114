"""Calibration scores against other people's code, brute force in float64, and what must hold between them."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.calibration import calibration_curve

from calseg_cli.errors import ConfigError
from calseg_cli.metrics import calibration as cal
from calseg_cli.metrics.adaptive import adaptive_ece
from calseg_cli.metrics.calibration import FINE_BINS, CalibrationCounts, Convention, calibration_counts
from calseg_cli.metrics.fine_histogram import ONE


def counts_of(confidence, correct, edges="right"):
    q = torch.as_tensor(confidence, dtype=torch.float32)
    return calibration_counts(q, torch.as_tensor(correct).bool(), torch.zeros(len(q), dtype=torch.long), 1, edges)


@pytest.mark.parametrize("edges", ["right", "left"])
@pytest.mark.parametrize("bins", [10, 12, 15, 20, 25])
@pytest.mark.parametrize("seed", [0, 1])
def test_off_the_edges_everybody_agrees(edges, bins, seed, reference, make_pixels):
    q, t, _ = make_pixels(100_000, seed)
    counts = counts_of(q, t, edges)
    q64, t8 = q.double().numpy(), t.numpy().astype(np.int64)
    assert cal.ece(counts, bins) == pytest.approx(reference.netcal_ece(q64, t8, bins), abs=1e-14)
    assert cal.ece(counts, bins) == pytest.approx(reference.torchmetrics_error(q64, t8, bins, "l1"), abs=1e-14)
    assert cal.rmsce(counts, bins) == pytest.approx(reference.torchmetrics_error(q64, t8, bins, "l2"), abs=1e-14)
    assert cal.mce(counts, bins) == pytest.approx(reference.torchmetrics_error(q64, t8, bins, "max"), abs=1e-13)


@pytest.mark.parametrize("bins", [10, 15, 16, 48])
def test_brute_force_agrees(bins, reference, make_pixels):
    q, t, _ = make_pixels(3000, seed=3)
    counts = counts_of(q, t)
    assert cal.ece(counts, bins) == pytest.approx(reference.ece(q, t, bins), abs=1e-15)
    assert cal.rmsce(counts, bins) == pytest.approx(reference.rmsce(q, t, bins), abs=1e-15)
    assert cal.mce(counts, bins, 50) == pytest.approx(reference.mce(q, t, bins, 50), abs=1e-15)
    assert cal.signed_gap(counts) == pytest.approx(float(q.double().mean() - t.double().mean()), abs=1e-15)
    assert cal.mean_confidence(counts) == pytest.approx(float(q.double().mean()), abs=1e-15)


@pytest.mark.parametrize("bins", [10, 15, 20])
def test_the_curve_is_sklearns_also_at_zero_and_one(bins, make_pixels):
    q, t, _ = make_pixels(20_000, lowest=0.0)
    q[:50], q[50:900] = 0.0, 1.0
    curve = cal.reliability(counts_of(q, t), bins)
    accuracy, confidence = calibration_curve(t.numpy(), q.double().numpy(), n_bins=bins)
    filled = curve.count > 0
    np.testing.assert_allclose(curve.confidence[filled], confidence, atol=1e-8)  # sums of q < 1/256 are rounded
    np.testing.assert_allclose(curve.accuracy[filled], accuracy, atol=1e-14)
    assert curve.count.sum() == len(q)
    assert ((curve.confidence >= curve.lower - 1e-9) & (curve.confidence <= curve.upper + 1e-9)).all()


def test_empty_bins_of_the_curve_are_not_available():
    curve = cal.reliability(counts_of([0.95], [1]), 10)
    assert curve.count.tolist() == [0] * 9 + [1]
    assert np.isnan(curve.accuracy[:9]).all()
    assert np.isnan(curve.confidence[:9]).all()
    np.testing.assert_array_equal(curve.lower, np.arange(10) / 10)
    np.testing.assert_array_equal(curve.upper, np.arange(1, 11) / 10)


@pytest.mark.parametrize(
    ("confidence", "correct", "right", "left"),
    [
        ([0.95, 1.0], [1, 0], 0.475, 0.475),  # no hidden bin for confidence 1
        ([0.5, 0.45], [1, 0], 0.025, 0.475),
        ([0.5, 0.55], [1, 0], 0.525, 0.025),
        ([0.3], [1], 0.7, 0.7),
        ([0.3], [0], 0.3, 0.3),
        ([0.0, 0.05], [1, 0], 0.475, 0.475),  # confidence 0 is in the first bin, not lost
        ([1.0], [1], 0.0, 0.0),
    ],
)
def test_cases_by_hand(confidence, correct, right, left):
    assert cal.ece(counts_of(confidence, correct, "right"), 10) == pytest.approx(right, abs=1e-7)
    assert cal.ece(counts_of(confidence, correct, "left"), 10) == pytest.approx(left, abs=1e-7)


@pytest.mark.parametrize("edges", ["right", "left"])
def test_confidences_on_the_edges_follow_the_convention(edges, reference):
    """Multiples of 1/64 fall on edges of 4, 16 and 64 bins."""
    rng = np.random.default_rng(0)
    q = rng.integers(0, 65, 4000) / 64
    t = rng.random(4000) < 0.5 + 0.3 * np.sin(60 * q)
    for bins in (4, 16, 64):
        assert cal.ece(counts_of(q, t, edges), bins) == pytest.approx(reference.ece(q, t, bins, edges), abs=1e-12)
    assert cal.ece(counts_of(q, t, "right"), 16) != cal.ece(counts_of(q, t, "left"), 16)


def test_nothing_is_not_available():
    none = CalibrationCounts.zeros(3)
    scores = (cal.ece, cal.mce, cal.rmsce, cal.signed_gap, cal.over_confidence, cal.under_confidence, cal.ks)
    scores += (cal.ace_bins, cal.ece_over_groups)
    assert all(math.isnan(score(none)) for score in (*scores, cal.noise_floor, cal.mean_confidence))
    assert np.isnan(cal.ece_by_group(none)).all()


def test_mce_needs_a_bin_with_enough_pixels():
    counts = counts_of([0.55] * 5 + [0.95], [1] * 5 + [0])
    assert cal.mce(counts, 10) == pytest.approx(0.95, abs=1e-7)
    assert cal.mce(counts, 10, min_count=2) == pytest.approx(0.45, abs=1e-7)
    assert math.isnan(cal.mce(counts, 10, min_count=6))


def test_the_error_of_a_group_is_that_of_its_pixels_alone(make_pixels):
    q, t, g = make_pixels(5000, classes=4)
    counts = calibration_counts(q, t, g, 5)
    alone = [cal.ece(counts_of(q[g == group], t[g == group])) for group in range(4)]
    np.testing.assert_allclose(cal.ece_by_group(counts)[:4], alone, atol=1e-15)
    assert math.isnan(cal.ece_by_group(counts)[4])
    assert cal.ece(counts) == cal.ece(counts_of(q, t))


def test_histograms_by_class_are_summed_and_not_averaged(make_pixels):
    """Written out by class and bin; over all pixels, as Local Temperature Scaling does."""
    q, t, g = make_pixels(5000, classes=4)
    counts = calibration_counts(q, t, g, 5)
    cells = (q.double() * 15).long().numpy() + 15 * g.numpy()
    gaps = np.abs(np.bincount(cells, (q.double() - t.double()).numpy()))
    assert cal.ece_over_groups(counts) == pytest.approx(gaps.sum() / 5000, abs=1e-14)
    assert cal.ece_over_groups(counts) > cal.ece(counts)
    assert cal.ece_over_groups(counts_of(q, t)) == cal.ece(counts_of(q, t))
    weights = counts.count.sum(axis=1)[:4] / 5000
    assert cal.ece_over_groups(counts) == pytest.approx((weights * cal.ece_by_group(counts)[:4]).sum(), abs=1e-14)


@pytest.mark.parametrize("bins", [10, 15])
def test_the_mean_over_bins_counts_each_occupied_bin_alike(bins, reference, make_pixels):
    q, t, _ = make_pixels(3000, seed=3, lowest=0.45)
    gaps = [abs(math.fsum(q) - math.fsum(t)) / len(q) for q, t in reference.bin_table(q, t, bins) if q]
    assert 0 < len(gaps) < bins
    assert cal.ace_bins(counts_of(q, t), bins) == pytest.approx(math.fsum(gaps) / len(gaps), abs=1e-14)
    assert cal.ace_bins(counts_of(q, t), bins) <= cal.mce(counts_of(q, t), bins)


def test_ks_is_the_largest_partial_sum_of_the_sorted_pixels(make_pixels):
    q, t, _ = make_pixels(300)
    assert len(set((q.double() * FINE_BINS).long().tolist())) > 250
    order = torch.argsort(q)
    partial = np.concatenate([[0.0], np.cumsum((q[order].double() - t[order].double()).numpy())])
    bins = (q[order].double() * FINE_BINS).long().numpy()
    ends = np.concatenate([[True], np.append(bins[1:] != bins[:-1], True)])
    assert cal.ks(counts_of(q, t)) == pytest.approx(np.abs(partial[ends]).max() / len(q), abs=1e-15)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.floats(0.0625, 1, width=32), st.booleans()), min_size=1, max_size=80),
    st.sampled_from([(5, 10), (10, 20), (15, 30), (10, 4800), (1, 15)]),
)
def test_what_must_hold_between_the_scores(pixels, nested):
    q, t = zip(*pixels, strict=True)
    counts = counts_of(q, t)
    few, many = nested
    tiny = 1e-12
    gap, error = cal.signed_gap(counts), cal.ece(counts, few)
    assert abs(gap) <= error + tiny
    assert error <= cal.ece(counts, many) + tiny
    assert error <= cal.rmsce(counts, few) + tiny
    assert abs(gap) <= adaptive_ece(counts, few).value + tiny
    assert cal.rmsce(counts, few) <= cal.mce(counts, few) + tiny
    assert cal.over_confidence(counts, few) + cal.under_confidence(counts, few) == pytest.approx(error, abs=tiny)
    assert cal.over_confidence(counts, few) - cal.under_confidence(counts, few) == pytest.approx(gap, abs=tiny)
    assert abs(gap) <= cal.ks(counts) + tiny
    assert cal.ks(counts) <= cal.ece(counts, FINE_BINS) + tiny
    top_brier = np.mean((np.float64(np.float32(q)) - np.array(t)) ** 2)
    assert cal.rmsce(counts, few) ** 2 <= top_brier + tiny
    assert 0 <= error <= 1


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000), st.integers(2, 5))
def test_repeating_every_pixel_changes_no_score(seed, times):
    generator = torch.Generator().manual_seed(seed)
    q = torch.rand(50, generator=generator)
    t = torch.rand(50, generator=generator) < 0.5
    once, often = counts_of(q, t), counts_of(q.repeat(times), t.repeat(times))
    for score in (cal.ece, cal.mce, cal.rmsce, cal.signed_gap, cal.ks, cal.over_confidence):
        assert score(often) == pytest.approx(score(once), abs=1e-12)


def test_scores_hold_beyond_two_to_the_32_pixels():
    """The sum over classes leaves int64 here, and no score may notice."""
    counts = CalibrationCounts.zeros(4)
    counts.count[:, -1] = 2**31
    counts.correct[:, -1] = 2**31 - 2**29
    counts.confidence[:, -1] = 2**31 * ONE
    assert counts.num_pixels == 2**33
    for score in (cal.ece, cal.mce, cal.rmsce, cal.signed_gap, cal.ks, cal.over_confidence):
        assert score(counts) == 0.25
    assert cal.reliability(counts).confidence[-1] == 1.0


def test_the_noise_floor_is_what_chance_alone_would_show(make_pixels):
    """The mean of |N(0, s)| is s * sqrt(2 / pi), and s**2 of a bin is the sum of q (1 - q)."""
    q, t, _ = make_pixels(20_000)
    variance = np.bincount((q.double() * 15).long().numpy(), (q.double() * (1 - q.double())).numpy(), minlength=15)
    expected = np.sqrt(variance * 2 / np.pi).sum() / len(q)
    assert cal.noise_floor(counts_of(q, t), 15, repeats=400) == pytest.approx(expected, rel=0.03)
    truthful = torch.rand(len(q), generator=torch.Generator().manual_seed(1)) < q
    assert cal.ece(counts_of(q, truthful)) < 2 * expected < cal.ece(counts_of(q, t))


def test_the_noise_floor_falls_with_pixels_and_grows_with_bins(make_pixels):
    few, many = (counts_of(*make_pixels(n)[:2]) for n in (1000, 100_000))
    assert cal.noise_floor(few) == pytest.approx(10 * cal.noise_floor(many), rel=0.15)
    assert cal.noise_floor(few, 100) > cal.noise_floor(few, 15) > cal.noise_floor(few, 1)


def test_the_noise_floor_depends_on_its_seed_alone(make_pixels):
    counts = counts_of(*make_pixels(1000)[:2])
    assert cal.noise_floor(counts, seed=1) == cal.noise_floor(counts, seed=1) != cal.noise_floor(counts, seed=2)


@pytest.mark.parametrize("score", [cal.ece, cal.mce, cal.rmsce, cal.over_confidence, cal.reliability, cal.noise_floor])
def test_bins_that_do_not_divide_are_refused(score):
    with pytest.raises(ConfigError, match="17 bins"):
        score(counts_of([0.5], [1]), 17)


def test_the_convention_speaks():
    assert Convention(10, "left").describe() == (
        "ECE: top-label, 10 equal-width bins [lo,hi), the last one closed, every labelled pixel of the dataset once"
    )
    for wrong in ({"bins": 7}, {"edges": "both"}):
        with pytest.raises(ConfigError):
            Convention(**wrong)
