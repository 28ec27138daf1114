"""The sums of soft labels: against loops in float64, in any order and parts, and which pixels count."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from calseg_cli.errors import ConfigError, DataError
from calseg_cli.methods import prototype_state
from calseg_cli.methods.prototype_state import PixelRule, PrototypeState, soft_labels
from calseg_cli.methods.prototypes import Prototypes
from tests.methods.prototype_examples import image, softmax64, state_of


def brute_force(images, *, power=1.0, temperature=1.0, least=0.0, probs=softmax64):
    """(S, W, n) by a loop over pixels in float64: the definition."""
    classes = images[0].shape[0]
    sums, weights, pixels = np.zeros((classes, classes)), np.zeros(classes), np.zeros(classes, int)
    for one in images:
        z = one.flatten(1).numpy().T
        for logit, p in zip(z, probs(one, temperature), strict=True):
            if not np.isfinite(logit).all() or p.max() < least:
                continue
            k = int(logit.argmax())
            sums[k] += p.max() ** power * p
            weights[k] += p.max() ** power
            pixels[k] += 1
    return sums, weights, pixels


def ours(one: torch.Tensor, temperature: float) -> np.ndarray:
    return soft_labels(one.flatten(1), temperature).probs.double().numpy().T


@pytest.mark.parametrize(("power", "temperature", "least"), [(1, 1, 0), (0, 1, 0), (2, 3, 0), (1.5, 0.7, 0.6)])
def test_sums_are_those_of_a_loop(power, temperature, least):
    images = [image(seed) for seed in range(3)]
    state = state_of(*images, rule=PixelRule(power, temperature, least))
    for probs, close in ((ours, 1e-12), (softmax64, 1e-6)):
        sums, weights, pixels = brute_force(images, power=power, temperature=temperature, least=least, probs=probs)
        np.testing.assert_array_equal(state.pixels, pixels)
        known = weights > 0
        np.testing.assert_allclose(
            state.sums[known] / state.weights[known, None], sums[known] / weights[known, None], rtol=0, atol=close
        )
        np.testing.assert_allclose(state.weights, weights, rtol=close * 10)


@settings(max_examples=30, deadline=None)
@given(st.randoms(use_true_random=False), st.integers(2, 6), st.integers(1, 5))
def test_any_partition_in_any_order_gives_the_same_bits(random, images, parts):
    logits = [image(seed, size=(5, 4)) for seed in range(images)]
    whole = state_of(*logits)
    order = random.sample(range(images), images)
    shards = [PrototypeState(5) for _ in range(parts)]
    for number in order:
        columns = list(range(20))
        random.shuffle(columns)
        shards[random.randrange(parts)].add(logits[number].flatten(1)[:, columns, None], name=f"image {number}")
    random.shuffle(shards)
    total = PrototypeState(5)
    for shard in shards:
        total = total + PrototypeState.from_arrays(shard.to_arrays()) if shard.pixels.any() else total + shard
    assert total == whole
    for name, array in whole.to_arrays().items():
        assert array.tobytes() == total.to_arrays()[name].tobytes() or name == "images"


def test_many_pixels_carry_beyond_what_int64_holds():
    certain = torch.zeros(2, 256, 1024)
    certain[0] = 60.0  # every pixel weighs 1: 2**18 of them are 2**62 steps
    state = PrototypeState(2)
    for _ in range(5):
        state.add(certain)
    assert state.weights.tolist() == [5 * 2.0**18, 0.0]
    assert state.sums[0, 0] == 5 * 2.0**18


def test_threads_and_block_sizes_change_no_bit(monkeypatch):
    whole = state_of(image(1, size=(30, 30)))
    monkeypatch.setattr(prototype_state, "_BLOCK", 7)
    assert state_of(image(1, size=(30, 30))) == whole


def test_of_equal_largest_logits_the_lowest_index_is_predicted():
    state = PrototypeState(3)
    state.add(torch.tensor([1.0, 2.0, 2.0]).reshape(3, 1, 1))
    assert state.pixels.tolist() == [0, 1, 0]


def test_the_larger_logit_is_predicted_where_float32_has_equal_probabilities():
    found = soft_labels(torch.tensor([[0.0], [1e-9]]))
    assert found.probs.tolist() == [[0.5], [0.5]]
    assert found.classes.tolist() == [1]


def test_a_pixel_that_is_just_sure_enough_counts():
    state = PrototypeState(2, PixelRule(min_confidence=0.5))
    state.add(torch.zeros(2, 1, 1))
    assert state.pixels.tolist() == [1, 0]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_pixels_that_are_no_numbers_are_dropped_and_counted(bad):
    logits = image(2)
    clean = logits[:, :, 1:]
    logits[3, :, 0] = bad
    state = state_of(logits)
    assert state.dropped == 9
    np.testing.assert_array_equal(state.sums, state_of(clean).sums)
    assert "9 pixels" in Prototypes(state).notes()[-1]


def test_masked_pixels_do_not_count():
    logits, mask = image(3), torch.zeros(9, 11, dtype=torch.bool)
    mask[:5] = True
    state = PrototypeState(5)
    state.add(logits, mask)
    np.testing.assert_array_equal(state.sums, state_of(logits[:, :5]).sums)


def test_thresholds_are_those_of_the_predicted_class():
    logits = image(4)
    probs = ours(logits, 1.0)
    rule = PixelRule(thresholds=(0.5, 0.9, float("nan"), 0.0, 1.0))
    state = state_of(logits, rule=rule)
    predicted, confidence = probs.argmax(axis=1), probs.max(axis=1)
    kept = confidence >= np.array(rule.thresholds)[predicted]
    assert state.pixels.tolist() == [int((kept & (predicted == k)).sum()) for k in range(5)]
    assert state.pixels[2] == 0
    assert state.unsure == int((~kept).sum())
    again = PrototypeState.from_arrays(state.to_arrays(), rule)
    assert again == state


def test_different_rules_and_the_same_image_twice_are_not_added():
    one, other = state_of(image(0)), state_of(image(0), rule=PixelRule(weight_power=2))
    with pytest.raises(ConfigError, match="different rules"):
        one + other
    with pytest.raises(ConfigError, match="different rules"):
        one + PrototypeState(4)
    with pytest.raises(DataError, match="'image 0' was counted twice"):
        one + state_of(image(0))
    with pytest.raises(DataError, match="counted twice"):
        one.add(image(1), name="image 0")
    with pytest.raises(ValueError, match="classes"):
        one.add(image(1, classes=4))
