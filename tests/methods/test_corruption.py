"""Changes of images: in range, nothing at strength 0, what their names say, and the same whatever comes before."""

import numpy as np
import pytest
import torch

from calseg_cli.methods.corruption import KINDS, corrupt, corrupt_batch


@pytest.fixture
def image():
    return torch.rand(3, 120, 30, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("kind", KINDS)
def test_in_range_repeatable_and_nothing_at_zero(image, kind):
    before = image.clone()
    torch.testing.assert_close(corrupt(image, kind, 0.0, np.random.default_rng(1)), image)
    first, second = (corrupt(image, kind, 0.8, np.random.default_rng(1)) for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(image, before)
    assert first.shape == image.shape
    assert 0 <= float(first.min()) < float(first.max()) <= 1
    small, large = ((corrupt(image, kind, s, np.random.default_rng(1)) - image).abs().mean() for s in (0.3, 1.0))
    assert 0 < float(small) < float(large)


def test_they_do_what_they_are_called(image):
    def made(kind):
        return corrupt(image, kind, 0.7, np.random.default_rng(1))

    assert float(made("darker").mean()) < 0.6 * float(image.mean())
    assert float(made("brighter").mean()) > float(image.mean())
    assert float(made("gamma").mean()) < float(image.mean())
    assert float(made("contrast").std()) < 0.6 * float(image.std())
    torch.testing.assert_close(made("contrast").mean(), image.mean())
    assert float((made("noise") - image).std()) == pytest.approx(0.06 * 0.7, rel=0.15)  # less where it is cut off


def test_a_blur_keeps_an_even_image_and_spreads_a_point():
    even = torch.full((3, 200, 90), 0.4)
    torch.testing.assert_close(corrupt(even, "blur", 1.0, np.random.default_rng(0)), even)
    point = torch.zeros(3, 200, 90)
    point[:, 100, 45] = 1
    spread = corrupt(point, "blur", 1.0, np.random.default_rng(0))
    torch.testing.assert_close(spread.sum((1, 2)), torch.ones(3))
    rows = torch.arange(200.0) - 100
    assert float((spread[0].sum(1) * rows**2).sum()) == pytest.approx(2.0**2, rel=0.05)  # one hundredth of 200 rows
    for size in ((1, 1), (1, 40), (2, 2)):
        assert corrupt(torch.rand(3, *size), "blur", 1.0, np.random.default_rng(0)).shape == (3, *size)


def test_a_batch_follows_from_seed_step_and_place(image):
    images = image.expand(16, 3, 120, 30)

    def made(**changes):
        return corrupt_batch(images, **{"probability": 0.75, "strength": 1.0, "seed": 0, "step": 5, **changes})

    first, names = made()
    assert torch.equal(first, made()[0])
    assert not torch.equal(first, made(step=6)[0])
    assert not torch.equal(first, made(seed=1)[0])
    assert torch.equal(corrupt_batch(images[:4], probability=0.75, strength=1.0, seed=0, step=5)[0], first[:4])
    assert {part for name in names for part in name.split("+") if part} <= set(KINDS)
    for changed, name in zip(first, names, strict=True):
        assert torch.equal(changed, image) == (name == "")
    assert torch.equal(made(probability=0.0)[0], images)
    assert all(made(probability=1.0)[1])


def test_the_share_that_is_changed(image):
    names = [
        name
        for step in range(60)
        for name in corrupt_batch(
            image[:, :2, :2].expand(8, 3, 2, 2), probability=0.3, strength=1.0, seed=0, step=step
        )[1]
    ]
    assert sum(map(bool, names)) / len(names) == pytest.approx(0.3, abs=0.07)
    assert {part for name in names for part in name.split("+") if part} == set(KINDS)
