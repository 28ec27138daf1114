"""Conventions by name: each against the code it is named after or a plain copy of its rule, on and off the edges."""

import itertools
import math

import numpy as np
import pytest
import torch

from calseg_cli.errors import ConfigError
from calseg_cli.metrics.presets import PRESETS, PresetRows, preset, preset_ece, preset_row, stack_presets

VOID = 255


def row_of(name, confidence, correct, void=None):
    """Two-class logits are no way to set a confidence exactly, so counts are made from the bins themselves."""
    one = preset(name)
    q = torch.as_tensor(confidence, dtype=torch.float32)
    t = torch.as_tensor(correct).bool()
    bins = np.zeros((1, 1, 3, one.slots), np.int64)
    cells = one.cells(q).numpy()
    np.add.at(bins[0, 0, 0], cells, 1)
    np.add.at(bins[0, 0, 1], cells[t.numpy()], 1)
    np.add.at(bins[0, 0, 2], cells, np.rint(q.double().numpy() * 2**31).astype(np.int64))
    return PresetRows(name, bins)


def guo(q, t, bins):
    """The loop of gpleiss/temperature_scaling."""
    edges = torch.linspace(0, 1, bins + 1)
    total = 0.0
    for low, high in itertools.pairwise(edges):
        inside = q.gt(low.item()) & q.le(high.item())
        if inside.any():
            total += abs(float((q[inside].double() - t[inside].double()).sum())) / len(q)
    return total


def lts(q, t, bins=10):
    """The edges of numpy in float64, (lo,hi]."""
    q, t = q.double().numpy(), t.double().numpy()
    edges = np.linspace(0, 1, bins + 1)
    masks = ((q > low) & (q <= high) for low, high in itertools.pairwise(edges))
    return sum(abs((q[mask] - t[mask]).sum()) for mask in masks) / len(q)


@pytest.fixture(scope="module", params=["off the edges", "on the edges"])
def pixels(request, make_pixels):
    if request.param == "off the edges":
        q, t, _ = make_pixels(20_000)
        return q, t
    rng = np.random.default_rng(0)
    grid = np.concatenate([np.linspace(0, 1, bins + 1, dtype=np.float32) for bins in (10, 15)])
    near = np.concatenate([grid, np.nextafter(grid, np.float32(0)), np.nextafter(grid, np.float32(1)), grid])
    q = torch.from_numpy(rng.choice(near.clip(0, 1), 4000))
    return q, torch.from_numpy(rng.random(4000) < 0.5 + 0.4 * np.sin(50 * q.numpy()))


def test_guo15_is_the_published_loop(pixels):
    assert preset_ece(row_of("guo15", *pixels)) == pytest.approx(guo(*pixels, 15), abs=1e-9)


def test_lts_is_numpys_loop(pixels):
    assert preset_ece(row_of("lts", *pixels)) == pytest.approx(lts(*pixels), abs=1e-9)


def test_netcal_is_netcals(pixels, reference):
    q, t = pixels
    expected = reference.netcal_ece(q.double().numpy(), t.numpy().astype(np.int64), 10)
    assert preset_ece(row_of("netcal", q, t)) == pytest.approx(expected, abs=1e-9)


def test_torchmetrics_is_torchmetrics_in_float64_sums(pixels):
    """Its binning in float32 and its phantom bin, its sums in float64."""
    from torchmetrics.functional.classification.calibration_error import _binning_bucketize

    q, t = pixels
    edges = torch.linspace(0, 1, 16)
    accuracy, confidence, share = _binning_bucketize(q, t.float(), edges)
    by_them = float(((accuracy - confidence).abs() * share).sum())
    assert preset_ece(row_of("torchmetrics", q, t)) == pytest.approx(by_them, abs=2e-6)
    cells = torch.bucketize(q, edges, right=True) - 1
    gaps = np.bincount(cells.numpy(), (q.double() - t.double()).numpy())
    assert preset_ece(row_of("torchmetrics", q, t)) == pytest.approx(np.abs(gaps).sum() / len(q), abs=1e-9)


@pytest.mark.parametrize(
    ("confidence", "correct", "expected"),
    [
        ([0.95, 1.0], [1, 0], {"torchmetrics": 0.525, "netcal": 0.475, "guo15": 0.475, "lts": 0.475}),
        ([0.0, 0.05], [1, 1], {"guo15": 0.475, "lts": 0.475, "netcal": 0.975, "torchmetrics": 0.975}),
        ([0.5, 0.45], [1, 0], {"lts": 0.025, "netcal": 0.475}),
        ([0.5, 0.55], [1, 0], {"lts": 0.525, "netcal": 0.025}),
    ],
)
def test_cases_by_hand(confidence, correct, expected):
    for name, value in expected.items():
        assert preset_ece(row_of(name, confidence, correct)) == pytest.approx(value, abs=1e-7), name


