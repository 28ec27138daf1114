"""Resamples of images: the same numbers as measuring the resampled images, and intervals that cover."""

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calseg_cli.errors import ConfigError
from calseg_cli.metrics.image_rows import COARSE_BINS, ImageRows
from calseg_cli.metrics.intervals import (
    Difference,
    Draws,
    check_level,
    difference,
    interval,
    measured,
    score_draws,
)
from calseg_cli.metrics.scores import read_scores
from calseg_cli.metrics.tally import merge, tally_image

NAMES = ["road", "pole", "sky", "car", "train"]


def rename(tally, name):
    """The same image under another name, so that it can be counted more than once."""
    return dataclasses.replace(tally, images=dataclasses.replace(tally.images, ids=(name,)))


def resampled(tallies, weights):
    """The tally of each image as often as its weight says, put together as any tallies are."""
    copies = [
        rename(tally, f"{tally.ids[0]}#{copy}")
        for tally, weight in zip(tallies, weights, strict=True)
        for copy in range(weight)
    ]
    return merge(copies)


@pytest.fixture(scope="module")
def tallies(make_image):
    """Seven images of five classes: one without a label, the last class in the last two images only."""
    made = []
    for seed in range(7):
        logits, labels = make_image(seed, len(NAMES), 20 + seed, 24)
        if seed == 2:
            labels[:] = 255
        if seed < 5:
            labels[labels == 4] = 255
        made.append(tally_image(logits, labels, image_id=f"s{seed % 3}/{seed}.png", ignore=255))
    return sorted(made, key=lambda tally: tally.ids)


@pytest.fixture(scope="module")
def images(tallies):
    return merge(tallies).images


def same(mine, theirs):
    return mine == theirs or (math.isnan(mine) and math.isnan(theirs))


def assert_equal(drawn, tally, bins, classes):
    """Draw 0 has, bit for bit, the scores that the tally has."""
    scores = read_scores(tally, bins=bins, classes=classes, class_names=NAMES)
    for name, values in drawn.scores.items():
        assert same(float(values[0]), getattr(scores, name)), name
    for name, values in drawn.classes.items():
        for index, row in enumerate(scores.classes):
            assert same(float(values[0, index]), getattr(row, name)), (name, row.name)


@pytest.mark.parametrize("bins", [1, 10, 15, 20, 300])
@pytest.mark.parametrize("classes", [None, [3, 0], [4]])
def test_each_image_once_gives_the_scores_of_a_report(images, tallies, bins, classes):
    assert_equal(measured(images, bins=bins, classes=classes), merge(tallies), bins, classes)


@settings(max_examples=40, deadline=None)
@given(
    weights=st.lists(st.integers(0, 4), min_size=7, max_size=7).filter(any),
    bins=st.sampled_from([1, 10, 15, 25]),
    classes=st.sampled_from([None, [0, 1, 4]]),
)
def test_weights_are_copies_of_images_bit_for_bit(images, tallies, weights, bins, classes):
    drawn = score_draws(images, [np.array([weights])], bins=bins, classes=classes)
    assert_equal(drawn, resampled(tallies, weights), bins, classes)


def test_a_whole_bootstrap_against_brute_force(images, tallies):
    draws = Draws(images.ids, resamples=100, seed=5)
    drawn = score_draws(images, draws)
    weights = np.concatenate(list(draws))
    brute = [read_scores(resampled(tallies, row), class_names=NAMES) for row in weights]
    for name in ("miou", "ece", "nll", "mce", "ece_image_median"):
        assert np.array_equal(drawn.scores[name], [getattr(scores, name) for scores in brute], equal_nan=True)
    found = interval(brute[0].ece, drawn.scores["ece"], draws, level=0.9)
    assert (found.low, found.median, found.high) == tuple(np.quantile([s.ece for s in brute], [0.05, 0.5, 0.95]))


def test_every_score_of_a_report_that_rows_of_images_hold(images, tallies):
    scores = read_scores(merge(tallies), class_names=NAMES)
    every = {name for name, value in vars(scores).items() if isinstance(value, float)}
    assert set(measured(images).scores) <= every
    assert {"miou", "macc", "accuracy", "ece", "signed_gap", "nll", "brier"} <= set(measured(images).scores)
    assert not {"ks", "noise_floor"} & set(measured(images).scores)  # they need finer bins than an image keeps


