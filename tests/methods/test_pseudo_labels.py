"""Confidence, thresholds and selection against brute force in float64, and what must hold for any pixels."""

from fractions import Fraction
from math import ceil

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from calseg_cli.methods.pseudo_labels import (
    COARSE_STEP,
    EDGES,
    FINE_FROM,
    FINE_STEP,
    VoteHistogram,
    Votes,
    believed_labels,
    class_balanced_threshold,
    class_pixels,
    confidence_bins,
    locally_believed,
    votes,
)
from calseg_cli.metrics.pixels import measure_pixels

CLASSES = 4
portions = st.one_of(st.sampled_from([0.1, 0.15, 0.3, 0.5, 0.7, 1.0]), st.floats(1e-6, 1))
confidences = st.one_of(
    st.floats(0, 1, width=32),
    st.floats(np.float32(0.99), 1, width=32),
    st.sampled_from([0.0, 0.25, 0.5, FINE_FROM, float(np.float32(0.9)), 1 - 2.0**-24, 1.0]),
)


@st.composite
def images(draw, most: int = 40) -> Votes:
    """An image of one row, with classes and confidences that come again and again, so that there are ties."""
    size = draw(st.integers(1, most))
    classes = draw(arrays.arrays(np.int64, (1, size), elements=st.integers(0, CLASSES - 1)))
    confidence = draw(arrays.arrays(np.float32, (1, size), elements=confidences))
    return Votes(torch.from_numpy(classes), torch.from_numpy(confidence))


def histogram(*parts: Votes) -> VoteHistogram:
    counted = VoteHistogram(CLASSES)
    for part in parts:
        counted.add(part)
    return counted


def of_class(parts, index) -> np.ndarray:
    """All confidences of a predicted class in float64, the highest first."""
    pooled = np.concatenate([part.confidence[part.classes == index].double().numpy() for part in parts])
    return np.sort(pooled)[::-1]


def step_at(confidence: float) -> float:
    return FINE_STEP if confidence >= FINE_FROM else COARSE_STEP


# Confidence


@settings(max_examples=50, deadline=None)
@given(arrays.arrays(np.float32, (5, 3, 7), elements=st.floats(-50, 50, width=32)))
def test_votes_are_the_softmax_of_float64(logits):
    image = votes(torch.from_numpy(logits))
    wide = logits.astype(np.float64)
    probs = np.exp(wide - wide.max(axis=0)) / np.exp(wide - wide.max(axis=0)).sum(axis=0)
    np.testing.assert_array_equal(image.classes.numpy(), wide.argmax(axis=0))  # the first of equals
    np.testing.assert_allclose(image.confidence.numpy(), probs.max(axis=0), rtol=1e-6)
    assert image.confidence.dtype == torch.float32
    assert image.confidence.max() <= 1


def test_a_vote_is_what_an_evaluation_measures():
    """Same class and same confidence, bit for bit: what is believed is what was measured."""
    logits = torch.randn(6, 200, 301, generator=torch.Generator().manual_seed(0)).half()
    image = votes(logits)
    measured = measure_pixels(logits.flatten(1).float(), torch.zeros(200 * 301, dtype=torch.int64), ignore=255)
    assert torch.equal(image.classes.flatten(), measured.predictions)
    assert torch.equal(image.confidence.flatten(), measured.confidence)


def test_extreme_logits_and_one_class():
    image = votes(torch.tensor([[[1e4, -1e4, 0.0]], [[-1e4, 1e4, 0.0]]]))
    assert image.classes.tolist() == [[0, 1, 0]]
    assert image.confidence.tolist() == [[1.0, 1.0, 0.5]]
    assert votes(torch.zeros(1, 2, 2)).confidence.tolist() == [[1.0, 1.0], [1.0, 1.0]]


@pytest.mark.parametrize("scale", [-0.1, 1.1, float("nan")])
def test_a_scale_outside_of_0_and_1_is_a_mistake(scale):
    with pytest.raises(ValueError, match="scale"):
        votes(torch.zeros(2, 1, 1), scale=scale)


