"""The tally: what one pass leaves, how it adds, and how it goes to a file and back."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from calseg_cli.errors import ArtifactError, ConfigError, DataError
from calseg_cli.metrics.calibration import ece
from calseg_cli.metrics.fine_histogram import calibration_counts
from calseg_cli.metrics.pixels import softmax_scores
from calseg_cli.metrics.scores import read_scores
from calseg_cli.metrics.tally import Tally, merge, tally_image

CLASSES = 5


def bits(tally):
    return {name: (array.dtype.str, array.tobytes()) for name, array in tally.to_arrays().items()}


@pytest.fixture(scope="module")
def six(make_image):
    """Six images of different sizes, one without any label."""
    tallies = []
    for seed in range(6):
        logits, labels = make_image(seed, CLASSES, height=7 + seed, width=9)
        if seed == 3:
            labels[:] = 255
        tallies.append(tally_image(logits, labels, image_id=f"image_{seed}", ignore=255))
    return tallies


@pytest.mark.parametrize("edges", ["right", "left"])
@pytest.mark.parametrize("classes", [1, 2, 5, 19])
def test_one_image_against_the_definitions(edges, classes, make_image, reference):
    logits, labels = make_image(classes, classes, 60, 80)
    tally = tally_image(logits, labels, image_id="a", ignore=255, edges=edges)
    kept = (labels != 255).flatten().numpy()
    truth = labels.flatten().numpy()[kept]
    probs = reference.softmax(logits.flatten(1).numpy())[:, kept]
    predictions, confidence = probs.argmax(axis=0), probs.max(axis=0)
    assert (tally.num_valid, tally.num_ignored, tally.num_invalid) == (kept.sum(), (~kept).sum(), 0)
    confusion = np.zeros((classes, classes), np.int64)
    np.add.at(confusion, (truth, predictions), 1)
    np.testing.assert_array_equal(tally.confusion, confusion)
    assert tally.images.nll[0] == pytest.approx(-np.log(probs[truth, np.arange(len(truth))]).sum(), rel=1e-7)
    one_hot = np.eye(classes)[:, truth]
    assert tally.images.brier[0] == pytest.approx(((probs - one_hot) ** 2).sum(), rel=1e-7, abs=1e-12)
    assert tally.images.brier_top[0] == pytest.approx(
        ((confidence - (predictions == truth)) ** 2).sum(), rel=1e-7, abs=1e-12
    )
    assert ece(tally.by_predicted) == pytest.approx(
        reference.ece(confidence, predictions == truth, 15, edges), abs=1e-7
    )


def test_right_pixels_binned_once_give_the_plain_counts(make_image):
    """The short cut of the tally against one plain count by predicted and one by true class."""
    logits, labels = make_image(0, CLASSES, 40, 50)
    tally = tally_image(logits, labels, image_id="a", ignore=255)
    flat, truth = logits.flatten(1), labels.flatten()
    kept = truth != 255
    q, p, y = softmax_scores(flat[:, kept], truth[kept]).confidence, flat.argmax(0)[kept], truth[kept]
    assert tally.by_predicted == calibration_counts(q, p == y, p, CLASSES)
    assert tally.by_true == calibration_counts(q, p == y, y, CLASSES)


@settings(max_examples=30, deadline=None)
@given(order=st.permutations(range(6)), cuts=st.lists(st.integers(0, 6), max_size=4))
def test_any_order_and_grouping_gives_the_same_bits(six, order, cuts):
    whole = bits(merge(six))
    shuffled = [six[index] for index in order]
    ends = [0, *sorted(cuts), 6]
    shards = [merge([Tally.zeros(CLASSES), *shuffled[a:b]]) for a, b in pairwise(ends)]
    assert bits(merge(shards)) == whole
    assert bits(merge(iter(shuffled))) == whole
    total = Tally.zeros(CLASSES)
    for tally in shuffled:
        total += tally
    assert total == merge(six)
    names = [f"class {index}" for index in range(CLASSES)]
    assert str(read_scores(total, class_names=names)) == str(read_scores(merge(six), class_names=names))


def test_merging_leaves_the_parts_alone(six):
    before = [bits(tally) for tally in six]
    merge(six)
    assert [bits(tally) for tally in six] == before
    assert not np.shares_memory(six[0].by_predicted.correct, six[0].by_true.correct)


def test_rows_are_sorted_by_id_and_keep_their_numbers(six):
    whole = merge(reversed(six))
    assert whole.ids == tuple(f"image_{index}" for index in range(6))
    for index, tally in enumerate(six):
        np.testing.assert_array_equal(whole.images.confusion[index], tally.confusion)
        assert whole.images.nll[index] == tally.images.nll[0]
    assert whole.num_valid == sum(tally.num_valid for tally in six)


def test_an_image_is_not_counted_twice(six):
    with pytest.raises(DataError, match="image_2"):
        merge([merge(six[:4]), six[2]])


@pytest.mark.parametrize("other", [Tally.zeros(CLASSES + 1), Tally.zeros(CLASSES, "left")])
def test_tallies_of_another_kind_are_not_added(six, other):
    with pytest.raises(ConfigError, match="cannot be added"):
        six[0] + other


def test_merging_nothing_is_a_bug():
    with pytest.raises(ValueError, match="zeros"):
        merge([])


def test_nothing_but_void_is_counted_as_such():
    tally = tally_image(torch.randn(3, 4, 5), torch.full((4, 5), 255), image_id="void", ignore=255)
    assert (tally.num_valid, tally.num_ignored, tally.num_invalid) == (0, 20, 0)
    assert tally.by_predicted.num_pixels == 0
    assert np.isnan(ece(tally.by_predicted))


def test_ignored_pixels_change_nothing(make_image):
    logits, labels = make_image(1, CLASSES, void=0.3)
    scrambled = logits.clone()
    scrambled[:, labels == 255] = torch.randn(CLASSES, int((labels == 255).sum())) * 100
    one, two = (tally_image(z, labels, image_id="a", ignore=255) for z in (logits, scrambled))
    assert one == two


def test_broken_logits_are_counted_apart(make_image):
    logits, labels = make_image(1, CLASSES, void=0.0)
    whole = tally_image(logits, labels, image_id="a", ignore=255)
    logits[0, :2] = float("nan")
    logits[3, 2, 0] = float("-inf")
    broken = tally_image(logits, labels, image_id="a", ignore=255)
    assert broken.num_invalid == 2 * labels.shape[1] + 1
    assert broken.num_valid + broken.num_invalid == whole.num_valid == labels.numel()
    assert np.isfinite(broken.images.nll).all()


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.int64])
def test_labels_may_be_numpy_of_any_width(make_image, dtype):
    logits, labels = make_image(2, CLASSES)
    plain = tally_image(logits, labels, image_id="a", ignore=255)
    assert tally_image(logits, labels.numpy().astype(dtype), image_id="a", ignore=255) == plain


def test_half_precision_logits_are_measured_as_stored(make_image):
    logits, labels = make_image(2, CLASSES)
    half = logits.half()
    one, two = (tally_image(z, labels, image_id="a", ignore=255) for z in (half, half.float()))
    assert one == two


def test_images_larger_than_a_block_are_one_image(make_image):
    """Two blocks and a rest: as the tallies of the three strips say together."""
    logits, labels = make_image(3, CLASSES, 300, 256)
    whole = tally_image(logits, labels, image_id="a", ignore=255)
    rows = 2**15 // 256
    strips = [
        tally_image(logits[:, a : a + rows], labels[a : a + rows], image_id=str(a), ignore=255)
        for a in range(0, 300, rows)
    ]
    together = merge(strips)
    assert together.by_predicted == whole.by_predicted
    assert together.by_true == whole.by_true
    np.testing.assert_array_equal(together.confusion, whole.confusion)
    assert together.images.nll.sum() == pytest.approx(whole.images.nll[0], rel=1e-14)


def test_a_label_of_another_size_names_image_and_sizes():
    with pytest.raises(DataError, match=r"left\.png: the label is 4x6 and the prediction 4x5"):
        tally_image(torch.zeros(3, 4, 5), torch.zeros(4, 6), image_id="left.png", ignore=255)


def test_a_strange_label_names_the_image():
    with pytest.raises(DataError, match=r"left\.png: label values outside the 3 classes: 7 \(1 px\)"):
        tally_image(torch.zeros(3, 1, 2), np.array([[7, 255]], np.uint8), image_id="left.png", ignore=255)


@settings(max_examples=10, deadline=None)
@given(st.permutations(range(CLASSES)))
def test_renaming_the_classes_moves_the_counts(make_image, order):
    logits, labels = make_image(4, CLASSES)
    order = list(order)
    back = torch.tensor(order).argsort()
    renamed = torch.where(labels == 255, 255, back[labels.where(labels != 255, 0)])
    one = tally_image(logits, labels, image_id="a", ignore=255)
    two = tally_image(logits[order], renamed, image_id="a", ignore=255)
    np.testing.assert_array_equal(two.confusion, one.confusion[np.ix_(order, order)])
    np.testing.assert_array_equal(two.by_predicted.correct.sum(1), one.by_predicted.correct.sum(1)[order])
    assert ece(two.by_true) == pytest.approx(ece(one.by_true), abs=1e-6)


def test_to_arrays_and_back(six):
    whole = merge(six)
    arrays = whole.to_arrays()
    assert Tally.from_arrays(arrays) == whole
    as_read = {**arrays, "ids": np.array([name.encode() for name in whole.ids], dtype=object)}
    assert Tally.from_arrays(as_read) == whole
    empty = Tally.zeros(4, "left")
    assert Tally.from_arrays(empty.to_arrays()) == empty
    assert Tally.from_arrays(empty.to_arrays()).edges == "left"


def broken(name):
    def drop(arrays):
        del arrays[name]

    return drop


def spoil(name, where, by):
    def add(arrays):
        arrays[name] = arrays[name].copy()
        arrays[name][where] += by

    return add


FILLED = (slice(None), slice(4000, None))


@pytest.mark.parametrize(
    "change",
    [
        broken("ids"),
        broken("by_true_count"),
        broken("images_nll"),
        spoil("images_confusion", (0, 0, 0), 1),
        spoil("images_coarse", (0, 0, 299), 1),
        spoil("images_coarse", (0, 1, 299), 1),
        spoil("by_predicted_count", (0, 4799), 1),
        spoil("by_predicted_correct", (0, 4799), 1),
        spoil("by_true_confidence", (0, 0), 1),
        spoil("by_true_confidence", FILLED, 2**40),
        lambda arrays: arrays.update(edges=np.array(["round"])),
        lambda arrays: arrays.update(ids=arrays["ids"][1:]),
        lambda arrays: arrays.update(images_colour=arrays["images_nll"]),
        lambda arrays: arrays.update(by_true_count=arrays["by_true_count"].astype(np.float32)),
    ],
)
def test_counts_that_contradict_each_other_are_not_read(six, change):
    arrays = merge(six).to_arrays()
    change(arrays)
    with pytest.raises(ArtifactError) as caught:
        Tally.from_arrays(arrays)
    assert "\n" not in caught.value.message
    assert "evaluate again" in caught.value.hint


def test_a_missing_array_is_named(six):
    arrays = six[0].to_arrays()
    del arrays["by_true_count"]
    with pytest.raises(ArtifactError, match="lack the array 'by_true_count'"):
        Tally.from_arrays(arrays)


@pytest.mark.gpu
def test_a_gpu_counts_alike(make_image, cuda):
    logits, labels = make_image(0, 19, 300, 400)
    here = tally_image(logits, labels, image_id="a", ignore=255)
    there = tally_image(logits.to(cuda), labels, image_id="a", ignore=255)
    np.testing.assert_array_equal(here.confusion, there.confusion)
    assert ece(there.by_predicted) == pytest.approx(ece(here.by_predicted), abs=1e-6)
