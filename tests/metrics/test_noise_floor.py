"""What chance alone shows, against networks that are right as often as they say."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from calseg_cli.errors import ConfigError
from calseg_cli.metrics import calibration as cal
from calseg_cli.metrics.fine_histogram import ONE, CalibrationCounts, calibration_counts
from calseg_cli.metrics.image_rows import COARSE_BINS, coarsen
from calseg_cli.metrics.noise_floor import expected_floor, floor_draws, image_noise_floor, noise_floor


def truthful(count, seed, low=0.3):
    """Counts of pixels that are right as often as they say."""
    rng = np.random.default_rng(seed)
    q = torch.from_numpy(rng.uniform(low, 1, count).astype(np.float32))
    t = torch.from_numpy(rng.random(count)) < q
    return calibration_counts(q, t, torch.zeros(count, dtype=torch.long), 1)


def rows(tables):
    return np.stack([np.stack([coarsen(array) for array in counts.arrays()]) for counts in tables])


@pytest.mark.parametrize(("count", "bins"), [(1000, 15), (30_000, 15), (30_000, 100)])
def test_the_floor_is_the_mean_ece_of_true_confidences(count, bins):
    eces = [cal.ece(truthful(count, seed), bins) for seed in range(60)]
    standard_error = np.std(eces) / np.sqrt(60)
    counts = truthful(count, 99)
    assert noise_floor(counts, bins, repeats=300) == pytest.approx(np.mean(eces), abs=4 * standard_error)
    assert expected_floor(counts, bins) == pytest.approx(noise_floor(counts, bins, repeats=300), rel=0.03)


def test_the_draws_have_the_spread_of_the_ece():
    eces = [cal.ece(truthful(5000, seed)) for seed in range(200)]
    draws = floor_draws(truthful(5000, 999), repeats=1000)
    assert draws.std() == pytest.approx(np.std(eces), rel=0.2)
    assert np.quantile(draws, 0.95) == pytest.approx(np.quantile(eces, 0.95), rel=0.1)
    assert draws.shape == (1000,)


def test_a_single_value_is_a_binomial():
    """The mean distance of a binomial from its mean, by scipy."""
    counts = calibration_counts(torch.full((40,), 0.75), torch.ones(40).bool(), torch.zeros(40, dtype=torch.long), 1)
    k = np.arange(41)
    exact = (stats.binom.pmf(k, 40, 0.75) * np.abs(k - 30)).sum() / 40
    assert noise_floor(counts, repeats=2000) == pytest.approx(exact, rel=0.05)
    assert expected_floor(counts) == pytest.approx(math.sqrt(2 / math.pi * 40 * 0.75 * 0.25) / 40, rel=1e-12)


def test_the_floor_of_images_is_that_of_small_images_and_not_of_their_sum():
    tables = [truthful(500, seed) for seed in range(80)]
    measured = np.mean([cal.ece(counts) for counts in tables])
    together = sum(tables[1:], tables[0])
    found = image_noise_floor(rows(tables))
    assert found == pytest.approx(measured, rel=0.06)
    assert found > 4 * noise_floor(together)
    assert image_noise_floor(rows(tables), seed=1) != found == image_noise_floor(rows(tables))


def test_images_without_a_pixel_are_left_out_of_the_floor():
    table = rows([truthful(500, 0), CalibrationCounts.zeros(1), truthful(500, 1)])
    assert image_noise_floor(table) == image_noise_floor(table[[0, 2]])
    assert math.isnan(image_noise_floor(table[1:2]))
    assert math.isnan(image_noise_floor(np.zeros((0, 3, COARSE_BINS), np.int64)))


def test_one_image_has_the_floor_of_its_counts():
    counts = truthful(3000, 0)
    assert image_noise_floor(rows([counts]), draws=2000) == pytest.approx(noise_floor(counts, repeats=2000), rel=0.03)


def test_sure_pixels_leave_nothing_to_chance():
    counts = calibration_counts(torch.ones(50), torch.ones(50).bool(), torch.zeros(50, dtype=torch.long), 1)
    assert counts.confidence.sum() == 50 * ONE
    assert noise_floor(counts) == expected_floor(counts) == image_noise_floor(rows([counts])) == 0


def test_nothing_and_nonsense():
    none = CalibrationCounts.zeros(1)
    assert math.isnan(expected_floor(none))
    assert math.isnan(noise_floor(none))
    assert floor_draws(none).size == 0
    for score in (noise_floor, expected_floor, floor_draws):
        with pytest.raises(ConfigError, match="17 bins"):
            score(none, 17)
    with pytest.raises(ConfigError, match="16 bins"):
        image_noise_floor(rows([none]), 16)
