"""Every number of a report, read off one tally."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from sklearn.metrics import brier_score_loss, log_loss

from calseg_cli.errors import ConfigError
from calseg_cli.metrics import calibration as cal
from calseg_cli.metrics.adaptive import adaptive_ece
from calseg_cli.metrics.calibration import Convention
from calseg_cli.metrics.extra_counts import Extra
from calseg_cli.metrics.noise_floor import image_noise_floor
from calseg_cli.metrics.presets import PRESETS, preset, preset_ece
from calseg_cli.metrics.regions import Regions
from calseg_cli.metrics.scores import MCE_MIN_COUNT, Scores, read_scores
from calseg_cli.metrics.selective import augrc, aurc, coverage_at_risk, risk_at_coverage
from calseg_cli.metrics.tally import Tally, merge, tally_image

NAMES = ["road", "pole", "sky", "car", "train"]


@pytest.fixture(scope="module")
def images(make_image):
    made = [make_image(seed, len(NAMES), 30 + seed, 40) for seed in range(4)]
    made[2][1][:] = 255
    for _, labels in made:
        labels[labels == 4] = 255  # no ground truth for trains, which are predicted all the same
    return made


@pytest.fixture(scope="module")
def tally(images):
    return merge(tally_image(z, y, image_id=f"{index}.png", ignore=255) for index, (z, y) in enumerate(images))


@pytest.fixture(scope="module")
def flat(images, reference):
    """(probabilities (N,C) float64, labels (N,)) of all valid pixels."""
    probs = np.concatenate([reference.softmax(z.flatten(1).numpy()).T[(y != 255).flatten().numpy()] for z, y in images])
    return probs, np.concatenate([y[y != 255].numpy() for _, y in images])


def test_proper_scores_are_sklearns(tally, flat):
    probs, labels = flat
    scores = read_scores(tally, class_names=NAMES)
    assert scores.nll == pytest.approx(log_loss(labels, probs, labels=range(5)), rel=1e-7)
    assert scores.brier == pytest.approx(
        brier_score_loss(labels, probs, labels=range(5), scale_by_half=False), rel=1e-7
    )
    right = probs.argmax(1) == labels
    assert scores.brier_top == pytest.approx(np.mean((probs.max(1) - right) ** 2), rel=1e-7)
    assert scores.accuracy == right.mean()
    assert scores.mean_confidence == pytest.approx(probs.max(1).mean(), rel=1e-7)
    assert scores.signed_gap == pytest.approx(scores.mean_confidence - scores.accuracy, abs=1e-15)
    assert scores.brier_top >= scores.rmsce**2


@pytest.mark.parametrize("bins", [10, 15, 30])
def test_calibration_scores_are_those_of_all_pixels(tally, flat, reference, bins):
    probs, labels = flat
    right, q = probs.argmax(1) == labels, probs.max(1)
    scores = read_scores(tally, bins=bins, class_names=NAMES)
    assert scores.ece == pytest.approx(reference.ece(q, right, bins), abs=1e-7)
    assert scores.ece_10 == pytest.approx(reference.ece(q, right, 10), abs=1e-7)
    assert scores.ece_15 == pytest.approx(reference.ece(q, right, 15), abs=1e-7)
    assert scores.rmsce == pytest.approx(reference.rmsce(q, right, bins), abs=1e-7)
    assert scores.mce == pytest.approx(reference.mce(q, right, bins, MCE_MIN_COUNT), abs=1e-7)
    assert scores.over_confidence + scores.under_confidence == pytest.approx(scores.ece, abs=1e-15)
    assert scores.ks == cal.ks(tally.by_predicted)
    assert scores.noise_floor == cal.noise_floor(tally.by_predicted, bins)
    assert scores.convention == Convention(bins, "right").describe()


@pytest.mark.parametrize("bins", [10, 15])
def test_scores_of_order_and_of_groups(tally, flat, bins):
    probs, labels = flat
    counts, scores = tally.by_predicted, read_scores(tally, bins=bins, class_names=NAMES)
    assert (scores.aece, scores.aece_bound) == dataclasses.astuple(adaptive_ece(counts, bins))
    assert scores.ece_by_pred == cal.ece_over_groups(counts, bins) >= scores.ece
    assert scores.ece_by_true == cal.ece_over_groups(tally.by_true, bins) >= scores.ece
    assert scores.ece_by_true != scores.ece_by_pred
    assert scores.ace_bins == cal.ace_bins(counts, bins)
    assert scores.noise_floor_image == image_noise_floor(tally.images.coarse, bins)
    assert (scores.aurc, scores.augrc) == (aurc(counts).value, augrc(counts).value)
    assert (scores.risk_80, scores.coverage_5) == (risk_at_coverage(counts, 0.8), coverage_at_risk(counts, 0.05))
    wrong = (probs.argmax(1) != labels)[np.argsort(-probs.max(1))]
    assert scores.aurc == pytest.approx(np.mean(np.cumsum(wrong) / np.arange(1, len(wrong) + 1)), rel=0.02)
    assert scores.risk_80 == pytest.approx(wrong[: round(0.8 * len(wrong))].mean(), rel=0.02)


EXTRA = Extra(classwise=True, regions=Regions(("fg-true", "boundary"), background=0, band=1), preset="calsfda")


def counted(images, extra):
    return merge(
        tally_image(z, y, image_id=f"{index}.png", ignore=255, extra=extra) for index, (z, y) in enumerate(images)
    )


def test_scores_on_request(images, tally, flat, reference):
    probs, labels = flat
    found = counted(images, EXTRA)
    scores = read_scores(found, bins=10, class_names=NAMES)
    one_by_one = [reference.ece(probs[:, k], labels == k, 10) for k in range(5)]
    assert scores.cece == pytest.approx(np.mean(one_by_one), abs=1e-6)
    assert scores.cece_present == pytest.approx(np.mean(one_by_one[:4]), abs=1e-6)  # no train
    assert scores.preset_ece == preset_ece(found.extra.preset)
    assert scores.preset_convention == preset("calsfda").describe()
    assert [row.name for row in scores.regions] == ["fg-true", "boundary", "interior"]
    assert scores.region_convention.startswith("foreground: not road; boundary: within 1 px")
    q, right = probs.max(1), probs.argmax(1) == labels
    front = labels != 0
    row = scores.regions[0]
    assert row.pixels == front.sum()
    assert row.accuracy == right[front].mean()
    assert row.confidence == pytest.approx(q[front].mean(), rel=1e-6)
    assert row.signed_gap == pytest.approx(row.confidence - row.accuracy, abs=1e-15)
    assert row.ece == pytest.approx(reference.ece(q[front], right[front], 10), abs=1e-6)
    assert 0 < row.noise_floor < row.ece
    assert scores.regions[1].pixels + scores.regions[2].pixels == scores.num_valid
    plain = read_scores(tally, bins=10, class_names=NAMES)
    same = {field.name for field in dataclasses.fields(Scores) if field.default is dataclasses.MISSING}
    assert all(repr(getattr(plain, name)) == repr(getattr(scores, name)) for name in same)
    assert "cece" not in plain.to_dict()
    assert scores.to_dict()["regions"][2]["name"] == "interior"


@pytest.mark.parametrize("name", PRESETS)
def test_nothing_measured_on_request_is_not_available(name):
    extra = dataclasses.replace(EXTRA, preset=name)
    scores = read_scores(Tally.zeros(3, extra=extra), class_names=["a", "b", "c"])
    assert math.isnan(scores.cece)
    assert math.isnan(scores.preset_ece)
    assert all(math.isnan(row.ece) and math.isnan(row.accuracy) and row.pixels == 0 for row in scores.regions)


def test_off_the_edges_presets_of_one_level_agree(images):
    """They differ in edges and level; where no pixel is on an edge, an image's ECE is one number."""
    for index in range(2):
        row = images[index : index + 1]
        eces = [
            read_scores(counted(row, Extra(preset=name)), class_names=NAMES).preset_ece for name in ("netcal", "lts")
        ]
        assert eces[0] == pytest.approx(eces[1], abs=1e-15)
        assert eces[0] == pytest.approx(read_scores(counted(row, None), bins=10, class_names=NAMES).ece, abs=1e-15)


