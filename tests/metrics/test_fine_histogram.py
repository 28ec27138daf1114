"""Integer counts: each pixel in the right bin, sums without any rounding, whatever the order."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from calseg_cli.errors import ConfigError, DataError
from calseg_cli.metrics.calibration import ece
from calseg_cli.metrics.fine_histogram import (
    FINE_BINS,
    ONE,
    CalibrationCounts,
    calibration_counts,
    check_bins,
    fine_bins,
)

BOTH = pytest.mark.parametrize("edges", ["right", "left"])


def hard_confidences():
    """Every float32 next to, at, and around each fine edge; tiny numbers; and a million between."""
    edges = (np.arange(FINE_BINS + 1) / FINE_BINS).astype(np.float32)
    near = [edges]
    for direction in (0.0, 1.0):
        step = edges
        for _ in range(3):
            step = np.nextafter(step, np.float32(direction))
            near.append(step)
    tiny = np.array([0, 1e-45, 1e-38, 1e-20, 1e-9], np.float32)
    between = np.random.default_rng(0).random(10**6, dtype=np.float32)
    return np.concatenate([*near, tiny, between, np.array([0.5, 0.7, 1.0], np.float32)])


@BOTH
def test_the_bin_is_the_one_a_search_finds(edges):
    q = hard_confidences()
    side = "left" if edges == "right" else "right"
    searched = np.searchsorted(np.arange(FINE_BINS + 1) / FINE_BINS, q.astype(np.float64), side=side) - 1
    found = fine_bins(torch.from_numpy(q), edges)
    np.testing.assert_array_equal(found.numpy(), searched.clip(0, FINE_BINS - 1))


@BOTH
@pytest.mark.parametrize("groups", [1, 3])
def test_counts_are_those_of_exact_fractions(edges, groups, reference, make_pixels):
    q, t, g = make_pixels(400, classes=groups, lowest=1 / 256)
    counts = calibration_counts(q, t, g, groups, edges)
    count, correct = (np.zeros((groups, FINE_BINS), np.int64) for _ in range(2))
    total = {}
    for confidence, right, group in zip(q.tolist(), t.tolist(), g.tolist(), strict=True):
        cell = group, int(confidence * FINE_BINS)  # none of these lies on an edge
        count[cell] += 1
        correct[cell] += right
        total[cell] = total.get(cell, Fraction(0)) + Fraction(confidence)
    np.testing.assert_array_equal(counts.count, count)
    np.testing.assert_array_equal(counts.correct, correct)
    assert all(Fraction(int(counts.confidence[cell]), ONE) == value for cell, value in total.items())
    assert int(counts.confidence.sum()) == sum(total.values()) * ONE


@BOTH
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**16), parts=st.integers(1, 7), data=st.data())
def test_shards_in_any_order_add_to_the_same_bits(edges, seed, parts, data):
    generator = torch.Generator().manual_seed(seed)
    n = data.draw(st.integers(1, 500))
    q = torch.rand(n, generator=generator)
    q[torch.rand(n, generator=generator) < 0.2] = 1.0
    t = torch.rand(n, generator=generator) < q
    g = torch.randint(0, 4, (n,), generator=generator)
    whole = calibration_counts(q, t, g, 4, edges)
    shuffled = torch.randperm(n, generator=generator)
    total = CalibrationCounts.zeros(4, edges)
    for piece in shuffled.chunk(parts):
        total += calibration_counts(q[piece], t[piece], g[piece], 4, edges)
    assert total == whole
    assert total.num_pixels == n


def test_thirty_million_equal_confidences_keep_their_error():
    """float32 sums freeze here: torchmetrics reports 0.0 for this network, which is 0.12 too sure of itself."""
    pixels, right = 10**6, 850_000
    q = torch.full((pixels,), 0.97)
    t = torch.arange(pixels) < right
    g = torch.zeros(pixels, dtype=torch.long)
    total = CalibrationCounts.zeros(1)
    for _ in range(30):
        total.absorb(calibration_counts(q, t, g, 1))
    assert total.num_pixels == 30 * pixels
    exact = float(np.float32(0.97)) - 0.85  # the float32 next to 0.97 is 2.9e-8 above it
    assert ece(total) == pytest.approx(exact, abs=1e-9)
    assert ece(total) == pytest.approx(0.12, abs=5e-8)


def test_a_tiny_confidence_is_rounded_to_the_nearest_unit():
    q = torch.tensor([0.9, 1.4, 2.6]) / ONE
    counts = calibration_counts(q, torch.zeros(3).bool(), torch.zeros(3, dtype=torch.long), 1)
    assert int(counts.confidence[0, 0]) == 1 + 1 + 3


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -1e-6, 1.0000001])
def test_a_number_that_is_no_confidence_is_refused(bad):
    with pytest.raises(ValueError, match="confidence"):
        calibration_counts(torch.tensor([0.5, bad]), torch.tensor([True, True]), torch.zeros(2, dtype=torch.long), 1)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.int64])
def test_only_float32_is_exact_and_taken(dtype):
    with pytest.raises(ValueError, match="float32"):
        fine_bins(torch.ones(2, dtype=dtype))


@pytest.mark.parametrize("group", [-1, 2])
def test_a_group_out_of_range_is_refused(group):
    with pytest.raises(ValueError, match="group"):
        calibration_counts(torch.tensor([0.5]), torch.tensor([True]), torch.tensor([group]), 2)


def test_nothing_gives_zeros():
    none = torch.zeros(0)
    assert calibration_counts(none, none.bool(), none.long(), 3) == CalibrationCounts.zeros(3)


@pytest.mark.parametrize("other", [CalibrationCounts.zeros(2, "left"), CalibrationCounts.zeros(3, "right")])
def test_counts_of_another_kind_are_not_added(other):
    with pytest.raises(ConfigError, match="cannot be added"):
        CalibrationCounts.zeros(2, "right") + other
    assert CalibrationCounts.zeros(2, "right") != other


def test_an_overflow_is_refused_before_it_happens():
    full = CalibrationCounts.zeros(1)
    full.confidence[0, -1] = full.count[0, -1] = 2**62
    before = full.copy()
    with pytest.raises(DataError, match=r"2\*\*32"):
        full.absorb(before)
    assert full == before


def test_addition_leaves_its_terms_alone():
    one = calibration_counts(torch.tensor([0.5]), torch.tensor([True]), torch.tensor([0]), 1)
    before = one.copy()
    both = one + one
    assert one == before
    assert both.num_pixels == 2


def test_arrays_of_another_shape_or_type_are_refused():
    good = np.zeros((2, FINE_BINS), np.int64)
    for bad in (good.astype(np.float64), good[:1], good[:, :-1]):
        with pytest.raises(ValueError, match="int64"):
            CalibrationCounts(good, good, bad)


def test_unknown_edges_are_refused_by_name():
    with pytest.raises(ConfigError, match="'middle'"):
        CalibrationCounts.zeros(1, "middle")


@pytest.mark.parametrize(("bins", "near"), [(17, "choose 16 or 20"), (0, "choose 1"), (9600, "choose 4800")])
def test_bins_that_do_not_fit_name_the_nearest_that_do(bins, near):
    with pytest.raises(ConfigError) as caught:
        check_bins(bins)
    assert caught.value.hint == near


@pytest.mark.parametrize("bins", [1, 10, 12, 15, 16, 20, 24, 25, 30, 50, 100, 4800])
def test_the_customary_numbers_of_bins_fit(bins):
    check_bins(bins)


@pytest.mark.gpu
@BOTH
def test_a_gpu_counts_the_same_bits(edges, cuda):
    generator = torch.Generator().manual_seed(0)
    q = torch.rand(10**6, generator=generator)
    t = torch.rand(10**6, generator=generator) < q
    g = torch.randint(0, 19, (10**6,), generator=generator)
    there = calibration_counts(q.to(cuda), t.to(cuda), g.to(cuda), 19, edges)
    assert there == calibration_counts(q, t, g, 19, edges)
