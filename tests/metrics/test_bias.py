"""The bias of classes: by hand, by its bounds, and prior-free; spreads and groups of classes."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from calseg_cli.metrics.bias import (
    bias_of_shares,
    class_bias,
    group_scores,
    over_classes,
    prediction_shares,
    spread_scores,
)
from calseg_cli.metrics.confusion import class_accuracy, iou, mean_iou
from calseg_cli.metrics.scores import read_scores
from calseg_cli.metrics.tally import Tally, tally_image

matrices = st.integers(1, 6).flatmap(
    lambda side: st.lists(st.integers(0, 50), min_size=side**2, max_size=side**2).map(
        lambda cells: np.array(cells, np.int64).reshape(side, side)
    )
)


def brute_bias(confusion):
    """Eq. 4 of the paper over the classes that occur, one class and one pixel at a time."""
    rows = [[int(cell) for cell in row] for row in confusion]
    present = [c for c, row in enumerate(rows) if sum(row)]
    found = []
    for predicted in range(len(rows)):
        shares = [rows[c][predicted] / sum(rows[c]) for c in present]
        fair = 1 / len(present) if predicted in present else 0.0
        found.append(math.fsum(shares) / len(present) - fair if present else math.nan)
    return found


@settings(max_examples=80, deadline=None)
@given(matrices)
def test_bias_is_the_definition(confusion):
    np.testing.assert_allclose(class_bias(confusion), brute_bias(confusion), atol=1e-14)


@settings(max_examples=80, deadline=None)
@given(matrices.filter(np.any))
def test_biases_add_up_to_nothing_and_keep_their_bounds(confusion):
    bias, present = class_bias(confusion), confusion.sum(axis=1) > 0
    fair = 1 / present.sum()
    assert math.fsum(bias) == pytest.approx(0, abs=1e-12)
    assert (bias[present] >= -fair - 1e-15).all()
    assert (bias[present] <= 1 - fair + 1e-15).all()
    assert ((bias[~present] >= 0) & (bias[~present] <= 1)).all()


@pytest.mark.parametrize("classes", [1, 2, 7])
def test_predictors_that_everyone_knows(classes):
    pixels = np.arange(1, classes + 1) * 10
    assert class_bias(np.diag(pixels)).tolist() == [0.0] * classes
    uniform = np.repeat(pixels[:, None] * classes, classes, axis=1)
    np.testing.assert_allclose(class_bias(uniform), 0, atol=1e-15)
    constant = np.zeros((classes, classes), np.int64)
    constant[:, -1] = pixels
    np.testing.assert_allclose(class_bias(constant), [*[-1 / classes] * (classes - 1), 1 - 1 / classes], atol=1e-15)


@settings(max_examples=40, deadline=None)
@given(matrices.filter(lambda one: len(one) > 1 and one.sum(axis=1).all()), st.integers(2, 30))
def test_bias_knows_nothing_of_how_common_a_class_is(confusion, times):
    more = confusion.copy()
    more[0] *= times
    np.testing.assert_allclose(class_bias(more), class_bias(confusion), atol=1e-14)


def test_miou_does_know():
    confusion = np.array([[8, 2], [3, 7]])
    assert mean_iou(np.diag([5, 1]) @ confusion) != pytest.approx(mean_iou(confusion), abs=0.01)


def test_a_class_that_does_not_occur_has_no_fair_share():
    np.testing.assert_allclose(class_bias(np.array([[6, 2, 2], [0, 0, 0], [0, 4, 6]])), [-0.2, 0.3, -0.1], atol=1e-15)
    assert class_bias(np.array([[3, 1], [0, 0]])).tolist() == [-0.25, 0.25]
    assert np.isnan(class_bias(np.zeros((3, 3), np.int64))).all()


def test_a_stack_of_matrices_has_the_bits_of_each():
    stack = np.random.default_rng(0).integers(0, 9, (40, 5, 5)) * np.random.default_rng(1).integers(0, 2, (40, 5, 1))
    for one, bias in zip(stack, class_bias(stack.astype(np.float64)), strict=True):
        assert bias.tobytes() == class_bias(one).tobytes()
        np.testing.assert_array_equal(bias, bias_of_shares(prediction_shares(one)))


def test_raising_a_channel_raises_its_bias():
    torch.manual_seed(0)
    logits, labels = torch.randn(4, 24, 24), torch.randint(0, 4, (24, 24))
    logits += 1.5 * torch.nn.functional.one_hot(labels, 4).permute(2, 0, 1)
    found = []
    for raised in (-2.0, 0.0, 0.5, 3.0):
        moved = logits.clone()
        moved[2] += raised
        found.append(class_bias(tally_image(moved, labels, image_id="a", ignore=255).confusion)[2])
    assert found == sorted(found)
    assert found[0] < found[1] < found[3]


def test_pixels_without_a_label_or_with_a_nan_do_not_count():
    torch.manual_seed(0)
    logits, labels = torch.randn(3, 8, 9), torch.randint(0, 3, (8, 9))
    labels[:3], logits[1, 4] = 255, float("nan")
    kept = [0, 1, 2, 4]
    whole = tally_image(logits, labels, image_id="a", ignore=255)
    rest = [row for row in range(3, 8) if row not in kept]
    part = tally_image(logits[:, rest], labels[rest], image_id="a", ignore=255)
    np.testing.assert_array_equal(class_bias(whole.confusion), class_bias(part.confusion))


@settings(max_examples=60, deadline=None)
@given(matrices, st.booleans())
def test_spreads_and_groups_are_their_definitions(confusion, few):
    classes = list(range(0, len(confusion), 2)) if few else None
    chosen = [c for c in range(len(confusion)) if confusion[c].any() and (classes is None or c in classes)]
    bias, values = brute_bias(confusion), {"iou": iou(confusion), "accuracy": class_accuracy(confusion)}
    measured = class_bias(confusion)
    given = (values["iou"][None], values["accuracy"][None], measured[None], classes)
    found = spread_scores(*given) | group_scores(*given)

    def agree(name, numbers, function):
        expected = function(numbers) if numbers else math.nan
        assert found[name][0] == pytest.approx(expected, abs=1e-14, nan_ok=True), name

    agree("bias_spread", [bias[c] for c in chosen], deviation)
    for name, scores in values.items():
        agree(f"{name}_spread", [scores[c] for c in chosen], deviation)
        agree(f"{name}_over", [scores[c] for c in chosen if measured[c] > 0], average)
        agree(f"{name}_under", [scores[c] for c in chosen if measured[c] < 0], average)


def average(numbers):
    return math.fsum(numbers) / len(numbers)


def deviation(numbers):
    """Of the population: divided by how many there are, not by one less."""
    return math.sqrt(math.fsum((one - average(numbers)) ** 2 for one in numbers) / len(numbers))


def test_rows_of_one_block_have_the_bits_of_each_alone():
    values = np.random.default_rng(0).random((60, 19))
    values[np.random.default_rng(1).random(values.shape) < 0.2] = np.nan
    values[7] = np.nan
    for statistic in ("mean", "std"):
        together = over_classes(values, None, statistic)
        alone = [over_classes(row[None], None, statistic)[0] for row in values]
        assert together.tobytes() == np.array(alone).tobytes()
    assert np.isnan(together[7])


def test_a_report_reads_them(make_image):
    logits, labels = make_image(0, 3, 12, 12)
    tally = tally_image(logits, labels, image_id="a", ignore=255)
    scores = read_scores(tally, class_names=["a", "b", "c"])
    assert [row.bias for row in scores.classes] == class_bias(tally.confusion).tolist()
    assert scores.bias_spread == pytest.approx(deviation([row.bias for row in scores.classes]))
    assert scores.accuracy_spread == pytest.approx(deviation([row.accuracy for row in scores.classes]))
    empty = read_scores(Tally.zeros(2), class_names=["a", "b"])
    assert math.isnan(empty.bias_spread)
    assert math.isnan(empty.classes[0].bias)
