"""Equal-mass ECE and bin-free KS against sorted pixels: exact where a fine bin holds equals, else within bounds."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from calseg_cli.errors import ConfigError
from calseg_cli.metrics import calibration as cal
from calseg_cli.metrics.adaptive import adaptive_ece, ks_error
from calseg_cli.metrics.fine_histogram import FINE_BINS, ONE, CalibrationCounts, calibration_counts


def counts_of(confidence, correct, groups=None, num_groups=1):
    q = torch.as_tensor(np.asarray(confidence, np.float32))
    t = torch.as_tensor(np.asarray(correct)).bool()
    g = torch.zeros(len(q), dtype=torch.long) if groups is None else torch.as_tensor(groups)
    return calibration_counts(q, t, g, num_groups)


def sorted_aece(confidence, correct, bins):
    """By sorting and numpy.array_split; confidences must be distinct."""
    order = np.argsort(confidence, kind="stable")
    residual = (np.asarray(confidence, np.float64) - np.asarray(correct, np.float64))[order]
    return math.fsum(abs(math.fsum(part)) for part in np.array_split(residual, bins)) / len(residual)


def tied_aece(confidence, correct, bins):
    """The same where equals are all given the mean of their correctness: the mean over their orders, cut by cut."""
    q, t = np.asarray(confidence, np.float64), np.asarray(correct, np.float64)
    _, place, sizes = np.unique(q, return_inverse=True, return_counts=True)
    return sorted_aece(q, (np.bincount(place, t) / sizes)[place], bins)


def gap_of_mixed_sign(count, seed, ties=0.0):
    rng = np.random.default_rng(seed)
    q = rng.beta(4, 1.2, count).clip(0.05, 1).astype(np.float32)
    q[rng.random(count) < ties] = 1.0
    t = rng.random(count) < np.clip(q.astype(np.float64) + 0.1 * np.sin(9 * q), 0, 1)
    return q, t


@pytest.mark.parametrize("count", [1, 7, 15, 16, 1000, 4000])
@pytest.mark.parametrize("bins", [1, 2, 10, 15])
def test_one_value_a_fine_bin_is_exact(count, bins):
    """Multiples of 1/256 lie each alone in a fine bin, so nothing is left to a bound but the width of the bin."""
    rng = np.random.default_rng(count)
    q = rng.integers(40, 257, count) / 256
    t = rng.random(count) < q - 0.05
    found = adaptive_ece(counts_of(q, t), bins)
    assert found.value == pytest.approx(tied_aece(q, t, bins), abs=1e-13)


@pytest.mark.parametrize("ties", [0.0, 0.1, 0.6])
@pytest.mark.parametrize("bins", [10, 15])
def test_the_sorted_pixels_lie_within_the_bound(ties, bins):
    for seed in range(3):
        q, t = gap_of_mixed_sign(200_000, seed, ties)
        found = adaptive_ece(counts_of(q, t), bins)
        apart = abs(found.value - tied_aece(q, t, bins))
        assert apart <= found.bound
        assert apart < 2e-4  # and mostly far inside it
        assert found.bound < 0.01 or ties


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 40), st.booleans()), min_size=1, max_size=60),
    st.integers(1, 16),
    st.sampled_from([1 / 48_000, 1 / 4_000, 1 / 41]),
)
def test_the_bound_is_a_bound(pixels, bins, step):
    """Steps that put ten values, one value and less than one into a fine bin, and ties at 1."""
    q = np.float32(1 - np.array([place for place, _ in pixels]) * step).astype(np.float64)
    t = np.array([right for _, right in pixels])
    found = adaptive_ece(counts_of(q, t), bins)
    assert abs(found.value - tied_aece(q, t, bins)) <= found.bound + 1e-12
    assert abs(cal.signed_gap(counts_of(q, t))) <= found.value + 1e-12
    assert found.value <= 1


def test_pixels_all_at_one_have_no_order_to_miss():
    counts = counts_of(np.ones(1000), np.arange(1000) % 10 > 0)
    assert adaptive_ece(counts, 15).value == pytest.approx(0.1, abs=1e-12)
    assert adaptive_ece(counts, 15).bound == 0
    nearly = counts_of(np.full(1000, 0.99999), np.arange(1000) % 10 > 0)
    assert adaptive_ece(nearly, 15).bound > 0.1  # of these the histogram does not know that they are equal


def test_the_width_of_a_bin_counts():
    """All right: the number of right ones below a cut is known, their confidence is not."""
    q = np.linspace(0.50001, 0.50019, 100)
    found = adaptive_ece(counts_of(q, np.ones(100)), 2)
    assert found.bound == pytest.approx(2 * 50 * 50 / 100 / FINE_BINS / 100)
    assert abs(found.value - sorted_aece(q, np.ones(100), 2)) <= found.bound


def test_one_bin_is_the_gap_and_groups_are_one_dataset():
    q, t = gap_of_mixed_sign(5000, 3)
    groups = np.random.default_rng(0).integers(0, 4, 5000)
    whole, split = counts_of(q, t), counts_of(q, t, groups, 4)
    assert adaptive_ece(whole, 1).value == pytest.approx(abs(cal.signed_gap(whole)), abs=1e-15)
    assert adaptive_ece(whole, 1).bound == 0
    assert adaptive_ece(split, 15) == adaptive_ece(whole, 15)


def test_scores_hold_beyond_two_to_the_32_pixels():
    counts = CalibrationCounts.zeros(4)
    counts.count[:, -1] = 2**31
    counts.correct[:, -1] = 2**31 - 2**29
    counts.confidence[:, -1] = 2**31 * ONE
    assert adaptive_ece(counts).value == 0.25
    assert ks_error(counts).value == 0.25


def test_nothing_is_not_available():
    for found in (adaptive_ece(CalibrationCounts.zeros(2)), ks_error(CalibrationCounts.zeros(2))):
        assert math.isnan(found.value)
        assert math.isnan(found.bound)
    with pytest.raises(ConfigError, match="0 bins"):
        adaptive_ece(CalibrationCounts.zeros(2), 0)


def sorted_ks(confidence, correct):
    """Read after each group of equal confidences."""
    q, t = np.asarray(confidence, np.float64), np.asarray(correct, np.float64)
    values, place = np.unique(q, return_inverse=True)
    steps = np.bincount(place, q - t, len(values))
    return max(0.0, np.abs(np.cumsum(steps)).max()) / len(q)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 40), st.booleans()), min_size=1, max_size=60),
    st.sampled_from([1 / 48_000, 1 / 41]),
)
def test_ks_of_the_sorted_pixels_lies_above_by_at_most_the_bound(pixels, step):
    q = np.float32(1 - np.array([place for place, _ in pixels]) * step).astype(np.float64)
    t = np.array([right for _, right in pixels])
    found = ks_error(counts_of(q, t))
    exact = sorted_ks(q, t)
    assert found.value - 1e-12 <= exact <= found.value + found.bound + 1e-12
    assert found.value == pytest.approx(cal.ks(counts_of(q, t)), abs=1e-14)


def test_ks_of_a_real_size_is_read_off_closely():
    q, t = gap_of_mixed_sign(100_000, 1)
    found = ks_error(counts_of(q, t))
    assert abs(found.value - sorted_ks(q, t)) <= found.bound < 2e-3
