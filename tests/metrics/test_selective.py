"""Risk and coverage against sorting, all orders of ties, and digammas of fifty digits."""

import itertools
import math

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from calseg_cli.errors import ConfigError
from calseg_cli.metrics.fine_histogram import CalibrationCounts, calibration_counts
from calseg_cli.metrics.selective import (
    augrc,
    aurc,
    coverage_at_risk,
    harmonic_difference,
    risk_at_coverage,
    risk_coverage,
)


def counts_of(confidence, correct):
    q = torch.as_tensor(np.asarray(confidence, np.float32))
    return calibration_counts(q, torch.as_tensor(np.asarray(correct)).bool(), torch.zeros(len(q), dtype=torch.long), 1)


def areas(errors):
    """(AURC, AUGRC) of errors from the surest pixel on."""
    total = np.cumsum(np.asarray(errors, np.float64))
    rank = np.arange(1, len(total) + 1)
    return math.fsum(total / rank) / len(total), math.fsum(total) / len(total) ** 2


def sorted_errors(confidence, correct):
    return ~np.asarray(correct, bool)[np.argsort(-np.asarray(confidence), kind="stable")]


def all_orders(confidence, correct):
    """The areas of every order of the equals."""
    levels = sorted(set(confidence), reverse=True)
    groups = [[not t for q, t in zip(confidence, correct, strict=True) if q == level] for level in levels]
    orders = itertools.product(*(itertools.permutations(group) for group in groups))
    return np.array([areas(list(itertools.chain(*order))) for order in orders])


def test_distinct_confidences_are_sorted_exactly():
    rng = np.random.default_rng(0)
    q = rng.permutation(np.arange(300, 4000))[:3000] / 4096 + 1 / 8192  # no two in one fine bin: 4096 < 4800
    t = rng.random(3000) < q
    counts = counts_of(q, t)
    for score, exact in zip((aurc, augrc), areas(sorted_errors(q, t)), strict=True):
        found = score(counts)
        assert found.value == pytest.approx(exact, abs=1e-14)
        assert found.lowest == pytest.approx(exact, abs=1e-14)
        assert found.highest == pytest.approx(exact, abs=1e-14)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.sampled_from([0.3, 0.6, 0.9, 1.0]), st.booleans()), min_size=1, max_size=6))
def test_ties_give_the_mean_the_least_and_the_most_of_all_orders(pixels):
    q, t = zip(*pixels, strict=True)
    orders = all_orders(q, t)
    for column, score in enumerate((aurc, augrc)):
        found = score(counts_of(q, t))
        assert found.value == pytest.approx(orders[:, column].mean(), abs=1e-13)
        assert found.lowest == pytest.approx(orders[:, column].min(), abs=1e-13)
        assert found.highest == pytest.approx(orders[:, column].max(), abs=1e-13)


@pytest.mark.parametrize("ties", [0.0, 0.3])
def test_any_order_of_many_pixels_lies_between(ties):
    rng = np.random.default_rng(1)
    q = rng.beta(5, 1, 200_000).astype(np.float32)
    q[rng.random(len(q)) < ties] = 1.0
    t = rng.random(len(q)) < q
    counts = counts_of(q, t)
    for seed in range(2):
        shuffled = np.random.default_rng(seed).permutation(len(q))
        exact = areas(sorted_errors(q[shuffled], t[shuffled]))
        for score, value in zip((aurc, augrc), exact, strict=True):
            found = score(counts)
            assert found.lowest <= value <= found.highest
            assert found.value == pytest.approx(value, rel=5e-3)