@pytest.fixture(scope="module")
def images(make_image):
    made = [make_image(seed, 4, 20 + 3 * seed, 25, void=0.25) for seed in range(4)]
    made[3][1][:] = VOID
    return made


def table(name, images):
    rows = [preset_row(name, z.flatten(1), y.flatten(), VOID) for z, y in images]
    return stack_presets(rows, np.arange(len(rows)))


def softmax(logits):
    return torch.softmax(logits.flatten(1), dim=0)


def test_calsfda_takes_void_for_wrong_and_averages_images(images):
    """Its rule written out, with its smoothed maximum."""
    eces = []
    for logits, labels in images:
        probs = softmax(logits).double()
        smooth = (1e-5 * torch.logsumexp(probs / 1e-5, dim=0)).float().clamp(max=1)
        eces.append(guo(smooth, probs.argmax(0) == labels.flatten(), 10))
    found = preset_ece(table("calsfda", images))
    assert found == pytest.approx(np.mean(eces), abs=1e-5)
    masked = []
    for logits, labels in images[:3]:
        kept, probs = (labels != VOID).flatten(), softmax(logits)
        masked.append(lts(probs.amax(0)[kept], (probs.argmax(0) == labels.flatten())[kept]))
    assert preset_ece(table("lts", images)) == pytest.approx(np.mean(masked), abs=1e-6)
    assert found > preset_ece(table("lts", images)) + 0.05


def test_monai_counts_each_class_of_each_image_against_the_rest(images):
    """Its rule written out: edges to 1 + eps, 0 in the first bin, void a negative of every class."""
    edges = torch.linspace(0, 1 + torch.finfo(torch.float32).eps, 21)
    eces = []
    for logits, labels in images:
        probs = softmax(logits)
        for index in range(4):
            q, t = probs[index], labels.flatten() == index
            cells = torch.bucketize(q, edges[1:])
            gaps = np.bincount(cells.numpy(), (q.double() - t.double()).numpy())
            eces.append(np.abs(gaps).sum() / len(q))
    assert preset_ece(table("monai", images)) == pytest.approx(np.mean(eces), abs=1e-7)


@pytest.mark.parametrize("name", ["guo15", "netcal", "torchmetrics"])
def test_dataset_level_is_one_histogram_of_the_valid_pixels(name, images):
    q = torch.cat([softmax(z).amax(0)[(y != VOID).flatten()] for z, y in images])
    t = torch.cat([(softmax(z).argmax(0) == y.flatten())[(y != VOID).flatten()] for z, y in images])
    assert preset_ece(table(name, images)) == pytest.approx(preset_ece(row_of(name, q, t)), abs=1e-6)


@pytest.mark.parametrize("name", PRESETS)
def test_broken_logits_are_left_out(name, make_image):
    logits, labels = make_image(0, 4, 12, 17, void=0.0)
    without = preset_row(name, logits[:, 2:].flatten(1), labels[2:].flatten(), VOID)
    logits[1, :2] = float("nan")
    found = preset_row(name, logits.flatten(1), labels.flatten(), VOID)
    np.testing.assert_array_equal(found.bins[:, :, 0].sum(axis=2), without.bins[:, :, 0].sum(axis=2))
    assert preset_ece(found) == pytest.approx(preset_ece(without), abs=1e-6)


def test_every_pixel_is_in_one_slot(images):
    for name in PRESETS:
        found = table(name, images)
        valid = np.array([(y != VOID).sum().item() for _, y in images])
        ignored = np.array([(y == VOID).sum().item() for _, y in images])
        assert found.contradictions(valid, ignored) == []
        assert found.contradictions(valid + 1 + ignored, ignored) != []
        found.bins[0, 0, 1, 3] += 10**6
        assert found.contradictions(valid, ignored) != []


def test_nothing_is_not_available_and_nonsense_is_refused():
    for name in PRESETS:
        assert math.isnan(preset_ece(PresetRows.zeros(name, 3)))
        assert "\n" not in preset(name).describe()
        assert preset(name).describe().startswith(f"{name}: ")
    with pytest.raises(ConfigError, match="'ours'"):
        preset("ours")
    with pytest.raises(ConfigError, match="guo15 and lts"):
        stack_presets([PresetRows.zeros("lts", 3), PresetRows.zeros("guo15", 3)], np.arange(0))
    with pytest.raises(ValueError, match="int64"):
        PresetRows("lts", np.zeros((1, 1, 3, 11), np.int64))
