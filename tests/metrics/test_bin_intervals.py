"""Intervals of the bins of a reliability diagram: those of the resampled images themselves."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calseg_cli.errors import ConfigError
from calseg_cli.metrics.bin_intervals import accuracy_intervals
from calseg_cli.metrics.image_rows import COARSE_BINS, ImageRows
from calseg_cli.metrics.intervals import Draws, interval, measured, score_draws


def rows(tables, names=None):
    """Rows of images from a list of {coarse bin: (pixels, right)}; accuracy of a bin needs nothing else of them."""
    coarse = np.zeros((len(tables), 3, COARSE_BINS), np.int64)
    confusion = np.zeros((len(tables), 2, 2), np.int64)
    for index, table in enumerate(tables):
        for place, (pixels, right) in table.items():
            coarse[index, :2, place] = pixels, right
            confusion[index] += [[right, pixels - right], [0, 0]]
    whole, real = np.zeros(len(tables), np.int64), np.zeros(len(tables))
    ids = tuple(names or (f"{index:03}" for index in range(len(tables))))
    return ImageRows(ids, confusion, coarse, whole, whole, real, real, real)


def slow(tables, draws, bins, level):
    """Each resample as a list of images, each bin's accuracy as a fraction, and the quantile between sorted draws."""
    found = []
    for place in range(bins):
        inside = range(place * COARSE_BINS // bins, (place + 1) * COARSE_BINS // bins)
        values = []
        for weights in np.concatenate(list(draws)).tolist():
            taken = [table for table, times in zip(tables, weights, strict=True) for _ in range(times)]
            cells = [table[one] for table in taken for one in inside if one in table]
            pixels, right = (sum(column) for column in zip(*cells, strict=True)) if cells else (0, 0)
            if pixels:
                values.append(float(Fraction(right, pixels)))
        held = any(one in table and table[one][0] for table in tables for one in inside)
        known = held and draws.num_groups > 1
        ends = [quantile(sorted(values), share) if known else math.nan for share in ((1 - level) / 2, (1 + level) / 2)]
        found.append(ends)
    return np.array(found)


def quantile(ordered, share):
    """Linear between the two draws at either side of the place (n - 1) * share."""
    place = (len(ordered) - 1) * share
    low = math.floor(place)
    return ordered[low] + (ordered[min(low + 1, len(ordered) - 1)] - ordered[low]) * (place - low)


cells = st.integers(0, 10**9).flatmap(lambda pixels: st.tuples(st.just(pixels), st.integers(0, pixels)))
tables = st.lists(st.dictionaries(st.integers(0, COARSE_BINS - 1), cells, max_size=6), min_size=1, max_size=6)


@settings(max_examples=40, deadline=None)
@given(tables, st.sampled_from([1, 10, 15]), st.integers(0, 5), st.sampled_from([0.5, 0.95]), st.booleans())
def test_each_bin_s_interval_is_that_of_the_resampled_images(tables, bins, seed, level, grouped):
    images = rows(tables)
    groups = tuple(str(index // 2) for index in range(len(tables))) if grouped else images.ids
    draws = Draws(groups, 100, seed)
    found = accuracy_intervals(images, draws, bins=bins, level=level)
    np.testing.assert_allclose(found, slow(tables, draws, bins, level), rtol=1e-12, atol=1e-12)


def test_one_bin_is_the_interval_of_the_accuracy():
    rng = np.random.default_rng(0)
    images = rows([{7: (100, int(rng.integers(0, 100))), 250: (40, int(rng.integers(0, 40)))} for _ in range(9)])
    draws = Draws(images.ids, 300, 4)
    value, drawn = (found.scores["accuracy"] for found in (measured(images), score_draws(images, draws)))
    whole = interval(float(value[0]), drawn, draws)
    assert accuracy_intervals(images, draws, bins=1)[0].tolist() == [whole.low, whole.high]
    assert whole.low < whole.high


def test_what_cannot_be_told_is_missing():
    one = accuracy_intervals(rows([{3: (10, 5)}]), Draws(("000",), 100))
    nothing = accuracy_intervals(rows([]), Draws((), 100))
    assert one.shape == nothing.shape == (15, 2)
    assert np.isnan(one).all()
    assert np.isnan(nothing).all()
    two = accuracy_intervals(rows([{0: (10, 5)}, {0: (10, 9)}]), Draws(("000", "001"), 100))
    assert two[0].tolist() == [0.5, 0.9]
    assert np.isnan(two[1:]).all()


def test_a_bin_of_one_image_has_no_width_and_a_draw_without_it_does_not_count():
    images = rows([{0: (10, 5), 299: (4, 1)}, {0: (10, 9)}, {0: (10, 7)}])
    found = accuracy_intervals(images, Draws(images.ids, 200))
    assert found[-1].tolist() == [0.25, 0.25]
    assert found[0, 0] < found[0, 1]


def test_the_seed_decides_and_bad_requests_are_refused():
    images = rows([{0: (100, index * 9)} for index in range(8)])
    first, again, other = (accuracy_intervals(images, Draws(images.ids, 100, seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first[0] != other[0]).any()
    with pytest.raises(ConfigError, match="7 bins"):
        accuracy_intervals(images, Draws(images.ids, 100), bins=7)
    with pytest.raises(ConfigError, match="level"):
        accuracy_intervals(images, Draws(images.ids, 100), level=1.0)
