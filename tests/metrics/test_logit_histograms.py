"""Histograms of logits: every pixel in its place, exact sums in any order, and grids that fit what they are given."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from calseg_cli.errors import ArtifactError, ConfigError
from calseg_cli.metrics.extra_counts import Extra
from calseg_cli.metrics.logit_histograms import COARSEST, FINEST, LOGIT_BINS, LogitHistograms, count_logits
from calseg_cli.metrics.tally import Tally, merge, tally_image

CLASSES = 3


def pixels(seed, number=40, scale=1.0, classes=CLASSES):
    rng = np.random.default_rng(seed)
    logits = torch.from_numpy((rng.normal(size=(classes, number)) * scale).astype(np.float32))
    return logits, torch.from_numpy(rng.integers(0, classes, number))


def brute(logits, labels, exponent):
    """One value after another, in exact arithmetic of Python's."""
    classes = len(logits)
    counts = np.zeros((classes, classes, LOGIT_BINS), np.int64)
    for channel, values in enumerate(logits.tolist()):
        for label, value in zip(labels.tolist(), values, strict=True):
            counts[label, channel, math.floor(value / 2.0**exponent) + LOGIT_BINS // 2] += 1
    return counts


def bits(histograms):
    return histograms.exponent, histograms.counts.tobytes()


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([1e-6, 0.01, 1.0, 7.0, 300.0, 1e30]))
def test_counts_are_those_of_one_value_after_another(seed, scale):
    logits, labels = pixels(seed, scale=scale)
    found = count_logits(logits, labels)
    np.testing.assert_array_equal(found.counts, brute(logits, labels, found.exponent))
    largest = float(logits.abs().max())
    assert largest < found.edges[-1]
    assert found.exponent == FINEST or 2 * largest >= found.edges[-1]
    assert np.diff(found.edges)[0] == 2.0**found.exponent


def test_every_pixel_is_in_every_channel_once():
    logits, labels = pixels(0, 200)
    counts = count_logits(logits, labels).counts
    assert (counts.sum(axis=(0, 2)) == 200).all()
    assert sum(counts[c, c].sum() for c in range(CLASSES)) == 200
    assert (counts.sum(axis=2) == np.bincount(labels, minlength=CLASSES)[:, None]).all()


@settings(max_examples=30, deadline=None)
@given(order=st.permutations(range(5)), cut=st.integers(0, 5))
def test_any_order_and_grouping_gives_the_bits_of_counting_all_at_once(order, cut):
    parts = [pixels(seed, 30, scale) for seed, scale in enumerate((0.01, 50.0, 1.0, 4000.0, 2.0))]
    whole = count_logits(torch.cat([z for z, _ in parts], dim=1), torch.cat([y for _, y in parts]))
    counted = [count_logits(*parts[index]) for index in order]
    left = sum(counted[:cut], LogitHistograms.zeros(CLASSES))
    assert bits(left + sum(counted[cut:], LogitHistograms.zeros(CLASSES))) == bits(whole)
    assert bits(sum(reversed(counted[1:]), counted[0])) == bits(whole)


@pytest.mark.parametrize("value", [0.0, -0.0, 0.5, -0.5, 1.0, 32.0, -32.0, 31.999998, 1e-45, 3.4e38, -3.4e38])
def test_values_at_the_edges_of_a_grid(value):
    logits, labels = torch.full((2, 4), value), torch.tensor([0, 1, 1, 0])
    found = count_logits(logits, labels)
    (places,) = np.nonzero(found.counts[0, 1])
    assert found.edges[places[0]] <= np.float32(value) < found.edges[places[0] + 1]
    assert found.counts.sum() == 8


def test_halves_beyond_the_last_change_nothing():
    found = count_logits(*pixels(0))
    assert bits(found.widened(COARSEST)) == bits(found.widened(FINEST + 10).widened(COARSEST))
    far = found.widened(COARSEST).counts
    assert far[..., LOGIT_BINS // 2 - 1 : LOGIT_BINS // 2 + 1].sum() == far.sum() == found.counts.sum()
    assert bits(found.widened(found.exponent)) == bits(found)


def test_what_does_not_fit_is_refused():
    found = count_logits(*pixels(0))
    with pytest.raises(ValueError, match="cannot be made"):
        found.widened(found.exponent - 1)
    with pytest.raises(ConfigError, match="cannot be added") as caught:
        found + LogitHistograms.zeros(CLASSES + 1)
    assert caught.value.hint
    for counts, exponent in ((found.counts[:2], 0), (found.counts.astype(np.int32), 0), (found.counts, COARSEST + 1)):
        with pytest.raises(ValueError, match="logits"):
            LogitHistograms(counts, exponent)


# As part of a tally

EXTRA = Extra(logits=True)


@pytest.fixture(scope="module")
def scenes(make_image):
    made = [make_image(seed, CLASSES, height=7 + seed, width=9) for seed in range(4)]
    made[1][0][2, :2] = float("nan")
    made[2][1][:4] = 255
    made[3][1][:] = 255
    return made


def tallies(scenes, extra=EXTRA):
    return [tally_image(z, y, image_id=f"{index}", ignore=255, extra=extra) for index, (z, y) in enumerate(scenes)]


def test_only_valid_pixels_are_counted(scenes):
    whole = merge(tallies(scenes))
    parts = []
    for logits, labels in scenes:
        keep = (torch.as_tensor(labels) != 255) & torch.isfinite(torch.as_tensor(logits)).all(dim=0)
        parts.append(count_logits(torch.as_tensor(logits)[:, keep], torch.as_tensor(labels)[keep]))
    assert bits(whole.extra.logits) == bits(sum(parts, LogitHistograms.zeros(CLASSES)))
    assert whole.extra.logits.counts.sum() == whole.num_valid * CLASSES
    assert whole.num_invalid > 0


def test_any_order_of_images_gives_the_same_tally_and_nothing_else_changes(scenes):
    counted = tallies(scenes)
    assert merge(reversed(counted)) == merge([Tally.zeros(CLASSES, extra=EXTRA), *counted])
    plain, more = merge(tallies(scenes, None)).to_arrays(), merge(counted).to_arrays()
    assert set(more) - set(plain) == {"logits_counts", "logits_exponent"}
    assert all(np.array_equal(plain[name], more[name]) for name in plain)


def test_to_a_file_and_back(scenes):
    whole = merge(tallies(scenes))
    back = Tally.from_arrays(whole.to_arrays())
    assert back == whole
    assert back.extra.asked == EXTRA
    assert "logits" in EXTRA.describe()


@pytest.mark.parametrize(
    "change",
    [
        lambda arrays: arrays.pop("logits_exponent"),
        lambda arrays: arrays.update(logits_exponent=np.array([10**6])),
        lambda arrays: arrays.update(logits_counts=arrays["logits_counts"][:, :, 1:]),
        lambda arrays: arrays.update(logits_counts=arrays["logits_counts"][:2, :2]),
        lambda arrays: arrays.update(logits_counts=arrays["logits_counts"] + np.eye(CLASSES, dtype=int)[..., None]),
    ],
)
def test_counts_that_contradict_each_other_are_not_read(scenes, change):
    arrays = merge(tallies(scenes)).to_arrays()
    change(arrays)
    with pytest.raises(ArtifactError):
        Tally.from_arrays(arrays)


def test_counts_with_and_without_logits_are_not_added(scenes):
    with pytest.raises(ConfigError, match="cannot be added"):
        merge([*tallies(scenes[:1]), *tallies(scenes[1:], None)])