def test_cases_by_hand():
    """Errors 0, 1, 0, 1 from the surest on: risks 0, 1/2, 1/3, 1/2."""
    counts = counts_of([0.9, 0.8, 0.7, 0.6], [1, 0, 1, 0])
    assert aurc(counts).value == pytest.approx((0 + 1 / 2 + 1 / 3 + 1 / 2) / 4, abs=1e-15)
    assert augrc(counts).value == pytest.approx((0 + 1 + 1 + 2) / 16, abs=1e-15)
    curve = risk_coverage(counts)
    np.testing.assert_allclose(curve.coverage, [0.25, 0.5, 0.75, 1])
    np.testing.assert_allclose(curve.risk, [0, 1 / 2, 1 / 3, 1 / 2])
    assert ((curve.threshold <= [0.9, 0.8, 0.7, 0.6]) & (curve.threshold > [0.8995, 0.7995, 0.6995, 0.5995])).all()
    assert [risk_at_coverage(counts, share) for share in (0.25, 0.5, 0.75, 1)] == pytest.approx([0, 0.5, 1 / 3, 0.5])
    assert [coverage_at_risk(counts, risk) for risk in (0, 1 / 3, 0.5, 1)] == pytest.approx([0.25, 0.75, 1, 1])
    assert coverage_at_risk(counts, 0.4) == pytest.approx((3 + 0.2 / 0.6) / 4)  # (1 + x) / (3 + x) = 0.4


def test_a_right_and_a_wrong_network():
    q = np.linspace(0.2, 0.99, 500)
    right, wrong = counts_of(q, np.ones(500)), counts_of(q, np.zeros(500))
    assert (aurc(right).value, augrc(right).value, coverage_at_risk(right, 0.0)) == (0, 0, 1)
    assert aurc(wrong).value == pytest.approx(1, abs=1e-14)
    assert augrc(wrong).value == pytest.approx(0.5 + 0.5 / 500, abs=1e-14)
    assert coverage_at_risk(wrong, 0.99) == 0
    assert risk_at_coverage(wrong, 0.01) == 1


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 20), st.booleans()), min_size=1, max_size=60), st.floats(0, 1))
def test_coverage_is_the_largest_within_the_risk(pixels, risk):
    q, t = np.array([place for place, _ in pixels]) / 20, np.array([right for _, right in pixels])
    counts = counts_of(q, t)
    found = coverage_at_risk(counts, risk)
    assert 0 <= found <= 1
    if found > 1e-9:
        assert risk_at_coverage(counts, found) <= risk + 1e-9
    for further in np.linspace(found, 1, 7)[1:]:
        if further > found + 1e-6:
            assert risk_at_coverage(counts, min(further, 1.0)) > risk - 1e-9


@pytest.mark.parametrize("start", [0, 1, 5, 31, 32, 33, 1000, 10**6, 10**9, 10**12])
@pytest.mark.parametrize("length", [0, 1, 3, 40, 10**4, 10**9])
def test_harmonic_sums_keep_all_digits(start, length):
    with mpmath.workdps(50):
        exact = mpmath.digamma(start + length + 1) - mpmath.digamma(start + 1)
    assert float(harmonic_difference(start, length)) == pytest.approx(float(exact), rel=2e-15, abs=0)


def test_a_billion_pixels_of_ties_keep_their_area():
    """Two bins, against a sum in fifty digits."""
    counts = CalibrationCounts.zeros(1)
    counts.count[0, [4799, 3000]] = [10**9, 3 * 10**8]
    counts.correct[0, [4799, 3000]] = [10**9 - 10**7, 10**8]
    with mpmath.workdps(50):
        n, e = mpmath.mpf(10**9), mpmath.mpf(10**7)
        m, f = mpmath.mpf(3 * 10**8), mpmath.mpf(2 * 10**8)
        delta = mpmath.digamma(n + m + 1) - mpmath.digamma(n + 1)
        area = e / n * n + e * delta + f / m * (m - n * delta)
    assert aurc(counts).value == pytest.approx(float(area / (n + m)), rel=1e-13)


def test_nothing_is_not_available_and_nonsense_is_refused():
    none = CalibrationCounts.zeros(2)
    assert math.isnan(aurc(none).value)
    assert math.isnan(augrc(none).highest)
    assert math.isnan(risk_at_coverage(none, 0.5))
    assert math.isnan(coverage_at_risk(none, 0.5))
    assert risk_coverage(none).coverage.size == 0
    for bad in (0.0, 1.5, -1.0, math.nan):
        with pytest.raises(ConfigError, match="coverage"):
            risk_at_coverage(none, bad)
    for bad in (1.5, -1.0, math.nan):
        with pytest.raises(ConfigError, match="risk"):
            coverage_at_risk(none, bad)
