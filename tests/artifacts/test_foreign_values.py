"""What an array means: axes, values, types, and the geometry of its grid against the arithmetic of networks."""

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

from calseg_cli.artifacts.foreign import ArrayFile
from calseg_cli.artifacts.foreign_values import (
    SMALLEST,
    Place,
    as_confidence,
    as_label_map,
    as_logits,
    checked_digest,
    grid_size,
    stored_place,
)
from calseg_cli.artifacts.geometry import Geometry
from calseg_cli.errors import DataError

LOGITS = np.random.default_rng(0).normal(0, 3, (4, 5, 6)).astype(np.float32)
SIDES = st.integers(1, 400)


def softmax(logits):
    powers = np.exp(logits.astype(np.float64))
    return powers / powers.sum(axis=0)


def convert(array, *, axes="chw", values="logits", dtype=None):
    return as_logits(array, axes=axes, values=values, dtype=dtype, where="here.npy")


# Axes


def test_grid_sizes():
    assert grid_size((4, 5, 6), "chw", 4, "x") == (5, 6)
    assert grid_size((5, 6, 4), "hwc", 4, "x") == (5, 6)
    assert grid_size((1, 4, 5, 6), "chw", 4, "x") == (5, 6)
    assert grid_size((4, 4, 4), "hwc", 4, "x") == (4, 4)


@pytest.mark.parametrize(
    ("shape", "axes", "hint"), [((5, 6, 4), "chw", "--axes hwc"), ((4, 5, 6), "hwc", "--axes chw")]
)
def test_turned_axes_name_the_other(shape, axes, hint):
    with pytest.raises(DataError, match=r"here: .* 4|here is .*, not 4") as caught:
        grid_size(shape, axes, 4, "here")
    assert hint in caught.value.hint


@pytest.mark.parametrize("shape", [(), (4,), (4, 5), (2, 4, 5, 6), (1, 1, 4, 5, 6), (4, 0, 6), (4, 5, 16385)])
def test_shapes_that_are_no_grid(shape):
    with pytest.raises(DataError, match="here is"):
        grid_size(shape, "chw", 4, "here")


def test_neither_axis_fits():
    with pytest.raises(DataError, match="5 entries, not 4") as caught:
        grid_size((5, 6, 7), "chw", 4, "here")
    assert "--classes" in caught.value.hint


# Values


@pytest.mark.parametrize("source", ["<f2", ">f2", "<f4", ">f4", "<f8", ">f8"])
@pytest.mark.parametrize("dtype", [None, "float16", "float32"])
def test_types(source, dtype):
    array = LOGITS.astype(source)
    found = convert(array, dtype=dtype)
    assert found.dtype.name == (dtype or ("float16" if "2" in source else "float32"))
    np.testing.assert_array_equal(found, array.astype(found.dtype))


def test_axes_and_a_batch_of_one_give_the_same_values():
    turned = np.ascontiguousarray(np.moveaxis(LOGITS, 0, -1))
    for found in (convert(turned, axes="hwc"), convert(LOGITS[None]), convert(turned[None], axes="hwc")):
        np.testing.assert_array_equal(found, LOGITS)
        assert found.flags.c_contiguous


def test_what_float16_cannot_hold():
    large = LOGITS.copy()
    large[1, 2, 3] = -65520  # rounds to infinity; 65519 rounds to 65504
    with pytest.raises(DataError, match=r"here\.npy holds values up to 65520, which float16 cannot hold") as caught:
        convert(large, dtype="float16")
    assert caught.value.hint == "give --dtype float32"
    assert convert(large)[1, 2, 3] == -65520
    large[1, 2, 3] = 65519
    assert convert(large, dtype="float16").max() == 65504
    with pytest.raises(DataError, match="float32 cannot hold"):
        convert(LOGITS.astype(np.float64) * 1e38)