def test_the_rows_of_the_images(tally, images, reference):
    scores = read_scores(tally, class_names=NAMES)
    assert [row.id for row in scores.images] == ["0.png", "1.png", "2.png", "3.png"]
    for row, (logits, labels) in zip(scores.images, images, strict=True):
        alone = read_scores(tally_image(logits, labels, image_id="a", ignore=255), class_names=NAMES)
        for name in ("miou", "accuracy", "ece", "nll", "brier"):
            assert getattr(row, name) == pytest.approx(getattr(alone, name), abs=1e-14, nan_ok=True)
        assert row.confidence == pytest.approx(alone.mean_confidence, abs=1e-14, nan_ok=True)
        assert row.pixels == alone.num_valid


def test_the_mean_over_images_leaves_out_those_without_a_label(tally):
    scores = read_scores(tally, class_names=NAMES)
    eces = [row.ece for row in scores.images if row.pixels]
    assert len(eces) == 3
    assert scores.ece_image == pytest.approx(np.mean(eces), abs=1e-15)
    assert scores.ece_image_median == np.median(eces)
    weights = [row.pixels for row in scores.images if row.pixels]
    assert scores.ece <= np.average(eces, weights=weights) + 1e-12
    assert scores.ece_image_w == pytest.approx(np.average(eces, weights=weights), abs=1e-15)
    assert math.isnan(scores.images[2].ece)
    assert math.isnan(scores.images[2].miou)


