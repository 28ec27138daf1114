"""Regions against distances measured pixel by pixel, and their counts against plain counts of the masked pixels."""

import itertools
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from calseg_cli.errors import ConfigError
from calseg_cli.metrics import calibration as cal
from calseg_cli.metrics.fine_histogram import CalibrationCounts, calibration_counts
from calseg_cli.metrics.pixels import measure_pixels
from calseg_cli.metrics.regions import RegionCounts, Regions, boundary_mask, count_regions

VOID = 255
SIDE = st.integers(1, 9)
ALL = Regions(("fg-true", "fg-pred", "boundary"), background=0, band=2)


def boundary_by_hand(labels, band, distance, void_edge):
    """Every pair of pixels."""
    mask = np.zeros(labels.shape, bool)
    places = list(np.ndindex(labels.shape))
    for (y, x), (v, u) in itertools.product(places, places):
        near = max(abs(y - v), abs(x - u)) if distance == "chebyshev" else np.hypot(y - v, x - u)
        other = labels[y, x] != labels[v, u] and (void_edge or labels[v, u] != VOID)
        mask[y, x] |= labels[y, x] != VOID and near <= band and other
    return mask


@settings(max_examples=80, deadline=None)
@given(
    labels=hnp.arrays(np.int64, st.tuples(SIDE, SIDE), elements=st.sampled_from([0, 0, 0, 1, 7, VOID])),
    band=st.integers(1, 12),
    distance=st.sampled_from(["chebyshev", "euclid"]),
    void_edge=st.booleans(),
)
def test_the_boundary_is_what_distances_say(labels, band, distance, void_edge):
    found = boundary_mask(torch.from_numpy(labels), band, distance, ignore=VOID, void_edge=void_edge)
    np.testing.assert_array_equal(found.numpy(), boundary_by_hand(labels, band, distance, void_edge))


def test_scipy_measures_the_same_distances():
    """A large map, by the distance transform: the distance to the nearest pixel of another class."""
    from scipy import ndimage

    labels = np.random.default_rng(0).integers(0, 3, (12, 15)).repeat(11, 0).repeat(9, 1)
    for band in (1, 2, 3, 7):
        squares, discs = np.zeros(labels.shape, bool), np.zeros(labels.shape, bool)
        for value in range(3):
            mine = labels == value
            squares |= mine & (ndimage.distance_transform_cdt(mine, "chessboard") <= band)
            discs |= mine & (ndimage.distance_transform_edt(mine) <= band)
        found = (boundary_mask(torch.from_numpy(labels), band, name, ignore=VOID) for name in ("chebyshev", "euclid"))
        np.testing.assert_array_equal(next(found).numpy(), squares)
        np.testing.assert_array_equal(next(found).numpy(), discs)
        assert discs.sum() < squares.sum() or band == 1


def test_cases_by_hand():
    step = torch.tensor([[0, 0, 0, 0, 1, 1, 1]])
    assert boundary_mask(step, 1, ignore=VOID).int().tolist() == [[0, 0, 0, 1, 1, 0, 0]]
    assert boundary_mask(step, 2, ignore=VOID).int().tolist() == [[0, 0, 1, 1, 1, 1, 0]]
    corner = torch.tensor([[1, 0], [0, 0]])
    assert boundary_mask(corner, 1, "chebyshev", ignore=VOID).int().tolist() == [[1, 1], [1, 1]]
    assert boundary_mask(corner, 1, "euclid", ignore=VOID).int().tolist() == [[1, 1], [1, 0]]
    gap = torch.tensor([[0, 0, VOID, 0, 0]])
    assert boundary_mask(gap, 1, ignore=VOID, void_edge=True).int().tolist() == [[0, 1, 0, 1, 0]]
    assert not boundary_mask(gap, 1, ignore=VOID).any()


def image(make_image, seed=0, **options):
    logits, labels = make_image(seed, 5, 24, 31, **options)
    return measure_pixels(logits.flatten(1), labels.flatten(), VOID), labels


@pytest.mark.parametrize("edges", ["right", "left"])
def test_counts_are_those_of_the_masked_pixels(edges, make_image):
    pixels, labels = image(make_image)
    found = count_regions(ALL, pixels, labels, ignore=VOID, edges=edges)
    edge = boundary_mask(labels, 2, ignore=VOID)[labels != VOID]
    masks = [pixels.labels != 0, pixels.predictions != 0, edge, ~edge]
    assert ALL.groups == ("fg-true", "fg-pred", "boundary", "interior")
    assert not torch.equal(masks[0], masks[1])
    for group, mask in enumerate(masks):
        q, right = pixels.confidence[mask], (pixels.predictions == pixels.labels)[mask]
        alone = calibration_counts(q, right, torch.zeros(len(q), dtype=torch.long), 1, edges)
        mine = [array[group : group + 1] for array in found.counts.arrays()]
        assert CalibrationCounts(*mine, edges=edges) == alone


