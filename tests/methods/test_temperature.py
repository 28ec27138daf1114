"""Temperature scaling: sklearn and scipy find the same T, sums of parts add up, and what has no T gets none."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar

from calseg_cli.errors import ArtifactError, DataError
from calseg_cli.methods.scenes import Scene
from calseg_cli.methods.temperature import MOST_PASSES, Sums, Temperature, find_temperature, fit_temperature, sums_at
from calseg_cli.metrics.grid import bilinear_grid


def drawn(seed, *, classes=5, pixels=4000, scale=3.0, temperature=1.8):
    """Logits (C,n) float32 and labels that follow softmax(z / temperature)."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(classes, pixels, generator=generator) * scale
    p = (logits.double() / temperature).softmax(dim=0)
    return logits, torch.multinomial(p.T, 1, generator=generator)[:, 0]


def fit(logits, labels, **options):
    return find_temperature(lambda beta: sums_at(beta, logits, labels), **options)


def loss(beta, logits, labels):
    """The mean negative log-likelihood by numpy in float64, pixel by pixel."""
    z = logits.double().numpy().T * beta
    z -= z.max(axis=1, keepdims=True)
    return float(np.mean(np.log(np.exp(z).sum(axis=1)) - z[np.arange(len(z)), labels.numpy()]))


# The optimum


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(("scale", "temperature"), [(0.3, 0.4), (3.0, 1.8), (12.0, 5.0), (1.0, 8.0), (20.0, 1.0)])
def test_the_temperature_is_sklearns(seed, scale, temperature):
    calibration = pytest.importorskip("sklearn.calibration")
    if not hasattr(calibration, "_TemperatureScaling"):
        pytest.skip("this scikit-learn has no temperature scaling")
    logits, labels = drawn(seed, classes=(2, 5, 19)[seed % 3], scale=scale, temperature=temperature)
    expected = 1 / calibration._TemperatureScaling().fit(logits.double().numpy().T, labels.numpy()).beta_
    found = fit(logits, labels)
    assert found.status == "converged"
    assert found.passes <= MOST_PASSES
    assert found.temperature == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("seed", range(4))
def test_the_temperature_is_scipys(seed):
    logits, labels = drawn(seed, classes=3, pixels=500)
    best = minimize_scalar(lambda u: loss(np.exp(u), logits, labels), bounds=(-4, 4), options={"xatol": 1e-10})
    found = fit(logits, labels)
    assert found.temperature == pytest.approx(np.exp(-best.x), rel=1e-6)
    assert found.nll == pytest.approx(best.fun, rel=1e-12)


def test_newton_from_1_would_leave_but_the_bracket_holds_it():
    """Very sure and often wrong: the plain Newton step from beta = 1 is far below 0."""
    logits, labels = drawn(3, scale=30.0, temperature=40.0)
    first = sums_at(1.0, logits, labels)
    assert 1 - first.slope / first.curvature < 0
    assert fit(logits, labels).temperature == pytest.approx(40, rel=0.1)


def test_derivatives_are_those_of_the_loss():
    logits, labels = drawn(0, pixels=200)
    at, step = 0.7, 1e-5
    low, mid, high = (sums_at(beta, logits, labels) for beta in (at - step, at, at + step))
    assert mid.loss / 200 == pytest.approx(loss(at, logits, labels), rel=1e-12)
    assert mid.slope == pytest.approx((high.loss - low.loss) / (2 * step), rel=1e-6)
    assert mid.curvature == pytest.approx((high.slope - low.slope) / (2 * step), rel=1e-6)


def test_a_constant_on_all_classes_changes_nothing():
    logits, labels = drawn(1, pixels=300)
    shifted = fit(logits.double() + 1000, labels)
    assert shifted.temperature == pytest.approx(fit(logits, labels).temperature, rel=1e-9)


# Sums of parts


def test_sums_of_parts_add_up_in_any_order():
    logits, labels = drawn(2)
    whole = sums_at(0.8, logits, labels)
    cuts = torch.randperm(4000, generator=torch.Generator().manual_seed(0)).split([1, 1999, 700, 1300])
    parts = [sums_at(0.8, logits[:, cut], labels[cut]) for cut in cuts]
    for order in (parts, parts[::-1]):
        total = sum(order, Sums())
        assert total.pixels == whole.pixels
        for name in ("loss", "slope", "curvature"):
            assert getattr(total, name) == pytest.approx(getattr(whole, name), rel=1e-12)


def scene(name, logits, labels, **options):
    grid = bilinear_grid(logits.shape[1:], labels.shape)
    return Scene(name, logits, labels, lambda placed: (placed, grid), **options)