# The grid


def test_the_grid_is_what_the_documents_say():
    assert len(EDGES) == 130817
    assert (np.diff(EDGES) > 0).all()
    assert EDGES[0] == 0
    assert EDGES[-1] == 1
    assert (EDGES.astype(np.float32) == EDGES).all()
    assert FINE_FROM == 0.99609375
    assert set(np.diff(EDGES[EDGES <= FINE_FROM])) == {COARSE_STEP}
    assert set(np.diff(EDGES[EDGES >= FINE_FROM])) == {FINE_STEP}


@settings(deadline=None)
@given(arrays.arrays(np.float32, st.integers(0, 50), elements=confidences))
def test_bins_are_a_search_among_the_edges(confidence):
    found = confidence_bins(torch.from_numpy(confidence)).numpy()
    np.testing.assert_array_equal(found, np.searchsorted(EDGES, confidence.astype(np.float64), side="right") - 1)


def test_every_edge_and_its_neighbours_are_in_the_right_bin():
    edges = EDGES.astype(np.float32)
    for shift, near in ((0, edges), (-1, np.nextafter(edges, np.float32(-1))[1:])):
        expected = np.arange(len(EDGES))[-len(near) :] + shift
        np.testing.assert_array_equal(confidence_bins(torch.from_numpy(near)).numpy(), expected)


@pytest.mark.parametrize("wrong", [float("nan"), -1e-9, 1.0000001])
def test_what_no_softmax_gives_is_refused(wrong):
    with pytest.raises(ValueError, match="outside"):
        confidence_bins(torch.tensor([0.5, wrong]))
    with pytest.raises(ValueError, match="float32"):
        confidence_bins(torch.tensor([0.5], dtype=torch.float64))


# Thresholds


@settings(deadline=None)
@given(st.lists(images(), min_size=1, max_size=4), portions)
def test_thresholds_are_the_exact_quantile_on_the_grid(parts, portion):
    thresholds = histogram(*parts).thresholds(portion)
    for index, threshold in enumerate(thresholds):
        pool = of_class(parts, index)
        if not len(pool):
            assert np.isnan(threshold)
            continue
        exact = pool[ceil(Fraction(str(portion)) * len(pool)) - 1]  # the lowest confidence that must be kept
        assert threshold <= exact < threshold + step_at(threshold)
        assert threshold in EDGES


@settings(deadline=None)
@given(st.lists(images(), min_size=1, max_size=4), portions)
def test_at_least_the_portion_is_kept_and_at_most_the_ties_more(parts, portion):
    thresholds = histogram(*parts).thresholds(portion)
    kept = sum(class_pixels(believed_labels(part, thresholds), CLASSES) for part in parts)
    for index, threshold in enumerate(thresholds):
        pool = of_class(parts, index)
        wanted = ceil(Fraction(str(portion)) * len(pool))
        ties = ((pool >= threshold) & (pool < threshold + step_at(threshold))).sum() if len(pool) else 0
        assert wanted <= kept[index] <= max(wanted + ties - 1, 0)


@settings(deadline=None)
@given(st.lists(images(), min_size=1, max_size=5), st.randoms(), portions)
def test_order_and_grouping_of_images_change_nothing(parts, random, portion):
    whole = histogram(*parts)
    shuffled = list(parts)
    random.shuffle(shuffled)
    half = len(parts) // 2
    merged, rest = histogram(*shuffled[:half]), histogram(*shuffled[half:])
    merged.absorb(rest)
    assert np.array_equal(whole.counts, merged.counts)
    assert np.array_equal(whole.thresholds(portion), merged.thresholds(portion), equal_nan=True)
    assert whole.predicted.tolist() == [len(of_class(parts, index)) for index in range(CLASSES)]