def test_the_rows_of_the_classes(tally, flat, reference):
    probs, labels = flat
    predictions, q = probs.argmax(1), probs.max(1)
    scores = read_scores(tally, class_names=NAMES)
    assert [row.name for row in scores.classes] == NAMES
    assert sum(row.pixels for row in scores.classes) == sum(row.predicted_pixels for row in scores.classes) == len(q)
    for index, row in enumerate(scores.classes[:4]):
        chosen, actual = predictions == index, labels == index
        assert row.ece == pytest.approx(reference.ece(q[chosen], actual[chosen], 15), abs=1e-6)
        assert row.ece_true == pytest.approx(reference.ece(q[actual], chosen[actual], 15), abs=1e-6)
        assert row.confidence == pytest.approx(q[chosen].mean(), rel=1e-6)
        assert row.precision == actual[chosen].mean()
        assert row.accuracy == chosen[actual].mean()
        assert row.iou == (chosen & actual).sum() / (chosen | actual).sum()


def test_an_absent_class_is_not_available_and_no_zero(tally):
    train = read_scores(tally, class_names=NAMES).classes[4]
    assert train.pixels == 0
    assert train.predicted_pixels > 0
    assert math.isnan(train.iou)
    assert math.isnan(train.accuracy)
    assert math.isnan(train.ece_true)
    assert train.precision == 0.0
    assert train.ece > 0


def test_a_subset_moves_the_means_over_classes_and_nothing_else(tally):
    whole = read_scores(tally, class_names=NAMES)
    part = read_scores(tally, class_names=NAMES, classes=[0, 2, 4])
    assert part.miou == pytest.approx((whole.classes[0].iou + whole.classes[2].iou) / 2)
    assert part.macc == pytest.approx((whole.classes[0].accuracy + whole.classes[2].accuracy) / 2)
    assert [row.evaluated for row in part.classes] == [True, False, True, False, True]
    changed = {
        f.name for f in dataclasses.fields(Scores) if repr(getattr(whole, f.name)) != repr(getattr(part, f.name))
    }
    balance = {"iou_spread", "accuracy_spread", "bias_spread"}
    balance |= {f"{name}_{group}" for name in ("iou", "accuracy") for group in ("over", "under")}
    assert changed <= {"miou", "macc", "classes", "images"} | balance
    assert {"miou", "macc", "classes", "images", "iou_spread", "accuracy_spread", "bias_spread"} <= changed


def test_nothing_measured_is_not_available():
    scores = read_scores(Tally.zeros(2), class_names=["a", "b"])
    assert scores.num_images == scores.num_valid == 0
    assert all(math.isnan(value) for value in vars(scores).values() if isinstance(value, float))
    assert scores.images == ()


def test_two_classes_and_a_perfect_network():
    labels = torch.tensor([[0, 1], [1, 0]])
    logits = torch.stack([labels == 0, labels == 1]).float() * 200
    scores = read_scores(tally_image(logits, labels, image_id="a", ignore=255), class_names=["a", "b"])
    assert (scores.miou, scores.macc, scores.accuracy, scores.mean_confidence) == (1, 1, 1, 1)
    assert (scores.ece, scores.nll, scores.brier, scores.brier_top, scores.noise_floor) == (0, 0, 0, 0, 0)
    assert math.isnan(scores.mce)  # four pixels are too few to decide it


def test_to_dict_holds_plain_numbers_only(tally):
    def plain(value):
        if isinstance(value, dict):
            return all(plain(item) for item in value.values())
        if isinstance(value, list):
            return all(plain(item) for item in value)
        return type(value) in (str, int, float, bool)

    table = read_scores(tally, class_names=NAMES, classes=(0, 1)).to_dict()
    assert plain(table)
    assert table["classes"][1]["name"] == "pole"
    assert table["images"][0]["id"] == "0.png"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bins": 16}, "16 bins"),
        ({"classes": [5]}, r"\[5\]"),
        ({"classes": [-1, 0]}, r"\[-1\]"),
        ({"classes": []}, "evaluated classes"),
        ({"class_names": NAMES[:4]}, "4 class names for 5"),
    ],
)
def test_options_that_do_not_fit_are_one_line(tally, options, message):
    with pytest.raises(ConfigError, match=message) as caught:
        read_scores(tally, **{"class_names": NAMES, **options})
    assert "\n" not in caught.value.message
    assert caught.value.hint