def test_images_are_enlarged_and_void_is_left_out():
    generator = torch.Generator().manual_seed(5)
    native = [torch.randn(4, 6, 5, generator=generator) * 2 for _ in range(3)]
    guess = [z.argmax(0).repeat_interleave(4, 0).repeat_interleave(4, 1) for z in native]
    noise = [torch.randint(0, 9, (24, 20), generator=generator) for _ in range(3)]
    labels = [y.where(n > 3, n).where(n < 8, 255).to(torch.uint8) for y, n in zip(guess, noise, strict=True)]
    found = fit_temperature(lambda: [scene(str(n), z, y) for n, (z, y) in enumerate(zip(native, labels, strict=True))])
    full = [
        torch.nn.functional.interpolate(z[None].double(), size=(24, 20), mode="bilinear")[0].flatten(1) for z in native
    ]
    flat, truth = torch.cat(full, dim=1), torch.cat([y.flatten() for y in labels]).long()
    valid = truth != 255
    expected = fit(flat[:, valid], truth[valid])
    assert found.pixels == int(valid.sum()) < truth.numel()
    assert found.status == "converged"
    assert found.temperature == pytest.approx(expected.temperature, rel=1e-5)


# What has no temperature


def right(margin, pixels=50):
    labels = torch.arange(pixels) % 3
    return torch.nn.functional.one_hot(labels, 3).T.float() * margin, labels


@pytest.mark.parametrize("margin", [0.5, 5.0, 25.0, 1000.0, 1e6])
def test_all_right_is_separable(margin):
    found = fit(*right(margin))
    assert found.temperature is None
    assert found.status == "separable"
    assert found.passes <= 5
    with pytest.raises(DataError, match="separable") as caught:
        found.found()
    assert "\n" not in caught.value.message


@pytest.mark.parametrize("margin", [1.0, 1000.0])
def test_all_wrong_is_at_the_bound(margin):
    logits, labels = right(margin)
    found = fit(logits, (labels + 1) % 3)
    assert (found.temperature, found.status) == (None, "at the bound")
    with pytest.raises(DataError, match="at the bound"):
        found.found()


def test_a_single_wrong_pixel_among_saturated_ones_is_found_or_refused_never_wild():
    logits, labels = right(1000.0)
    labels[0] = (labels[0] + 1) % 3
    found = fit(logits, labels)
    assert found.temperature is None or 0.01 <= found.temperature <= 100


def test_equal_logits_are_flat():
    found = fit(torch.zeros(3, 10), torch.zeros(10, dtype=torch.long))
    assert (found.temperature, found.status) == (None, "flat")


def test_labels_of_one_class_only_are_no_hindrance():
    logits, _ = drawn(0, classes=3, pixels=300)
    logits[0] += 2
    found = fit(logits, torch.zeros(300, dtype=torch.long))
    assert found.status == "converged"
    assert found.temperature > 0


def test_too_few_passes_are_said():
    assert fit(*drawn(0), most=1).status == "not converged"


def test_no_pixel_at_all():
    void = torch.full((4, 4), 255, dtype=torch.uint8)
    found = fit_temperature(lambda: [scene("a", torch.randn(3, 4, 4), void)])
    assert found.status == "no pixels"
    with pytest.raises(DataError, match="label"):
        found.found()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_logits_that_are_no_numbers_are_refused_with_the_images_name(value):
    logits = torch.randn(3, 4, 4)
    logits[1, 2, 3] = value
    with pytest.raises(DataError, match="street/7"):
        fit_temperature(lambda: [scene("street/7", logits, torch.zeros(4, 4, dtype=torch.uint8))])


def test_a_label_that_is_no_class_is_refused_with_the_images_name():
    with pytest.raises(DataError, match="street/7"):
        fit_temperature(lambda: [scene("street/7", torch.randn(3, 4, 4), torch.full((4, 4), 3, dtype=torch.uint8))])


# The correction


@pytest.mark.parametrize("temperature", [0.3, 1.7, 20.0])
def test_no_class_changes(temperature):
    logits = torch.randn(7, 40, 50, generator=torch.Generator().manual_seed(0)).half().float()
    after = Temperature(temperature)(logits)
    assert after.dtype == torch.float32
    assert torch.equal(after.argmax(0), logits.argmax(0))
    assert torch.allclose(after * temperature, logits, rtol=1e-6)


def test_it_comes_back_from_its_arrays():
    made = Temperature(1.234567890123, {"labels": "source", "domain": "source"})
    again = Temperature.from_artifact(made.to_arrays(), made.facts())
    assert again.temperature == made.temperature
    assert again.facts() == made.facts()
    assert not again.oracle
    assert Temperature(2.0, {"labels": "target: oracle"}).oracle


@pytest.mark.parametrize("value", [[np.nan], [np.inf], [0.0], [-1.0], [], [1.0, 2.0], [[1.0]]])
def test_what_is_no_temperature_is_refused(value):
    with pytest.raises(ArtifactError) as caught:
        Temperature.from_artifact({"temperature": np.array(value, np.float64)}, {})
    assert "\n" not in caught.value.message


def test_no_array_at_all_is_refused():
    with pytest.raises(ArtifactError, match="temperature"):
        Temperature.from_artifact({}, {})
