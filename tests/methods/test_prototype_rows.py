"""What prototypes begin with, against loops in float64: the source's rows, classes never seen; the shift of domains."""

import numpy as np
import pytest
import torch

from calseg_cli.errors import ArtifactError, DataError
from calseg_cli.methods.prototype_rows import known_rows, mean_rows, shifts
from calseg_cli.methods.prototypes import PrototypeOptions, Prototypes
from tests.methods.prototype_examples import image, softmax64, state_of


def never(classes: tuple[int, ...], seed: int = 60) -> torch.Tensor:
    """Logits by which no pixel is predicted as these classes."""
    logits = image(seed, size=(20, 20))
    logits[list(classes)] = -30.0
    return logits


def source_rows(unknown: tuple[int, ...] = ()) -> np.ndarray:
    rows = Prototypes(state_of(image(61), image(62))).counted_rows()
    rows[list(unknown)] = np.nan
    return rows


def oracle(logits: torch.Tensor, rows: np.ndarray, prior: float) -> np.ndarray:
    """C (5,5) by a loop over pixels in float64, NaN where there is none: prior and pixels in one weighted mean."""
    begin = [np.eye(5)[k] if np.isnan(rows[k]).any() else rows[k] for k in range(5)]
    sums, weights = [prior * begin[k] for k in range(5)], [prior] * 5
    for p in softmax64(logits):
        k = int(p.argmax())
        sums[k], weights[k] = sums[k] + p.max() * p, weights[k] + p.max()
    return np.array([sums[k] / weights[k] if weights[k] else rows[k] for k in range(5)])


@pytest.mark.parametrize("prior", [0.0, 3.5, 1e6])
@pytest.mark.parametrize("unknown", [(), (1,), (2, 4)], ids=str)
def test_rows_are_those_of_a_loop(prior, unknown):
    logits, rows = never((2,)), source_rows(unknown)
    made = Prototypes(state_of(logits), PrototypeOptions(prior=prior), prior_rows=rows)
    assert made.borrowed == ([] if 2 in unknown else [2])
    wanted = oracle(logits, rows, prior)
    known = ~np.isnan(wanted).any(axis=1)
    assert made.valid.tolist() == known.tolist()
    np.testing.assert_allclose(made.rows[known], wanted[known], atol=1e-6)
    assert known.all() or (prior == 0 and 2 in unknown)


def test_only_classes_never_seen_take_the_source_without_a_prior():
    state, rows = state_of(never((2,))), source_rows()
    made = Prototypes(state, prior_rows=rows, names=list("abcde"))
    seen = [0, 1, 3, 4]
    np.testing.assert_array_equal(made.rows[seen], Prototypes(state).rows[seen])
    np.testing.assert_array_equal(made.rows[2], rows[2])
    assert (made.borrowed, made.unseen) == ([2], [])
    assert made.notes() == ["the source's prototype stands in for: c"]
    logits = image(63, size=(30, 30))
    assert bool((made.labels(logits) == 2).any())
    assert not bool((Prototypes(state).labels(logits) == 2).any())


def test_a_class_of_few_pixels_takes_the_source_too():
    state, rows = state_of(image(64)), source_rows()
    fewest = int(state.pixels.argmin())
    for prior in (0.0, 2.0):
        options = PrototypeOptions(min_pixels=int(state.pixels[fewest]) + 1, prior=prior)
        np.testing.assert_array_equal(Prototypes(state, options, prior_rows=rows).rows[fewest], rows[fewest])


def test_what_the_source_does_not_know_either_stays_unseen():
    state, rows = state_of(never((2,))), source_rows((2,))
    assert Prototypes(state, prior_rows=rows).unseen == [2]
    onehot = Prototypes(state, PrototypeOptions(unseen="onehot"), prior_rows=rows)
    assert onehot.rows[2].tolist() == [0, 0, 1, 0, 0]
    with pytest.raises(DataError, match="no prototype for 2"):
        Prototypes(state, PrototypeOptions(unseen="error"), prior_rows=rows)
    assert Prototypes(state, PrototypeOptions(unseen="error"), prior_rows=source_rows()).valid.all()