@settings(deadline=None)
@given(st.lists(images(), min_size=1, max_size=3), portions, portions)
def test_a_larger_portion_never_raises_a_threshold(parts, one, other):
    counted = histogram(*parts)
    low, high = counted.thresholds(min(one, other)), counted.thresholds(max(one, other))
    assert (np.isnan(low) == np.isnan(high)).all()
    assert not (high > low).any()


@settings(deadline=None)
@given(st.lists(images(), min_size=1, max_size=3), portions, st.floats(0, 1))
def test_the_ceiling_bounds_thresholds_and_nothing_else(parts, portion, ceiling):
    counted = histogram(*parts)
    free, bound = counted.thresholds(portion), counted.thresholds(portion, ceiling)
    edge = max(edge for edge in EDGES.tolist() if edge <= ceiling)
    assert ceiling - edge < step_at(edge)
    np.testing.assert_array_equal(bound, np.where(np.isnan(free), np.nan, np.minimum(free, edge)))


@settings(deadline=None)
@given(st.lists(images(), min_size=1, max_size=3), portions, st.floats(0, 1))
def test_the_histogram_knows_how_many_will_be_kept(parts, portion, ceiling):
    counted = histogram(*parts)
    thresholds = counted.thresholds(portion, ceiling)
    kept = sum(class_pixels(believed_labels(part, thresholds), CLASSES) for part in parts)
    assert counted.reaching(thresholds).tolist() == kept.tolist()


@pytest.mark.parametrize("pixels", [1, 3, 7, 10, 30])
@pytest.mark.parametrize("portion", [0.1, 0.15, 0.3, 1 / 3, 0.7, 1.0])
def test_distinct_pixels_of_one_class_are_kept_to_the_number(pixels, portion):
    """0.1 of 10 pixels is one, though the float nearest to 0.1 is larger; a class of few pixels keeps one, not all."""
    image = Votes(torch.zeros(1, pixels, dtype=torch.int64), torch.linspace(0.3, 0.9, pixels)[None])
    thresholds = histogram(image).thresholds(portion)
    kept = int((believed_labels(image, thresholds) != 255).sum())
    assert kept == ceil(Fraction(str(portion)) * pixels)
    assert np.isnan(thresholds[1:]).all()


def test_the_whole_portion_keeps_all():
    image = Votes(torch.randint(0, CLASSES, (9, 9)), torch.rand(9, 9))
    assert torch.equal(believed_labels(image, histogram(image).thresholds(1.0)).long(), image.classes)


def test_saturated_pixels_are_told_apart_down_to_float32():
    """Half of a class above 1 - 2**-16: a grid of 2**-16 alone would keep them all."""
    near = 1 - torch.arange(100, dtype=torch.float32) * 2.0**-24
    image = Votes(torch.zeros(1, 200, dtype=torch.int64), torch.cat([near, near * 0.5])[None])
    kept = class_pixels(believed_labels(image, histogram(image).thresholds(0.15)), CLASSES)
    assert kept[0] == 30


def test_equal_pixels_are_kept_together():
    image = Votes(torch.zeros(1, 10, dtype=torch.int64), torch.full((1, 10), 0.75))
    thresholds = histogram(image).thresholds(0.1)
    assert thresholds[0] == 0.75
    assert (believed_labels(image, thresholds) == 0).all()


@pytest.mark.parametrize("portion", [0.0, -0.1, 1.1, float("nan")])
def test_a_portion_outside_of_0_and_1_is_a_mistake(portion):
    with pytest.raises(ValueError, match="portion"):
        class_balanced_threshold(np.zeros(len(EDGES), np.int64), portion)


# Selection