def test_draws_take_as_many_groups_as_there_are():
    draws = Draws(tuple("aabbbc"), resamples=600)
    weights = np.concatenate(list(draws))
    assert weights.shape == (600, 6)
    assert draws.num_groups == 3
    assert (weights[:, [0, 2, 5]].sum(axis=1) == 3).all()
    assert (weights[:, 0] == weights[:, 1]).all()
    assert (weights[:, [2, 3]] == weights[:, [4, 2]]).all()
    assert (weights.std(axis=0) > 0).all()


def test_weights_are_those_of_drawing_with_replacement():
    weights = np.concatenate(list(Draws(tuple("abcdefghij"), resamples=20_000)))
    assert weights.mean(axis=0) == pytest.approx(1, abs=0.03)
    assert weights.var(axis=0) == pytest.approx(0.9, abs=0.05)  # of Binomial(10, 1/10)
    assert (weights == 0).mean() == pytest.approx(0.9**10, abs=0.005)


def test_seeds(images):
    one, same_one, other = (score_draws(images, Draws(images.ids, seed=seed)) for seed in (3, 3, 4))
    for name, values in one.scores.items():
        assert np.array_equal(values, same_one.scores[name], equal_nan=True)
        assert not np.array_equal(values, other.scores[name], equal_nan=True)


def test_more_resamples_begin_with_the_same_ones():
    few, many = (np.concatenate(list(Draws(tuple("abcdefg"), resamples=number))) for number in (300, 700))
    assert np.array_equal(few[:256], many[:256])


def test_the_order_of_images_makes_no_difference(tallies):
    forward, backward = (merge(order).images for order in (tallies, tallies[::-1]))
    one, two = (score_draws(images, Draws(images.ids)) for images in (forward, backward))
    assert all(np.array_equal(one.scores[name], two.scores[name], equal_nan=True) for name in one.scores)


def test_classes_absent_from_a_draw_are_left_out_and_counted(images):
    draws = Draws(images.ids, resamples=2000)
    column = score_draws(images, draws).classes["iou"][:, 4]
    value = float(measured(images).classes["iou"][0, 4])
    found = interval(value, column, draws)
    assert found.undefined == np.isnan(column).sum()
    assert found.undefined / 2000 == pytest.approx((5 / 7) ** 7, abs=0.03)  # two of seven images have it
    assert found.low <= value <= found.high


def test_one_image_has_no_interval(tallies):
    images = tallies[0].images
    draws = Draws(images.ids)
    values, drawn = measured(images).scores, score_draws(images, draws).scores
    found = interval(values["ece"][0], drawn["ece"], draws)
    assert found.value == values["ece"][0]
    assert np.isnan([found.low, found.high, found.median]).all()
    apart = difference((0.1, drawn["ece"]), (0.2, drawn["ece"]), draws)
    assert math.isnan(apart.share)
    assert not apart.excludes_zero


def test_one_sequence_has_no_interval(images):
    draws = Draws(("s",) * len(images.ids))
    drawn = score_draws(images, draws).scores["ece"]
    assert np.ptp(drawn) == 0
    assert math.isnan(interval(drawn[0], drawn, draws).low)


def test_no_image_at_all():
    empty = ImageRows.zeros(3)
    assert score_draws(empty, Draws(())).scores == {}
    assert math.isnan(measured(empty).scores["ece"][0])


def test_a_difference_of_a_result_with_itself_is_exactly_0(images):
    draws = Draws(images.ids)
    for name, values in score_draws(images, draws).scores.items():
        value = measured(images).scores[name][0]
        found = difference((value, values), (value, values), draws)
        assert (found.value, found.low, found.median, found.high, found.share) == (0, 0, 0, 0, 1), name
        assert not found.excludes_zero


def test_differences_are_paired(images):
    """A result that is better by 0.01 on every draw differs with certainty, however wide each own interval is."""
    draws = Draws(images.ids)
    values = score_draws(images, draws).scores["accuracy"]
    found = difference((0.5, values), (0.51, values + 0.01), draws)
    assert found.low == pytest.approx(0.01)
    assert found.high == pytest.approx(0.01)
    assert found.excludes_zero
    assert found.share == 2 / 1001
    swapped = difference((0.51, values + 0.01), (0.5, values), draws)
    assert (swapped.value, swapped.low, swapped.high) == (-found.value, -found.high, -found.low)
    assert swapped.share == found.share