@pytest.mark.parametrize("values", ["logits", "probabilities", "log-probabilities"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused(values, bad):
    array = LOGITS.copy()
    array[0, 0, 0] = bad
    told = "1 NaN and 0 infinite" if np.isnan(bad) else "0 NaN and 1 infinite"
    with pytest.raises(DataError, match=rf"here\.npy holds {told}"):
        convert(array, values=values)


@pytest.mark.parametrize("source", [np.float16, np.float32, np.float64])
def test_probabilities_become_logarithms_with_the_same_softmax(source):
    probs = softmax(LOGITS).astype(source)
    found = convert(probs, values="probabilities")
    assert found.dtype == (np.float16 if source == np.float16 else np.float32)
    near = 2e-2 if source == np.float16 else 1e-6
    np.testing.assert_allclose(softmax(found), softmax(LOGITS), atol=near)


def test_probabilities_are_not_below_the_smallest():
    probs = np.zeros((3, 1, 2))
    probs[0] = 1
    for dtype in ("float16", "float32"):
        found = convert(probs, values="probabilities", dtype=dtype)
        assert found[0].tolist() == [[0, 0]]
        np.testing.assert_allclose(found[1:], np.log(SMALLEST), rtol=1e-3)
    probs[1, 0, 0] = -1e-8  # what rounding leaves
    assert convert(probs, values="probabilities")[1, 0, 0] == np.float32(np.log(SMALLEST))


def test_log_probabilities_are_kept_as_they_are():
    logs = np.log(softmax(LOGITS)).astype(np.float32)
    np.testing.assert_array_equal(convert(logs, values="log-probabilities"), logs)


@pytest.mark.parametrize("source", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("classes", [1, 2, 19, 150])
def test_honest_softmax_passes_the_check(source, classes):
    logits = np.random.default_rng(classes).normal(0, 5, (classes, 20, 20))
    probs = softmax(logits).astype(source)
    convert(probs, values="probabilities")
    convert(np.log(np.maximum(softmax(logits), SMALLEST)).astype(source), values="log-probabilities")


@pytest.mark.parametrize("values", ["probabilities", "log-probabilities"])
def test_what_is_no_softmax(values):
    probs = softmax(LOGITS)
    off = probs.copy()
    off[0, 1, 2] += 0.02
    minus = probs.copy()
    minus[:2, 0, 0] += [-1, 1]
    for wrong in (
        LOGITS,
        probs * 1.02,
        off,
        np.moveaxis(probs, 0, -1),
        *([minus] if values == "probabilities" else []),
    ):
        array = np.log(wrong) if values == "log-probabilities" and wrong.min() > 0 else wrong
        with pytest.raises(DataError, match="is no softmax over the classes"):
            convert(array, values=values)


@pytest.mark.parametrize("dtype", [np.int64, np.uint8, bool])
def test_whole_numbers_are_no_logits(dtype):
    with pytest.raises(DataError, match="which are no logits"):
        convert(np.ones((4, 5, 6), dtype))


def test_label_maps_and_confidence():
    label = np.arange(6, dtype=np.int64).reshape(2, 3)
    assert as_label_map(label[None], "x").tolist() == label.tolist()
    for wrong in (label.astype(float), label[0], np.stack([label] * 2), np.zeros((0, 3), int)):
        with pytest.raises(DataError, match="a label map is whole numbers"):
            as_label_map(wrong, "x")
    confidence = np.full((2, 3), 0.3)
    assert as_confidence(confidence, (2, 3), "x").dtype == np.float16
    assert as_confidence(np.full((2, 3), 200, np.uint8), (2, 3), "x").tolist() == [[200] * 3] * 2
    for wrong in (confidence * 4, -confidence, confidence * np.nan, confidence.astype(np.int16)):
        with pytest.raises(DataError, match="no confidence"):
            as_confidence(wrong, (2, 3), "x")
    with pytest.raises(DataError, match="its label"):
        as_confidence(confidence, (3, 2), "x")


# Where the grid lies


@given(SIDES, SIDES, st.integers(0, 31), st.integers(0, 31), st.integers(1, 32), st.booleans())
def test_a_grid_that_was_made_by_a_stride_fits(height, width, bottom, right, stride, corners):
    grid = -(-(height + bottom) // stride), -(-(width + right) // stride)
    place = Place((height, width), (7, 9), (bottom, right), stride, corners)
    assert place.geometry(grid, "x") == Geometry((height, width), (7, 9), (bottom, right), stride, corners)
    for wrong in ((grid[0] + 1, grid[1]), (grid[0], grid[1] + 1), (grid[0] - 1, grid[1])):
        if min(wrong) > 0:
            with pytest.raises(DataError, match="x: stride") as caught:
                place.geometry(wrong, "x")
            assert f"{height}x{width}" in caught.value.message
            assert f"{wrong[0]}x{wrong[1]}" in caught.value.message


@settings(deadline=None, max_examples=40)
@given(st.integers(9, 90), st.integers(9, 90), st.integers(0, 3))
def test_grids_of_real_convolutions_fit(height, width, halvings):
    """Convolutions of stride 2 with the usual padding round up, as the rule says."""
    network = nn.Sequential(*(nn.Conv2d(1, 1, 3, stride=2, padding=1) for _ in range(halvings)))
    grid = network(torch.zeros(1, 1, height, width)).shape[-2:]
    Place(in_hw=(height, width), stride=2**halvings).geometry(tuple(grid), "x")


def test_the_sizes_of_aligned_corners():
    for size, stride, grid in ((513, 8, 65), (769, 8, 97), (321, 8, 41), (512, 4, 128), (1025, 16, 65)):
        found = Place((size, size), stride=stride, align_corners=True).geometry((grid, grid), "x")
        assert found.align_corners
        if (size - 1) % stride == 0:
            assert grid == (size - 1) // stride + 1
        assert Place((size, size)).geometry((grid, grid), "x").stride <= stride


@given(SIDES, SIDES, st.integers(1, 32))
def test_a_stride_that_is_not_given_is_one_that_fits(height, width, stride):
    grid = -(-height // stride), -(-width // stride)
    found = Place(out_hw=(height, width)).geometry(grid, "x")
    assert (-(-height // found.stride), -(-width // found.stride)) == grid
    assert found.stride <= stride
    assert (found.in_hw, found.out_hw, found.pad) == ((height, width), (height, width), (0, 0))


@given(SIDES, SIDES, st.integers(1, 16), st.integers(0, 8), st.integers(0, 8))
def test_without_sizes_the_input_is_grid_times_stride(rows, columns, stride, bottom, right):
    assume(rows * stride > bottom)
    assume(columns * stride > right)
    found = Place(stride=stride, pad=(bottom, right)).geometry((rows, columns), "x")
    assert found.in_hw == found.out_hw == (rows * stride - bottom, columns * stride - right)
    assert Place().geometry((rows, columns), "x") == Geometry((rows, columns), (rows, columns))


def test_no_stride_fits():
    with pytest.raises(DataError, match="60x80 is no even part of 360x500"):
        Place(out_hw=(360, 500)).geometry((60, 80), "x")
    with pytest.raises(DataError, match="no even part"):
        Place(out_hw=(3, 3)).geometry((4, 4), "x")


@pytest.mark.parametrize(
    "place",
    [
        Place(out_hw=(16385, 1), in_hw=(8, 8)),
        Place(out_hw=(0, 5)),
        Place(in_hw=(-4, 8), stride=1),
        Place(pad=(-1, 0), out_hw=(8, 8)),
        Place(stride=16385),
        Place(pad=(9, 0)),
    ],
)
def test_sizes_that_cannot_be(place):
    with pytest.raises(DataError, match="x: "):
        place.geometry((8, 8), "x")


def test_what_is_said_first_wins():
    flags, file = Place(stride=4, align_corners=False), Place((1, 2), (3, 4), (5, 6), 7, True, "sha256:x")
    assert flags.over(file) == Place((1, 2), (3, 4), (5, 6), 4, False, "sha256:x")
    assert Place().over(file) == file
    assert file.over(flags) == file


# What an .npz says of itself


def say(folder, **arrays):
    np.savez(folder / "x.npz", logits=LOGITS, **arrays)
    with ArrayFile(folder / "x.npz") as file:
        return stored_place(file)


def test_an_npz_may_say_nothing_or_all(tmp_path):
    digest = "sha256:" + "0a" * 32
    assert say(tmp_path) == Place()
    whole = {"in_hw": (1, 2), "out_hw": [3, 4], "pad": np.array([0, 6], np.uint8), "stride": 7, "align_corners": False}
    assert say(tmp_path, **whole, image_digest=digest) == Place((1, 2), (3, 4), (0, 6), 7, False, digest)


@pytest.mark.parametrize(
    "wrong",
    [
        {"in_hw": (1, 2, 3)}, {"out_hw": 4}, {"pad": (0.5, 1.0)}, {"stride": (1, 2)}, {"stride": 2.0},
        {"align_corners": "yes"}, {"image_digest": "md5:1"}, {"image_digest": "sha256:" + "g" * 64},
        {"image_digest": 5}, {"image_digest": ["sha256:" + "0" * 64]},
    ],
    ids=str,
)  # fmt: skip
def test_what_an_npz_says_wrongly(tmp_path, wrong):
    with pytest.raises(DataError, match=f"x.npz: {next(iter(wrong))}"):
        say(tmp_path, **wrong)


def test_digests():
    assert checked_digest("", "x") == ""
    for wrong in ("sha256:", "0" * 64, "sha256:" + "A" * 64):
        with pytest.raises(DataError, match="is no digest"):
            checked_digest(wrong, "x")