@settings(deadline=None)
@given(images(), arrays.arrays(np.float64, CLASSES, elements=st.one_of(st.floats(0, 1), st.just(float("nan")))))
def test_selection_pixel_by_pixel(image, thresholds):
    labels = believed_labels(image, thresholds)
    assert labels.dtype == torch.uint8
    assert labels.shape == image.classes.shape
    rows = zip(image.classes[0].tolist(), image.confidence[0].tolist(), labels[0].tolist(), strict=True)
    for index, confidence, label in rows:
        assert label == (index if confidence >= thresholds[index] else 255)
    believed = [label for label in labels.flatten().tolist() if label != 255]
    assert class_pixels(labels, CLASSES).tolist() == [believed.count(index) for index in range(CLASSES)]


def test_the_threshold_is_that_of_the_predicted_class():
    """(0.55, 0.45) against thresholds (0.9, 0.4): class 1 passes its own, but the pixel was predicted as class 0."""
    image = votes(torch.tensor([[[0.55]], [[0.45]]]).log())
    assert believed_labels(image, np.array([0.9, 0.4])).tolist() == [[255]]


def test_confidence_1_and_a_threshold_of_1():
    image = Votes(torch.zeros(1, 2, dtype=torch.int64), torch.tensor([[1.0, 1 - 2.0**-24]]))
    assert believed_labels(image, np.array([1.0])).tolist() == [[0, 255]]


def test_a_threshold_is_not_rounded_to_float32():
    """The float32 nearest to 0.9 lies below 0.9, and so below the threshold."""
    image = Votes(torch.zeros(1, 1, dtype=torch.int64), torch.full((1, 1), 0.9))
    assert believed_labels(image, np.array([0.9])).tolist() == [[255]]
    assert believed_labels(image, np.array([float(np.float32(0.9))])).tolist() == [[0]]


# An image's own share


@given(images(), st.sampled_from([0.01, 0.1, 0.35, 1.0]))
def test_an_images_own_surest_pixels_are_believed_besides(image, portion):
    labels = believed_labels(image, np.array([0.5, 0.9, np.nan, 1.0]))
    more = locally_believed(image, labels, portion)
    ranked = np.sort(image.confidence.numpy().ravel())[::-1]
    lowest = ranked[ceil(Fraction(str(portion)) * ranked.size) - 1]
    expected = np.where(image.confidence.numpy() >= lowest, image.classes.numpy(), labels.numpy())
    assert np.array_equal(more.numpy(), expected)
    assert more.dtype == torch.uint8


# The scale of an image


def logits_of(seed: int) -> torch.Tensor:
    return torch.randn(CLASSES, 40, 50, generator=torch.Generator().manual_seed(seed)) * 2


def kept_of(scales, portion=0.3):
    """How many pixels of each image are kept when each has its own scale."""
    parts = [votes(logits_of(seed), scale=scale) for seed, scale in enumerate(scales)]
    thresholds = histogram(*parts).thresholds(portion)
    return [int((believed_labels(part, thresholds) != 255).sum()) for part in parts]


def test_one_scale_for_all_images_changes_no_choice():
    """A power of two loses no bit, so not even a tie may change."""
    assert kept_of([0.5, 0.5, 0.5]) == pytest.approx(kept_of([1.0, 1.0, 1.0]), abs=3)


def test_an_image_that_is_trusted_less_never_gets_more_labels():
    kept = [kept_of([scale, 1.0, 1.0])[0] for scale in (1.0, 0.95, 0.9, 0.7, 0.4)]
    assert kept == sorted(kept, reverse=True)
    assert kept[0] > 1.3 * kept[2]
    assert kept[-1] == 0


def test_what_one_image_loses_the_others_get():
    even, uneven = kept_of([1.0, 1.0, 1.0]), kept_of([0.8, 1.0, 1.0])
    assert sum(uneven) == pytest.approx(sum(even), rel=0.01)
    assert uneven[1] > even[1]


def test_a_scale_of_0_is_believed_only_without_a_threshold():
    image = votes(logits_of(0), scale=0.0)
    assert believed_labels(image, np.full(CLASSES, 1e-9)).eq(255).all()
    assert torch.equal(believed_labels(image, np.zeros(CLASSES)).long(), image.classes)
