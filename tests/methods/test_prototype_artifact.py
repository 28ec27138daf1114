"""Prototypes in an artifact: the same ones come back, what cannot be any is refused; and prototypes made online."""

import numpy as np
import pytest
import torch

from calseg_cli.errors import ArtifactError, ConfigError
from calseg_cli.methods.online_prototypes import DecayingSums, OnlinePrototypes
from calseg_cli.methods.prototype_state import PrototypeState, soft_labels
from calseg_cli.methods.prototypes import PrototypeOptions, Prototypes
from tests.methods.prototype_examples import image, state_of


def margins(logits, rows):
    """The nearest row of each pixel's soft label by a loop, and how much farther the second is."""
    probs = soft_labels(logits.flatten(1)).probs.double().numpy().T
    apart = np.array([[((p - c) ** 2).sum() for c in rows] for p in probs])
    ordered = np.sort(apart, axis=1)
    return apart.argmin(axis=1), ordered[:, 1] - ordered[:, 0]


# The artifact


def test_an_artifact_gives_the_same_correction_back():
    options = PrototypeOptions(distance="kl", shrink=0.2, prior=2.0, confidence="distance")
    made = Prototypes(state_of(image(27)), options, names=list("abcde"), fitted_on={"images": 1})
    again = Prototypes.from_artifact(made.to_arrays(), made.facts())
    assert again.state == made.state
    assert again.options == made.options
    assert torch.equal(again(image(28)), made(image(28)))
    assert again.describe() == made.describe()
    assert "1 images" in made.describe()
    assert "distance kl" in made.describe()
    assert not made.oracle


def test_sums_without_steps_are_read_too():
    state = state_of(image(29))
    few = {name: state.to_arrays()[name] for name in ("sums", "weights", "pixels")}
    np.testing.assert_array_equal(Prototypes.from_artifact(few, {}).rows, Prototypes(state).rows)


def broken(**changes):
    arrays = Prototypes(state_of(image(30))).to_arrays()
    return {name: array for name, array in {**arrays, **changes}.items() if array is not None}


NOT_A_NUMBER = np.full((5, 5), np.nan)


@pytest.mark.parametrize(
    ("arrays", "facts", "said"),
    [
        (broken(sums=NOT_A_NUMBER), {}, "NaN"),
        (broken(weights=np.full(5, np.inf)), {}, "NaN or infinity"),
        (broken(sums=np.zeros((4, 4))), {}, "do not fit"),
        (broken(sums=np.zeros((0, 0)), weights=np.zeros(0), pixels=np.zeros(0, np.int64)), {}, "do not fit"),
        (broken(sums=np.zeros((5, 5)), weights=np.zeros(5), pixels=np.zeros(5, np.int64)), {}, "counts no pixel"),
        (broken(sums=-np.ones((5, 5))), {}, "out of range"),
        (broken(weights=np.full(5, 3.0)), {}, "does not add up"),
        (broken(pixels=np.full(5, 0.5)), {}, "whole numbers"),
        (broken(steps_low=np.zeros((5, 6), np.int64)), {}, "not those of its steps"),
        (broken(steps_low=np.zeros((2, 2), np.int64)), {}, "steps do not fit"),
        (broken(thresholds=np.zeros(3)), {}, "thresholds"),
        (broken(source_rows=NOT_A_NUMBER[:2]), {"options": {"unseen": "source"}}, "soft labels"),
        (broken(sums=None), {}, "sums"),
        (broken(), {"options": {"distance": "far"}}, "far"),
        (broken(), {"options": {"shrink": 2}}, "shrink"),
        (broken(), {"options": {"temperature": "hot"}}, "temperature"),
        (broken(), {"options": {"shrink": None}}, "shrink"),
        (broken(), {"options": {"future": 1}}, "future"),
        (broken(), {"options": [1]}, "cannot be read"),
        (broken(), {"options": {"unseen": "source"}}, "source"),
        (broken(), {"options": {"min_pixels": 10**7, "unseen": "error"}}, "no prototype"),
    ],
)
def test_what_cannot_be_prototypes_is_refused_in_one_line(arrays, facts, said):
    with pytest.raises(ArtifactError, match=said) as caught:
        Prototypes.from_artifact(arrays, facts)
    assert "\n" not in caught.value.message


# Online


def online(mode, forget=None, **options):
    return OnlinePrototypes(5, PrototypeOptions(prior=20.0, **options), mode, forget)


def test_causal_corrects_by_earlier_images_and_inclusive_by_the_image_too():
    images = [image(seed) for seed in range(40, 44)]
    causal, inclusive = online("causal"), online("inclusive")
    for number, logits in enumerate(images):
        before, upto = (PrototypeState(5) for _ in range(2))
        for place, earlier in enumerate(images[: number + 1]):
            upto.add(earlier)
            if place < number:
                before.add(earlier)
        options = PrototypeOptions(prior=20.0)
        assert torch.equal(causal.correct(logits), Prototypes(before, options)(logits))
        assert torch.equal(inclusive.correct(logits), Prototypes(upto, options)(logits))


def test_the_first_image_is_argmax_when_causal():
    logits = image(45)
    assert torch.equal(online("causal").correct(logits), logits)


def test_forgetting_is_a_decaying_sum():
    images = [image(seed) for seed in range(46, 50)]
    running = online("inclusive", forget=0.5)
    sums, weights = np.zeros((5, 5)), np.zeros(5)
    for logits in images:
        corrected = running.correct(logits)
        own = state_of(logits)
        sums, weights = sums * 0.5 + own.sums, weights * 0.5 + own.weights
        rows = (sums + 20 * np.eye(5)) / (weights + 20)[:, None]
        wanted, margin = margins(logits, rows)
        assert (corrected.flatten(1).argmax(dim=0).numpy() == wanted)[margin > 1e-5].all()


def test_what_forgets_cannot_be_added():
    with pytest.raises(ConfigError, match="forget"):
        DecayingSums(5, 0.9) + DecayingSums(5, 0.9)


@pytest.mark.parametrize(
    "options", [{"prior": 0.0}, {"top_frac": 0.5}, {"iterations": 2}, {"per_image": 10.0}], ids=str
)
def test_online_refuses_what_it_cannot_do(options):
    with pytest.raises(ConfigError):
        OnlinePrototypes(5, PrototypeOptions(**{"prior": 1.0, **options}), "causal", None)