def test_shrinking_shrinks_what_is_borrowed():
    rows = source_rows()
    made = Prototypes(state_of(never((2,))), PrototypeOptions(shrink=0.25), prior_rows=rows)
    np.testing.assert_allclose(made.rows[2], 0.75 * rows[2] + 0.25 * np.eye(5)[2], atol=1e-15)
    all_of_it = Prototypes(state_of(never((2,))), PrototypeOptions(shrink=1.0), prior_rows=rows)
    assert torch.equal(all_of_it(image(65)), image(65))


def test_counted_rows_know_no_prior_no_stand_in_and_no_shrinking():
    state = state_of(never((2,)))
    options = PrototypeOptions(prior=9.0, shrink=0.5, unseen="onehot")
    counted = Prototypes(state, options, prior_rows=source_rows()).counted_rows()
    assert np.isnan(counted[2]).all()
    seen = [0, 1, 3, 4]
    np.testing.assert_array_equal(counted[seen], state.sums[seen] / state.weights[seen, None])
    few = PrototypeOptions(min_pixels=int(np.sort(state.pixels)[2]))
    assert known_rows(Prototypes(state, few).counted_rows()).sum() == 3


def test_an_artifact_needs_no_other_file_and_holds_the_sums_without_the_prior():
    state = state_of(never((2,)))
    made = Prototypes(state, PrototypeOptions(prior=50.0), prior_rows=source_rows((1,)))
    arrays = made.to_arrays()
    np.testing.assert_array_equal(arrays["sums"], state.sums)
    again = Prototypes.from_artifact(arrays, made.facts())
    assert torch.equal(again(image(66)), made(image(66)))
    np.testing.assert_array_equal(again.rows, made.rows)
    assert again.describe() == made.describe()
    assert "the source's prototypes" in made.describe()


@pytest.mark.parametrize(
    "rows",
    [
        np.full((4, 5), 0.2),
        np.full((5, 5), 0.3),
        np.full((5, 5), 0.2, np.float32),
        np.where(np.eye(5) > 0, 1.2, -0.05),
        np.full((5, 5), np.inf),
        np.full(5, 0.2),
    ],
    ids=["shape", "sum", "type", "negative", "infinite", "flat"],
)
def test_rows_that_are_no_soft_labels_are_refused(rows):
    arrays = {**Prototypes(state_of(image(67))).to_arrays(), "prior_rows": rows}
    with pytest.raises(ArtifactError, match="no soft labels"):
        Prototypes.from_artifact(arrays, {})


def test_means_begin_with_one_hot_labels_where_no_row_is_given():
    sums, weights, pixels = np.array([[6.0, 2.0], [0.0, 0.0]]), np.array([8.0, 0.0]), np.array([9, 0])
    rows, valid = mean_rows(sums, weights, pixels, prior=2.0)
    assert (rows.tolist(), valid.tolist()) == ([[0.8, 0.2], [0.0, 1.0]], [True, True])
    rows, valid = mean_rows(sums, weights, pixels, prior=2.0, prior_rows=np.array([[0.5, 0.5], [np.nan, np.nan]]))
    assert (rows.tolist(), valid.tolist()) == ([[0.7, 0.3], [0.0, 1.0]], [True, True])


def test_the_shift_says_what_each_class_lost_and_which_took_most():
    nothing = [np.nan] * 4
    source = np.array([[0.75, 0.25, 0, 0], [0.5, 0.5, 0, 0], nothing, [0, 0.25, 0, 0.75]])
    target = np.array([[0.5, 0.125, 0.125, 0.25], nothing, [0, 0, 1, 0], [0, 0.125, 0, 0.875]])
    first, second, third, fourth = shifts(source, target)
    assert (first.source, first.target, first.difference) == (0.75, 0.5, -0.25)
    assert (first.taker, first.taken) == (3, 0.25)
    assert (second.source, second.taker) == (0.5, None)
    assert np.isnan([second.target, second.difference, second.taken]).all()
    assert (third.target, third.taker) == (1.0, None)
    assert np.isnan([third.source, third.difference]).all()
    assert (fourth.difference, fourth.taker) == (0.125, None)  # nothing was lost
    assert np.isnan(fourth.taken)