def test_boundary_and_interior_are_all_pixels(make_image):
    logits, labels = make_image(0, 5, 24, 31)
    logits[2, 3:5] = float("nan")
    pixels = measure_pixels(logits.flatten(1), labels.flatten(), VOID)
    found = count_regions(Regions(("boundary",), band=1), pixels, labels, ignore=VOID)
    right = pixels.predictions == pixels.labels
    whole = calibration_counts(pixels.confidence, right, torch.zeros(len(right), dtype=torch.long), 1)
    for parts, total in zip(found.counts.arrays(), whole.arrays(), strict=True):
        np.testing.assert_array_equal(parts.sum(axis=0, keepdims=True), total)
    assert pixels.invalid > 0
    assert found.contradictions(whole) == []


def test_a_dataset_ece_is_at_most_the_mean_of_its_regions(make_image):
    pixels, labels = image(make_image)
    counts = count_regions(Regions(("boundary",), band=1), pixels, labels, ignore=VOID).counts
    assert cal.ece(counts) <= cal.ece_over_groups(counts) + 1e-15


def test_counts_of_two_rules_are_not_added(make_image):
    pixels, labels = image(make_image)
    one = count_regions(ALL, pixels, labels, ignore=VOID)
    for other in (
        Regions(ALL.names, background=1, band=2),
        Regions(ALL.names, background=0, band=3),
        Regions(ALL.names, background=0, band=2, distance="euclid"),
        Regions(ALL.names, background=0, band=2, void_edge=True),
        Regions(("boundary",), band=2),
    ):
        with pytest.raises(ConfigError, match="cannot be added"):
            one.absorb(RegionCounts.zeros(other, "right"))
    with pytest.raises(ConfigError, match="cannot be added"):
        one.absorb(RegionCounts.zeros(ALL, "left"))


def test_to_arrays_and_back(make_image):
    pixels, labels = image(make_image)
    found = count_regions(ALL, pixels, labels, ignore=VOID)
    back = RegionCounts.from_arrays(found.to_arrays(), "right")
    assert back.rule == ALL
    assert back.counts == found.counts


@pytest.mark.parametrize(
    "spoil",
    [
        lambda arrays: arrays.update(rule=np.array(["{}"])),
        lambda arrays: arrays.update(rule=np.array(["no json"])),
        lambda arrays: arrays.update(count=arrays["count"][1:]),
        lambda arrays: arrays.update(rule=np.array([json.dumps({"names": ["boundary"], "background": None, "band": 2,
                                                                "distance": "chebyshev", "void_edge": False})])),
    ],
)  # fmt: skip
def test_arrays_that_are_no_such_counts_are_refused(spoil, make_image):
    pixels, labels = image(make_image)
    arrays = count_regions(ALL, pixels, labels, ignore=VOID).to_arrays()
    spoil(arrays)
    with pytest.raises(ValueError):
        RegionCounts.from_arrays(arrays, "right")


def test_contradictions_are_found(make_image):
    pixels, labels = image(make_image)
    found = count_regions(ALL, pixels, labels, ignore=VOID)
    right = pixels.predictions == pixels.labels
    whole = calibration_counts(pixels.confidence, right, torch.zeros(len(right), dtype=torch.long), 1)
    assert found.contradictions(whole) == []
    place = int(np.flatnonzero(found.counts.count[2] > found.counts.correct[2])[0])
    found.counts.count[2, place] -= 1
    assert found.contradictions(whole) == ["boundary and interior"]
    found.counts.count[0, place] += 10**6
    assert "regions and all pixels" in found.contradictions(whole)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"names": ("edge",)}, "edge"),
        ({"names": ()}, "no regions"),
        ({"names": ("boundary", "boundary")}, "boundary"),
        ({"names": ("boundary",), "band": 0}, "0 pixels"),
        ({"names": ("boundary",), "distance": "manhattan"}, "manhattan"),
        ({"names": ("fg-true",)}, "background"),
    ],
)
def test_rules_that_make_no_sense(options, message):
    with pytest.raises(ConfigError, match=message) as caught:
        Regions(**options)
    assert caught.value.hint


def test_the_rule_is_told():
    assert Regions(("fg-pred", "boundary"), background=1, band=4, distance="euclid", void_edge=True).describe(
        ("sky", "road")
    ) == ("foreground: not road; boundary: within 4 px (euclid) of another true class, also to a pixel without a class")
