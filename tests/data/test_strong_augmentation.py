"""Strong augmentation: against Pillow and scipy, and what an image's change depends on."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import ndimage

from calseg_cli.data.loader import image_tensor
from calseg_cli.data.strong_augmentation import StrongAugmentation, blurred, jittered_colors
from calseg_cli.data.transforms import jittered
from calseg_cli.errors import ConfigError

SEED = st.integers(0, 2**32 - 1)
DRAW = st.floats(-1, 1)
OFF = StrongAugmentation(color=0, blur=0)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def pictures(number=4, hw=(9, 12), seed=0):
    return torch.rand(number, 3, *hw, generator=seeded(seed))


@given(seed=SEED, strength=st.floats(0, 1.5), draws=st.tuples(DRAW, DRAW, DRAW, DRAW))
@settings(max_examples=100, deadline=None)
def test_colours_are_those_of_pillow(seed, strength, draws):
    """Up to one step of 256: Pillow's grey mean and its result are rounded. Saturated colours are cut off alike."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(*sorted((rng.integers(0, 128), rng.integers(129, 257))), (7, 8, 3), dtype=np.uint8)
    expected = image_tensor(np.asarray(jittered(Image.fromarray(pixels), strength, np.array(draws))))
    changed = jittered_colors(image_tensor(pixels), strength, draws)
    torch.testing.assert_close(changed, expected, rtol=0, atol=1.01 / 255)


def test_draws_of_zero_keep_the_colours():
    (image,) = pictures(1)
    torch.testing.assert_close(jittered_colors(image, 0.9, [0, 0, 0, 0]), image, rtol=0, atol=1e-6)


@given(seed=SEED, sigma=st.floats(0.05, 4), hw=st.tuples(st.integers(1, 14), st.integers(1, 14)))
@settings(max_examples=100, deadline=None)
def test_blur_is_that_of_scipy(seed, sigma, hw):
    """Also where the kernel is wider than the image."""
    (image,) = pictures(1, hw, seed)
    expected = ndimage.gaussian_filter(image.double().numpy(), (0, sigma, sigma), mode="mirror", truncate=4.0)
    torch.testing.assert_close(blurred(image, sigma).double(), torch.from_numpy(expected), rtol=0, atol=2e-6)


def test_a_blur_of_nothing():
    (image,) = pictures(1)
    assert torch.equal(blurred(image, 0.0), image)
    torch.testing.assert_close(blurred(torch.ones(3, 5, 5), 1.0), torch.ones(3, 5, 5))


@given(seed=SEED, strength=st.floats(0, 3))
@settings(max_examples=40, deadline=None)
def test_stays_in_range_and_repeats(seed, strength):
    images = pictures(seed=seed)
    before, state = images.clone(), torch.get_rng_state()
    augmentation = StrongAugmentation(color_strength=strength)
    changed = augmentation(images, seeded(seed))
    assert changed.shape == images.shape
    assert changed.dtype == torch.float32
    assert 0 <= changed.min() <= changed.max() <= 1
    assert torch.equal(changed, augmentation(images, seeded(seed)))
    assert torch.equal(images, before)
    assert torch.equal(torch.get_rng_state(), state)


def test_an_image_does_not_depend_on_the_others_of_its_batch():
    images = pictures()
    augmentation = StrongAugmentation()
    others = pictures(seed=1)
    others[2] = images[2]
    for seed in range(20):
        whole = augmentation(images, seeded(seed))
        assert torch.equal(whole[2], augmentation(others, seeded(seed))[2])
        assert torch.equal(whole[:3], augmentation(images[:3], seeded(seed)))


def test_the_number_of_draws_is_the_same_whatever_is_on():
    states = []
    for color, blur in [(0, 0), (1, 0), (0, 1), (1, 1), (0.8, 0.5)]:
        generator = seeded(3)
        StrongAugmentation(color=color, blur=blur)(pictures(), generator)
        states.append(generator.get_state())
    assert all(torch.equal(states[0], state) for state in states[1:])


def test_one_after_the_other():
    """Both on is the blur of what the colours alone give: switching one off leaves the other's draws."""
    images = pictures()
    colored = StrongAugmentation(color=1, blur=0)(images, seeded(5))
    both = StrongAugmentation(color=1, blur=1)(images, seeded(5))
    assert torch.equal(StrongAugmentation(color=0, blur=1)(colored, seeded(5)), both)
    assert not torch.equal(colored, both)


def test_off_changes_no_bit():
    images = pictures()
    changed = OFF(images, seeded(0))
    assert torch.equal(changed, images)
    changed.zero_()  # not a view of what came in
    assert images.any()


def test_as_often_as_asked_and_all_over_the_range():
    """2000 images of one bright pixel: other colours change the sum of all pixels, a blur takes some of it away."""
    image = torch.zeros(1, 3, 9, 9)
    image[..., 4, 4] = 0.5
    changed = StrongAugmentation(color_strength=0.4)(image.expand(2000, -1, -1, -1), seeded(0))
    bright = (changed - changed[:, :, :1, :1]).sum(1)  # contrast moves the black ones too
    spread = bright[:, 4, 6] > 1e-3 * bright[:, 4, 4]  # two pixels away: exp(-2 / sigma^2), sigma above some 0.54
    total = changed.sum(dim=(1, 2, 3))
    colored = (total - 1.5).abs() > 1e-4
    assert abs(float(colored.double().mean()) - 0.8) < 0.04
    assert abs(float(spread.double().mean()) - 0.5 * (1.15 - 0.54) / (1.15 - 0.15)) < 0.04
    both = (spread & colored).double().mean()  # the two have nothing to do with each other
    assert abs(float(both - spread.double().mean() * colored.double().mean())) < 0.04


def test_paper_values():
    """DACS jitters above 0.2 and blurs above 0.5 of a uniform draw."""
    assert StrongAugmentation() == StrongAugmentation(0.8, 0.2, 0.5, (0.15, 1.15))


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"color": 1.2}, "color 1.2"),
        ({"blur": -0.1}, "blur -0.1"),
        ({"blur": float("nan")}, "blur nan"),
        ({"color_strength": -1.0}, "color_strength"),
        ({"blur_sigma": (2.0, 1.0)}, "blur_sigma"),
        ({"blur_sigma": (-1.0, 1.0)}, "blur_sigma"),
        ({"blur_sigma": (0.0, float("inf"))}, "blur_sigma"),
    ],
)
def test_mistakes(keys, words):
    with pytest.raises(ConfigError, match=words) as caught:
        StrongAugmentation(**keys)
    assert caught.value.hint