def test_the_share_counts_the_smaller_side_twice():
    draws = Draws(tuple("ab"), resamples=100)
    apart = np.linspace(-0.10, 0.89, 100).round(2)  # ten below 0 and one at it
    found = difference((0.0, np.zeros(100)), (0.4, apart), draws)
    assert found.share == 2 * 12 / 101
    assert not found.excludes_zero
    assert difference((0.0, np.zeros(100)), (0.4, apart), draws, level=0.7).excludes_zero


@given(st.lists(st.floats(-1, 1), min_size=100, max_size=100), st.floats(-1, 1), st.floats(0.5, 0.99))
def test_intervals(drawn, value, level):
    draws = Draws(tuple("ab"), resamples=100)
    found = interval(value, np.array(drawn), draws, level=level)
    assert min(drawn) <= found.low <= found.median <= found.high <= max(drawn)
    inside = np.mean([found.low <= number <= found.high for number in drawn])
    assert inside >= level - 0.03
    wider = interval(value, np.array(drawn), draws, level=(1 + level) / 2)
    assert wider.low <= found.low
    assert found.high <= wider.high
    mirrored = interval(value, np.array(drawn), draws, level=level, method="basic")
    assert mirrored.low == 2 * value - found.high
    assert mirrored.high == 2 * value - found.low


@pytest.mark.parametrize("resamples", [0, 99, 100_001, -5])
def test_numbers_of_resamples_that_make_no_sense(resamples):
    with pytest.raises(ConfigError, match="resamples"):
        Draws(("a", "b"), resamples)


@pytest.mark.parametrize("level", [0, 1, 95, -0.1, math.nan])
def test_levels_that_make_no_sense(level):
    with pytest.raises(ConfigError, match="level"):
        check_level(level)


def test_unknown_method_and_bins(images):
    with pytest.raises(ConfigError, match="unknown interval"):
        check_level(0.9, "studentized")
    with pytest.raises(ConfigError, match="7 bins"):
        score_draws(images, Draws(images.ids), bins=7)


def rows(right, pixels):
    """Images of `pixels` pixels of two classes, each with so many right ones, at one confidence."""
    number = len(right)
    confusion = np.zeros((number, 2, 2), np.int64)
    confusion[:, 0, 0], confusion[:, 0, 1] = right, pixels - right
    coarse = np.zeros((number, 3, COARSE_BINS), np.int64)
    coarse[:, 0, 239], coarse[:, 1, 239], coarse[:, 2, 239] = pixels, right, int(0.8 * 2**31) * pixels
    zero = np.zeros(number, np.int64)
    real = np.zeros(number)
    ids = tuple(f"{index:03}" for index in range(number))
    return ImageRows(ids, confusion, coarse, zero, zero, real, real, real)


def test_intervals_cover_where_pixels_of_an_image_are_alike():
    """Images differ in how right they are, so pixels are not independent: intervals over images hold their level."""
    rng = np.random.default_rng(0)
    hits, trials, pixels = 0, 150, 10_000
    for trial in range(trials):
        images = rows(rng.binomial(pixels, rng.beta(7, 3, 40)), pixels)
        draws = Draws(images.ids, resamples=200, seed=trial)
        found = interval(measured(images).scores["accuracy"][0], score_draws(images, draws).scores["accuracy"], draws)
        hits += found.low <= 0.7 <= found.high
        by_pixel = 2 * 1.96 * math.sqrt(0.21 / (40 * pixels))
        assert found.high - found.low > 10 * by_pixel
    assert 0.88 <= hits / trials <= 0.99


def test_large_counts_stay_exact():
    """A hundred images of a gigapixel each: sums of fixed-point confidence leave int64, and no bit is lost."""
    images = rows(np.full(100, 700_000_001), 10**9)
    found = measured(images).scores
    confidence = int(0.8 * 2**31) / 2**31
    assert found["mean_confidence"][0] == pytest.approx(confidence, abs=1e-15)
    assert found["signed_gap"][0] == pytest.approx(confidence - 0.700000001, abs=1e-15)


def test_sequences_move_together(images):
    groups = tuple(name.partition("/")[0] for name in images.ids)
    weights = np.concatenate(list(Draws(groups, resamples=100)))
    for group in set(groups):
        columns = weights[:, [name == group for name in groups]]
        assert (columns == columns[:, :1]).all()


def test_a_difference_is_an_interval():
    assert [field.name for field in dataclasses.fields(Difference)] == [
        "value", "low", "high", "median", "undefined", "share"
    ]  # fmt: skip
