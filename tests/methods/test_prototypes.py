"""Soft-label prototypes against loops in float64, the properties that follow from their definition, and hard cases."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from calseg_cli.errors import ConfigError, DataError
from calseg_cli.methods.prototype_state import PrototypeState, soft_labels
from calseg_cli.methods.prototypes import MARGIN, PrototypeOptions, Prototypes, exchanged, linear_form
from tests.methods.prototype_examples import image, softmax64, state_of

DISTANCES = ("l2", "cosine", "hellinger", "kl")


def ours(one: torch.Tensor, temperature: float) -> np.ndarray:
    return soft_labels(one.flatten(1), temperature).probs.double().numpy().T


def nearest(probs: np.ndarray, rows: np.ndarray, valid: np.ndarray, distance: str) -> tuple[np.ndarray, np.ndarray]:
    """The nearest valid prototype of each row, and how much farther the second is; from the definitions."""
    with np.errstate(divide="ignore", invalid="ignore"):
        apart = np.array([[DEFINITIONS[distance](p, c) for c in rows] for p in probs])
    apart[:, ~valid] = np.inf
    ordered = np.sort(apart, axis=1)
    return apart.argmin(axis=1), ordered[:, 1] - ordered[:, 0]


DEFINITIONS = {
    "l2": lambda p, c: ((p - c) ** 2).sum(),
    "cosine": lambda p, c: 1 - (p * c).sum() / np.sqrt((p**2).sum() * (c**2).sum()),
    "hellinger": lambda p, c: 0.5 * ((np.sqrt(p) - np.sqrt(c)) ** 2).sum(),
    "kl": lambda p, c: sum(a * (np.log(a) - np.log(max(b, 1e-8))) for a, b in zip(p, c, strict=True) if a > 0),
}


# Properties of the definition


seeds = st.integers(0, 10**6)


@settings(max_examples=40, deadline=None)
@given(seeds, st.integers(2, 7), st.floats(0.2, 6))
def test_rows_are_soft_labels_whose_largest_is_their_own_class(seed, classes, spread):
    state = state_of(image(seed, classes, spread=spread), image(seed + 1, classes, spread=spread))
    rows = Prototypes(state, PrototypeOptions(unseen="onehot")).rows
    np.testing.assert_allclose(rows.sum(axis=1), 1, atol=1e-6)
    assert (rows >= 0).all()
    assert (rows.diagonal() >= rows.max(axis=1) - 1e-12).all()
    assert (rows.diagonal() >= 1 / classes - 1e-6).all()


@settings(max_examples=40, deadline=None)
@given(seeds)
def test_weighting_by_confidence_never_lowers_the_diagonal(seed):
    options = [PrototypeOptions(weight_power=power, unseen="onehot") for power in (0.0, 1.0, 2.0)]
    diagonals = [Prototypes(state_of(image(seed), rule=o.rule()), o).rows.diagonal() for o in options]
    assert (diagonals[1] >= diagonals[0] - 1e-12).all()
    assert (diagonals[2] >= diagonals[1] - 1e-12).all()


@settings(max_examples=30, deadline=None)
@given(seeds, st.permutations(range(5)))
def test_permuted_classes_permute_everything(seed, order):
    logits = image(seed)
    state = state_of(logits)
    moved = state_of(logits[list(order)])
    np.testing.assert_allclose(moved.sums, state.sums[np.ix_(order, order)], rtol=1e-6, atol=1e-9)
    options = PrototypeOptions(unseen="onehot")
    labels, permuted = (Prototypes(s, options).labels(z) for s, z in ((state, logits), (moved, logits[list(order)])))
    differ = torch.tensor(order)[permuted] != labels
    assert differ.float().mean() <= 0.02  # float32 adds classes in their order; only pixels on a border may differ


@settings(max_examples=20, deadline=None)
@given(seeds)
def test_duplicating_every_image_changes_nothing(seed):
    logits = image(seed)
    once, twice = PrototypeState(5), PrototypeState(5)
    once.add(logits)
    twice.add(logits)
    twice.add(logits)
    options = PrototypeOptions(unseen="onehot")
    np.testing.assert_array_equal(Prototypes(once, options).rows, Prototypes(twice, options).rows)


def with_rows(rows: np.ndarray, weight: float = 1000.0, **options) -> Prototypes:
    """Prototypes that have these rows."""
    state = PrototypeState.from_arrays(
        {"sums": rows * weight, "weights": np.full(len(rows), weight), "pixels": np.full(len(rows), int(weight))}
    )
    return Prototypes(state, PrototypeOptions(**options))


@settings(max_examples=40, deadline=None)
@given(seeds, st.integers(2, 6), st.floats(0, 0.9), st.sampled_from(DISTANCES))
def test_alike_prototypes_are_argmax(seed, classes, share, distance):
    rows = (1 - share) * np.eye(classes) + share / classes
    logits = image(seed, classes)
    probs = np.sort(ours(logits, 1.0), axis=1)
    clear = torch.from_numpy(probs[:, -1] - probs[:, -2] > 1e-5).reshape(logits.shape[1:])
    labels = with_rows(rows, 1024.0, distance=distance).labels(logits)
    assert bool((labels == logits.argmax(dim=0))[clear].all())


@pytest.mark.parametrize("confidence", ["max", "distance"])
def test_shrunk_to_the_end_it_is_argmax_exactly(confidence):
    logits = image(5)
    made = Prototypes(state_of(image(6)), PrototypeOptions(shrink=1.0, confidence=confidence))
    assert torch.equal(made(logits), logits)
    assert made.rows.tolist() == np.eye(5).tolist()


def test_shrinking_moves_towards_argmax():
    logits = image(7, size=(40, 40))
    state = state_of(logits)
    changed = [
        int((Prototypes(state, PrototypeOptions(shrink=share)).labels(logits) != logits.argmax(dim=0)).sum())
        for share in (0.0, 0.5, 0.9, 1.0)
    ]
    assert changed == sorted(changed, reverse=True)
    assert changed[0] > 0 == changed[-1]


def test_the_border_of_two_classes_is_where_algebra_says():
    a, b = 0.95, 0.70
    made = with_rows(np.array([[a, 1 - a], [1 - b, b]]), 2.0**20)
    border = (a + 1 - b) / 2
    assert border == pytest.approx(0.625)
    p = np.array([border - 1e-4, border + 1e-4, 0.5, 0.99])
    logits = torch.from_numpy(np.log([p, 1 - p]).astype(np.float32))[:, None]
    assert made.labels(logits).tolist() == [[1, 0, 1, 0]]


# The nearest prototype


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("confidence", ["max", "distance"])
@pytest.mark.parametrize("masked", [False, True])
def test_labels_are_those_of_distances_written_out(distance, confidence, masked):
    logits = image(8, size=(30, 40))
    state = state_of(image(9))
    options = PrototypeOptions(distance=distance, confidence=confidence)
    if masked:
        state.pixels[2] = 0
        options = PrototypeOptions(distance=distance, confidence=confidence, min_pixels=1)
    made = Prototypes(state, options)
    assert made.valid.tolist() == [True, True, not masked, True, True]
    wanted, margin = nearest(softmax64(logits), made.rows, made.valid, distance)
    found = made(logits).flatten(1).argmax(dim=0).numpy()
    assert (found == wanted)[margin > 1e-5].all()
    assert (margin > 1e-5).mean() > 0.99
    assert (found != softmax64(logits).argmax(axis=1)).any()
    if masked:
        assert not (found == 2).any()


@pytest.mark.parametrize("distance", DISTANCES)
def test_the_linear_form_is_the_distance_up_to_what_all_share(distance):
    random = np.random.default_rng(0)
    p, rows = random.dirichlet(np.ones(6), 50), random.dirichlet(np.ones(6), 6)
    weight, bias = linear_form(rows, distance)
    scores = (np.sqrt(p) if distance == "hellinger" else p) @ weight.T + bias
    apart = np.array([[DEFINITIONS[distance](one, c) for c in rows] for one in p])
    share = {
        "l2": lambda s: (p**2).sum(axis=1, keepdims=True) - s,
        "cosine": lambda s: 1 - s / np.sqrt((p**2).sum(axis=1, keepdims=True)),
        "hellinger": lambda s: 1 - s,
        "kl": lambda s: (p * np.log(p)).sum(axis=1, keepdims=True) - s,
    }[distance]
    np.testing.assert_allclose(share(scores), apart, atol=1e-12)


def test_softmax_of_corrected_logits_is_that_of_squared_distances():
    logits = image(10)
    made = Prototypes(state_of(image(11)), PrototypeOptions(confidence="distance", tau=0.3))
    probs = ours(logits, 1.0)
    apart = ((probs[:, None] - made.rows[None]) ** 2).sum(axis=-1)
    wanted = torch.from_numpy(-apart / 0.3).softmax(dim=1).numpy()
    found = made(logits).flatten(1).double().softmax(dim=0).numpy().T
    np.testing.assert_allclose(found, wanted, atol=1e-6)


@pytest.mark.parametrize("confidence", ["max", "distance"])
def test_equal_distances_go_to_the_lowest_index(confidence):
    rows = np.array([[0.6, 0.3, 0.1], [0.3, 0.6, 0.1], [0.3, 0.6, 0.1]])
    made = with_rows(rows, 1024.0, confidence=confidence)
    p = np.array([[0.1, 0.45, 0.1], [0.8, 0.45, 0.1], [0.1, 0.1, 0.8]])
    labels = made.labels(torch.from_numpy(np.log(p).astype(np.float32))[:, None])
    assert labels.tolist() == [[1, 0, 0]]  # of 1 and 2, of 0 and 1, and of all three


def test_distances_that_differ_by_rounding_are_equal():
    made = with_rows(np.array([[0.6, 0.3, 0.1], [0.3, 0.6, 0.1], [0.3, 0.6, 0.1]]), 1024.0)
    logits = torch.tensor([0.1, 0.8, 0.1]).log().reshape(3, 1, 1)
    made.rows[2] += [-1e-14, 1e-14, 0]
    assert made.labels(logits).item() == 1
    made.rows[2] += [-1e-9, 1e-9, 0]
    assert made.labels(logits).item() == 2


@settings(max_examples=60, deadline=None)
@given(seeds, st.integers(2, 6))
def test_keeping_confidence_keeps_the_values_and_float16_keeps_the_label(seed, classes):
    random = np.random.default_rng(seed)
    logits = torch.from_numpy(random.integers(-4, 5, (classes, 30)).astype(np.float32))  # many ties
    wanted = torch.from_numpy(random.integers(0, classes, 30))
    found = exchanged(logits, wanted)
    for stored in (found, found.half().float()):
        np.testing.assert_array_equal(stored.numpy().argmax(axis=0), wanted.numpy())
    assert torch.equal(found.amax(dim=0), logits.amax(dim=0))
    clear = (logits == logits.amax(dim=0)).sum(dim=0) == 1
    assert torch.equal(found.sort(dim=0).values[:, clear], logits.sort(dim=0).values[:, clear])
    same = wanted.numpy() == logits.numpy().argmax(axis=0)
    assert torch.equal(found[:, same], logits[:, same])


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("tau", [0.001, 0.1, 10.0])
def test_float16_holds_what_is_corrected_and_its_labels(distance, tau):
    state = state_of(image(12))
    state.pixels[1] = 0
    made = Prototypes(state, PrototypeOptions(distance=distance, confidence="distance", tau=tau, min_pixels=1))
    found = made(image(13, size=(30, 30)))
    half = found.half()
    assert bool(torch.isfinite(half).all())
    assert torch.equal(half.float().argmax(dim=0), found.argmax(dim=0))
    others = torch.cat([found[:1], found[2:]])
    np.testing.assert_allclose(found[1], others.amin(dim=0) - MARGIN, rtol=1e-6)
    assert bool((half[1] < torch.cat([half[:1], half[2:]]).amin(dim=0)).all())


def test_a_masked_class_is_below_all_others_after_enlarging_too():
    state = state_of(image(14))
    state.pixels[0] = 0
    for confidence in ("max", "distance"):
        made = Prototypes(state, PrototypeOptions(confidence=confidence, min_pixels=1))
        full = torch.nn.functional.interpolate(made(image(15))[None], scale_factor=4, mode="bilinear")[0]
        assert not bool((full.argmax(dim=0) == 0).any())


def test_temperature_is_that_of_both_passes():
    logits = image(16)
    options = PrototypeOptions(temperature=3.0)
    made = Prototypes(state_of(logits, rule=options.rule()), options)
    wanted, margin = nearest(softmax64(logits, 3.0), made.rows, made.valid, "l2")
    assert (made.labels(logits).flatten().numpy() == wanted)[margin > 1e-5].all()


def test_an_image_mixes_in_its_own_sums():
    state, logits = state_of(image(17)), image(18)
    made = Prototypes(state, PrototypeOptions(per_image=50.0))
    own = state_of(logits)
    rows = (50 * state.sums / state.weights[:, None] + own.sums) / (50 + own.weights)[:, None]
    wanted, margin = nearest(softmax64(logits), rows, made.valid, "l2")
    assert (made.labels(logits).flatten().numpy() == wanted)[margin > 1e-5].all()
    heavy = Prototypes(state, PrototypeOptions(per_image=1e12))
    assert torch.equal(heavy.labels(logits), Prototypes(state).labels(logits))


# Hard cases


def lacking(classes: int = 5, missing: tuple[int, ...] = (2,), size=(9, 11), seed: int = 20) -> torch.Tensor:
    logits = image(seed, classes, size)
    logits[list(missing)] = -30.0
    return logits


def test_a_class_never_seen_takes_no_pixel():
    made = Prototypes(state_of(lacking()))
    logits = image(21, size=(40, 40)) * 0.1  # diffuse: the pixels that a row of zeros would attract
    assert made.unseen == [2]
    assert not bool((made.labels(logits) == 2).any())
    assert not made.rows[2].any()
    assert "mask" in made.notes()[0]


def test_a_class_never_seen_can_be_one_hot_from_the_source_or_an_error():
    state = state_of(lacking())
    assert Prototypes(state, PrototypeOptions(unseen="onehot")).rows[2].tolist() == [0, 0, 1, 0, 0]
    source = np.full((5, 5), np.nan)
    source[2] = [0.1, 0.1, 0.6, 0.1, 0.1]
    made = Prototypes(state, PrototypeOptions(unseen="source"), source_rows=source)
    np.testing.assert_array_equal(made.rows[2], source[2])
    np.testing.assert_array_equal(made.rows[0], Prototypes(state).rows[0])
    source[2] = np.nan
    assert not Prototypes(state, PrototypeOptions(unseen="source"), source_rows=source).valid[2]
    with pytest.raises(ConfigError, match="source"):
        Prototypes(state, PrototypeOptions(unseen="source"))
    with pytest.raises(DataError, match="no prototype for c"):
        Prototypes(state, PrototypeOptions(unseen="error"), names=list("abcde"))


def test_a_prior_gives_unseen_classes_a_one_hot_prototype_and_moves_the_others_little():
    state = state_of(lacking())
    made = Prototypes(state, PrototypeOptions(prior=10.0))
    assert made.rows[2].tolist() == [0, 0, 1, 0, 0]
    wanted = (state.sums + 10 * np.eye(5)) / (state.weights + 10)[:, None]
    np.testing.assert_allclose(made.rows, wanted, atol=1e-15)
    assert Prototypes(state, PrototypeOptions(prior=1e-9)).rows[0] == pytest.approx(Prototypes(state).rows[0])


def test_a_class_of_few_pixels_counts_as_unseen():
    state = state_of(image(22))
    fewest = int(state.pixels.argmin())
    made = Prototypes(state, PrototypeOptions(min_pixels=int(state.pixels[fewest]) + 1))
    assert fewest in made.unseen
    assert not made.valid[fewest]


def test_one_class_alone_is_refused_and_none_is_argmax_with_a_warning():
    one = state_of(lacking(3, (0, 2)))
    with pytest.raises(DataError, match="b is the only class with a prototype"):
        Prototypes(one, names=list("abc"))
    assert Prototypes(one, PrototypeOptions(unseen="onehot")).valid.all()
    logits = image(23)
    none = Prototypes(PrototypeState(5))
    assert torch.equal(none(logits), logits)
    assert none.notes()[-1].startswith("warning: no class has a prototype")
    assert not Prototypes(state_of(image(24)), PrototypeOptions(min_pixels=10**9)).valid.any()


def test_a_single_class_stays_as_it_is():
    logits = image(25, classes=1)
    assert torch.equal(Prototypes(state_of(logits))(logits), logits)


def test_nearly_equal_prototypes_are_told():
    rows = np.array([[0.4, 0.35, 0.25], [0.35, 0.4, 0.25], [0.35, 0.3999, 0.2501]])
    assert any("prototypes of 1, 2 are only" in note for note in with_rows(rows).notes())
    assert not with_rows(np.eye(3) * 0.7 + 0.1).notes()


def test_saturated_soft_labels_are_told():
    logits = image(26) * 1000
    made = Prototypes(state_of(logits))
    assert any("nearly one-hot" in note and "temperature" in note for note in made.notes())
    soft = PrototypeOptions(temperature=1000.0)
    assert not Prototypes(state_of(logits, rule=soft.rule()), soft).notes()


def test_iterations_warn():
    assert any("anew" in note for note in Prototypes(state_of(image(0)), PrototypeOptions(iterations=2)).notes())


def test_an_image_of_no_pixel():
    made = Prototypes(state_of(image(0)))
    assert made(torch.zeros(5, 0, 4)).shape == (5, 0, 4)


def test_keeping_confidence_without_a_masked_class_is_that_of_the_others():
    state, logits = state_of(image(14)), image(15)
    state.pixels[0] = 0
    found = Prototypes(state, PrototypeOptions(min_pixels=1))(logits)
    np.testing.assert_allclose(
        found.softmax(dim=0).amax(dim=0).numpy(), logits[1:].softmax(dim=0).amax(dim=0).numpy(), atol=1e-6
    )
