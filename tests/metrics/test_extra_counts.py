"""What is counted on request: how it adds, what it refuses, and how it goes to a file and back."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calseg_cli.errors import ArtifactError, ConfigError
from calseg_cli.metrics.extra_counts import Extra
from calseg_cli.metrics.presets import PRESETS, preset_row
from calseg_cli.metrics.regions import Regions
from calseg_cli.metrics.tally import Tally, merge, tally_image

CLASSES = 4
REGIONS = Regions(("fg-pred", "boundary"), background=1, band=2)
EXTRA = Extra(classwise=True, regions=REGIONS, preset="monai")


def bits(tally):
    return {name: (array.dtype.str, array.tobytes()) for name, array in tally.to_arrays().items()}


@pytest.fixture(scope="module")
def scenes(make_image):
    made = [make_image(seed, CLASSES, height=7 + seed, width=9) for seed in range(5)]
    made[3][1][:] = 255
    made[1][0][2, :2] = float("nan")
    return made


def tallies(scenes, extra, edges="right"):
    return [tally_image(z, y, image_id=f"{i}", ignore=255, edges=edges, extra=extra) for i, (z, y) in enumerate(scenes)]


@pytest.fixture(scope="module")
def five(scenes):
    return tallies(scenes, EXTRA)


@settings(max_examples=25, deadline=None)
@given(order=st.permutations(range(5)), cuts=st.lists(st.integers(0, 5), max_size=3))
def test_any_order_and_grouping_gives_the_same_bits(five, order, cuts):
    whole = bits(merge(five))
    shuffled = [five[index] for index in order]
    shards = [merge([Tally.zeros(CLASSES, extra=EXTRA), *shuffled[a:b]]) for a, b in pairwise([0, *sorted(cuts), 5])]
    assert bits(merge(shards)) == whole
    assert merge(iter(shuffled)) == merge(five)


def test_rows_of_the_preset_follow_their_images(five, scenes):
    whole = merge(reversed(five))
    for index, (logits, labels) in enumerate(scenes):
        alone = preset_row("monai", logits.flatten(1), labels.flatten(), 255)
        np.testing.assert_array_equal(whole.extra.preset.bins[index], alone.bins[0])


def test_merging_leaves_the_parts_alone(five):
    before = [bits(tally) for tally in five]
    merge(five)
    assert [bits(tally) for tally in five] == before


@pytest.mark.parametrize("edges", ["right", "left"])
@pytest.mark.parametrize("name", PRESETS)
def test_what_is_counted_besides_changes_nothing_else(scenes, name, edges):
    plain = merge(tallies(scenes, None, edges)).to_arrays()
    more = merge(tallies(scenes, Extra(True, REGIONS, name), edges)).to_arrays()
    assert all(np.array_equal(plain[key], more[key]) for key in plain)
    added = set(more) - set(plain)
    assert {key.partition("_")[0] for key in added} == {"classwise", "regions", "preset"}


@pytest.mark.parametrize(
    "other",
    [
        Extra(),
        Extra(classwise=True, regions=REGIONS),
        Extra(classwise=True, regions=REGIONS, preset="lts"),
        Extra(regions=REGIONS, preset="monai"),
        Extra(classwise=True, preset="monai"),
        Extra(classwise=True, regions=Regions(("boundary",)), preset="monai"),
    ],
)
def test_counts_of_other_things_are_not_added(five, other):
    with pytest.raises(ConfigError, match="cannot be added") as caught:
        merge([five[0], Tally.zeros(CLASSES, extra=other)])
    assert caught.value.hint
    assert five[0] != Tally.zeros(CLASSES, extra=other)


def test_to_arrays_and_back(five):
    whole = merge(five)
    arrays = whole.to_arrays()
    back = Tally.from_arrays(arrays)
    assert back == whole
    assert back.extra.asked == EXTRA
    as_read = {**arrays, "preset_name": np.array([b"monai"], object)}
    as_read["regions_rule"] = np.array([arrays["regions_rule"].item().encode()], object)
    assert Tally.from_arrays(as_read) == whole
    empty = Tally.zeros(CLASSES, "left", EXTRA)
    assert Tally.from_arrays(empty.to_arrays()) == empty


def test_counts_without_any_request_read_as_before(scenes):
    whole = merge(tallies(scenes, None))
    arrays = whole.to_arrays()
    assert not any(key.startswith(("classwise", "regions", "preset")) for key in arrays)
    assert Tally.from_arrays(arrays).extra.asked == Extra()


def spoil(name, change):
    def act(arrays):
        arrays[name] = change(arrays[name].copy())

    return act


def add(where, by):
    def act(array):
        array[where] += by
        return array

    return act


@pytest.mark.parametrize(
    "change",
    [
        lambda arrays: arrays.pop("classwise_correct"),
        lambda arrays: arrays.pop("regions_rule"),
        lambda arrays: arrays.pop("preset_name"),
        spoil("preset_name", lambda array: np.array(["ours"])),
        spoil("preset_name", lambda array: np.array(["guo15"])),
        spoil("preset_bins", lambda array: array[1:]),
        spoil("preset_bins", add((0, 0, 0, 0), 10**6)),
        spoil("classwise_count", add((0, 0), 1)),
        spoil("classwise_correct", add((0, 0), 1)),
        spoil("classwise_count", lambda array: array[:-1]),
        spoil("regions_count", add((1, 4799), 1)),
        spoil("regions_rule", lambda array: np.array(["{}"])),
    ],
)
def test_counts_that_contradict_each_other_are_not_read(five, change):
    arrays = merge(five).to_arrays()
    change(arrays)
    with pytest.raises(ArtifactError) as caught:
        Tally.from_arrays(arrays)
    assert "\n" not in caught.value.message


def test_an_unknown_preset_is_refused_before_anything_is_measured():
    with pytest.raises(ConfigError, match="'ours'"):
        Tally.zeros(CLASSES, extra=Extra(preset="ours"))


@pytest.mark.gpu
@pytest.mark.parametrize("name", PRESETS)
def test_a_gpu_counts_alike(scenes, cuda, name):
    """Regions do not depend on a softmax; the rest does, and its last bit may differ between devices."""
    extra = Extra(True, REGIONS, name)
    here = tallies(scenes, extra)[0]
    there = tallies([(z.to(cuda), y) for z, y in scenes[:1]], extra)[0]
    ours, theirs = here.to_arrays(), there.to_arrays()
    assert set(ours) == set(theirs)
    for key in ("classwise_correct", "classwise_count", "regions_count", "regions_correct", "preset_bins"):
        assert ours[key].shape == theirs[key].shape
        axes = {"preset_bins": (0, 3)}.get(key, (1,))
        sums = (array[:, :, :2] if key == "preset_bins" else array for array in (ours[key], theirs[key]))
        np.testing.assert_array_equal(*(array.sum(axis=axes) for array in sums))
