"""Which images a report shows, and what its curves are read from."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from calseg_cli.metrics.scores import ImageScores, read_scores
from calseg_cli.metrics.selective import aurc, risk_at_coverage
from calseg_cli.metrics.tally import Tally, merge, tally_image
from calseg_cli.stages.report_data import choose_examples, report_data, selection

NAMES = ["road", "pole", "ghost", "sky"]


def measured(number=3, sharpness=2.0):
    """Images of four classes; nothing is ever predicted as the third."""
    made = []
    for seed in range(number):
        rng = torch.Generator().manual_seed(seed)
        labels = torch.randint(0, 4, (30, 20 + seed), generator=rng)
        logits = torch.randn(4, 30, 20 + seed, generator=rng) * sharpness
        logits += 2 * torch.nn.functional.one_hot(labels, 4).permute(2, 0, 1)
        logits[2] = -40
        made.append(tally_image(logits, labels, image_id=str(seed), ignore=255))
    return merge(made) if made else Tally.zeros(4)


def data_of(tally, bins=15, classes=None):
    scores = read_scores(tally, bins=bins, classes=classes, class_names=NAMES)
    dataset = SimpleNamespace(items=[])
    road = SimpleNamespace(class_names=NAMES, palette=[(n, n, n) for n in range(4)], dataset=dataset, stream=list)
    meta = {"protocol": {}, "provenance": {"command": "x"}}
    return scores, report_data(road, tally, scores, meta, bins=bins, title="t", examples=0)


def images(*mious):
    return tuple(ImageScores(f"{n:02}", 10, m, 0.5, 0.1, 0.6, 1.0, 0.5) for n, m in enumerate(mious))


def test_best_median_and_worst_of_many():
    chosen = choose_examples(images(*(n / 100 for n in range(21))), 3)
    assert chosen["best"] == ["20", "19", "18"]
    assert sorted(chosen["median"]) == ["09", "10", "11"]
    assert sorted(chosen["worst"]) == ["00", "01", "02"]


@pytest.mark.parametrize("count", range(12))
def test_no_image_twice_however_few(count):
    chosen = choose_examples(images(*([0.5] * count)), 3)
    names = [name for group in chosen.values() for name in group]
    assert len(names) == len(set(names))
    assert len(names) <= count
    assert bool(names) == bool(count)


def test_images_without_a_score_are_left_out():
    assert choose_examples(images(math.nan, 0.3), 1)["best"] == ["01"]


@pytest.mark.parametrize("bins", [10, 15])
def test_the_classes_curves_are_what_their_scores_are_of(bins):
    scores, data = data_of(measured(), bins)
    assert [row.ece for row in data.classes] == pytest.approx([one.ece for one in data.class_reliability], nan_ok=True)
    assert [row.predicted_pixels for row in data.classes] == [one.pixels for one in data.class_reliability]
    assert data.class_reliability[2].pixels == 0
    added = sum(one.ece * one.pixels for one in data.class_reliability if one.pixels)
    assert added / scores.num_valid == pytest.approx(scores.ece_by_pred)
    np.testing.assert_array_equal(sum(one.count for one in data.class_reliability), data.reliability.count)


def test_only_evaluated_classes_have_a_curve():
    _, data = data_of(measured(), classes=[0, 3])
    _, everything = data_of(measured())
    assert [row.name for row in data.classes] == ["road", "sky"]
    assert [one.pixels for one in data.class_reliability] == [everything.class_reliability[n].pixels for n in (0, 3)]


@pytest.mark.parametrize("sharpness", [0.1, 2.0, 40.0])
def test_the_curve_is_the_risk_at_every_coverage(sharpness):
    counts = measured(sharpness=sharpness).by_predicted
    curve = selection(counts)
    assert len(curve.coverage) == 400
    np.testing.assert_allclose(curve.risk, [risk_at_coverage(counts, share) for share in curve.coverage], rtol=1e-9)
    assert curve.risk.mean() == pytest.approx(aurc(counts).value, abs=0.01)
    assert curve.error_rate() == pytest.approx(1 - counts.correct.sum() / counts.num_pixels)
    assert (np.diff(curve.threshold) <= 0).all()


def test_a_threshold_keeps_the_share_it_stands_by():
    counts = measured(sharpness=0.5).by_predicted
    pixels, curve = counts.count.sum(axis=0), selection(counts)
    for coverage, threshold in zip(curve.coverage, curve.threshold, strict=True):
        first = round(threshold * 4800)
        assert pixels[first:].sum() / pixels.sum() >= coverage - 1e-9
        assert pixels[first + 1 :].sum() / pixels.sum() < coverage


def test_nothing_measured_is_an_empty_curve():
    _, data = data_of(measured(0))
    assert data.selection.risk.size == 0
    assert math.isnan(data.selection.error_rate())
    assert [one.pixels for one in data.class_reliability] == [0] * 4
