"""The confusion matrix and the scores of the labels alone."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from calseg_cli.errors import DataError
from calseg_cli.metrics import confusion as cm


def draw(classes, count=5000, seed=0, ignore=255):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, count)
    predictions = np.where(rng.random(count) < 0.6, labels, rng.integers(0, classes, count))
    labels[rng.random(count) < 0.1] = ignore
    return torch.from_numpy(labels), torch.from_numpy(predictions)


@pytest.mark.parametrize(("classes", "ignore"), [(2, 255), (5, 255), (19, 255), (19, 99), (150, 255), (3, -1)])
def test_matches_sklearn(classes, ignore):
    labels, predictions = draw(classes, ignore=ignore)
    matrix = cm.confusion_matrix(labels, predictions, classes, ignore=ignore)
    kept = labels != ignore
    y, p = labels[kept].numpy(), predictions[kept].numpy()
    assert matrix.dtype == np.int64
    np.testing.assert_array_equal(matrix, sk.confusion_matrix(y, p, labels=range(classes)))
    np.testing.assert_allclose(cm.iou(matrix), sk.jaccard_score(y, p, average=None), rtol=1e-15)
    np.testing.assert_allclose(cm.class_accuracy(matrix), sk.recall_score(y, p, average=None), rtol=1e-15)
    np.testing.assert_allclose(cm.class_precision(matrix), sk.precision_score(y, p, average=None), rtol=1e-15)
    assert cm.pixel_accuracy(matrix) == pytest.approx(sk.accuracy_score(y, p), rel=1e-15)
    assert cm.mean_iou(matrix) == pytest.approx(sk.jaccard_score(y, p, average="macro"), rel=1e-14)
    assert cm.mean_accuracy(matrix) == pytest.approx(sk.balanced_accuracy_score(y, p), rel=1e-14)


def test_rows_are_true_classes():
    matrix = cm.confusion_matrix(torch.tensor([[0, 0]]), torch.tensor([[1, 1]]), 2, ignore=255)
    assert matrix.tolist() == [[0, 2], [0, 0]]


def test_a_class_without_ground_truth_is_not_available_even_where_predicted():
    matrix = np.array([[6, 0, 2], [1, 3, 0], [0, 0, 0]])
    np.testing.assert_array_equal(cm.iou(matrix), [6 / 9, 3 / 4, np.nan])
    np.testing.assert_array_equal(cm.class_accuracy(matrix), [6 / 8, 3 / 4, np.nan])
    assert cm.mean_iou(matrix) == pytest.approx((6 / 9 + 3 / 4) / 2)
    assert cm.mean_accuracy(matrix) == pytest.approx(0.75)


def test_a_class_present_and_never_found_counts_as_zero():
    matrix = np.array([[4, 0], [2, 0]])
    assert cm.iou(matrix)[1] == 0.0
    assert cm.mean_iou(matrix) == pytest.approx((4 / 6 + 0) / 2)
    assert np.isnan(cm.class_precision(matrix)[1])


def test_a_subset_averages_rows_of_the_whole_table():
    """As SYNTHIA's 16 and 13 classes are read: the truck (2) taken for a bus (1) lowers the bus, averaged or not."""
    matrix = np.array([[8, 2, 0], [0, 5, 0], [0, 5, 5]])
    assert cm.iou(matrix)[1] == pytest.approx(5 / 12)
    assert cm.mean_iou(matrix, [0, 1]) == pytest.approx((8 / 10 + 5 / 12) / 2)
    assert cm.mean_accuracy(matrix, [0, 1]) == pytest.approx((8 / 10 + 1) / 2)
    assert cm.mean_iou(matrix, [0, 1, 2]) == cm.mean_iou(matrix)


def test_no_pixel_at_all_is_not_available():
    empty = cm.confusion_matrix(torch.full((4,), 255), torch.zeros(4, dtype=torch.long), 3, ignore=255)
    assert empty.sum() == 0
    scores = [cm.pixel_accuracy(empty), cm.mean_iou(empty), cm.mean_accuracy(empty), *cm.iou(empty)]
    assert np.isnan(scores).all()


@pytest.mark.parametrize("value", [-1, 3, 200, 10**6])
def test_a_strange_label_is_refused_by_name(value):
    labels = torch.tensor([0, 1, value, value, 255])
    with pytest.raises(DataError, match=rf"{value} \(2 px\)") as caught:
        cm.confusion_matrix(labels, torch.zeros(5, dtype=torch.long), 3, ignore=255)
    assert "id map" in caught.value.hint


def test_many_strange_labels_make_a_short_message():
    with pytest.raises(DataError, match="and 92 more"):
        cm.check_labels(torch.arange(100, 200), 3, ignore=255, where="a.png")


def test_a_strange_prediction_is_a_bug():
    with pytest.raises(ValueError, match="outside"):
        cm.confusion_matrix(torch.tensor([2]), torch.tensor([3]), 3, ignore=255)


@settings(max_examples=30, deadline=None)
@given(st.permutations(range(5)), st.integers(0, 100))
def test_renaming_the_classes_renames_the_scores(order, seed):
    labels, predictions = draw(5, count=300, seed=seed)
    order = torch.tensor([*order])
    renamed = torch.where(labels == 255, 255, order[labels.where(labels != 255, 0)])
    before = cm.confusion_matrix(labels, predictions, 5, ignore=255)
    after = cm.confusion_matrix(renamed, order[predictions], 5, ignore=255)
    np.testing.assert_array_equal(after[np.ix_(order, order)], before)
    np.testing.assert_array_equal(cm.iou(after)[order], cm.iou(before))
    assert cm.mean_iou(after) == pytest.approx(cm.mean_iou(before), rel=1e-14)
