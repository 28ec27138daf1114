"""Owns the scores: every number a report prints, read off one tally."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calseg_cli.errors import ConfigError
from calseg_cli.metrics import calibration
from calseg_cli.metrics.adaptive import adaptive_ece
from calseg_cli.metrics.bias import class_bias, group_scores, spread_scores
from calseg_cli.metrics.calibration import Convention, ece_of, sum_bins
from calseg_cli.metrics.classwise import cece
from calseg_cli.metrics.confusion import (
    Confusion,
    class_accuracy,
    class_precision,
    iou,
    mean_accuracy,
    mean_iou,
    pixel_accuracy,
)
from calseg_cli.metrics.fine_histogram import CalibrationCounts, check_bins
from calseg_cli.metrics.image_rows import COARSE_BINS, ImageRows
from calseg_cli.metrics.noise_floor import image_noise_floor
from calseg_cli.metrics.presets import preset, preset_ece
from calseg_cli.metrics.region_scores import RegionScores, region_scores
from calseg_cli.metrics.selective import augrc, aurc, coverage_at_risk, risk_at_coverage
from calseg_cli.metrics.tally import Tally

MCE_MIN_COUNT = 100
"""Bins with fewer pixels do not decide the MCE of a report."""

COVERAGE, RISK = 0.8, 0.05
"""Where a report reads the risk-coverage curve."""


@dataclass(frozen=True)
class ClassScores:
    """One class: `ece`, `confidence`, `precision` of the pixels predicted as it, `ece_true` of those that are it.

    NaN (n/a) where there is no such pixel. Within a true class accuracy is recall, so `ece_true` tells where the error
    sits; only `ece` is a statement about trust in a prediction. `evaluated` says whether the means include the class.
    `bias`: how often the class is predicted, every true class counting alike, minus its fair share.
    """

    name: str
    evaluated: bool
    pixels: int
    predicted_pixels: int
    iou: float
    accuracy: float
    precision: float
    confidence: float
    ece: float
    ece_true: float
    bias: float


@dataclass(frozen=True)
class ImageScores:
    """One image: NaN (n/a) where it has no valid pixel. Its ECE is high by chance when its pixels are few."""

    id: str
    pixels: int
    miou: float
    accuracy: float
    ece: float
    confidence: float
    nll: float
    brier: float


@dataclass(frozen=True)
class Scores:
    """All scores of one tally, as shares of 1 (no percent); NaN is n/a.

    Means over classes (`miou`, `macc`, `iou_over` and its like) and spreads are over the evaluated ones that have
    ground truth; everything else is over all valid pixels. A spread is a population standard deviation over the
    classes; `_over` and `_under` are means over the classes that are predicted more and less often than is fair.
    `ece_image` averages the images' own ECE, `ece_image_w` does so by their pixels, `ece_image_median` is
    their median; images without a valid pixel are left out of all three. `aece` has bins of equally many pixels and is
    off by `aece_bound` at most. `ece_by_pred` and `ece_by_true` sum over the histograms of classes. `risk_80` is the
    share of wrong pixels among the surest 80 %, `coverage_5` the largest share of pixels with 5 % wrong. `nll` is in
    nats; `brier` is the sum over classes, in [0,2]; `brier_top` looks at the predicted class alone, in [0,1]. `mce`
    looks at bins with `MCE_MIN_COUNT` pixels or more. `cece`, `cece_present` and `preset_ece` are None where the tally
    did not count for them.
    """

    convention: str
    miou: float
    macc: float
    iou_spread: float
    accuracy_spread: float
    bias_spread: float
    iou_over: float
    iou_under: float
    accuracy_over: float
    accuracy_under: float
    accuracy: float
    mean_confidence: float
    signed_gap: float
    ece: float
    ece_10: float
    ece_15: float
    ece_image: float
    ece_image_median: float
    ece_image_w: float
    aece: float
    aece_bound: float
    ace_bins: float
    ece_by_pred: float
    ece_by_true: float
    mce: float
    rmsce: float
    over_confidence: float
    under_confidence: float
    ks: float
    noise_floor: float
    noise_floor_image: float
    aurc: float
    augrc: float
    risk_80: float
    coverage_5: float
    nll: float
    brier: float
    brier_top: float
    num_images: int
    num_valid: int
    num_ignored: int
    num_invalid: int
    classes: tuple[ClassScores, ...]
    images: tuple[ImageScores, ...]
    cece: float | None = None
    cece_present: float | None = None
    preset_ece: float | None = None
    preset_convention: str = ""
    region_convention: str = ""
    regions: tuple[RegionScores, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The scores as plain numbers, lists and dictionaries, without what was not counted; NaN stays NaN."""
        tables = {name: [asdict(row) for row in getattr(self, name)] for name in ("classes", "images", "regions")}
        return {**{name: value for name, value in vars(self).items() if value is not None}, **tables}


def read_scores(
    tally: Tally, *, bins: int = 15, classes: Sequence[int] | None = None, class_names: Sequence[str]
) -> Scores:
    """All scores of a tally; `classes` are the indices that the means over classes look at, all by default.

    Raises ConfigError where `bins` does not divide the 300 bins of an image, or where names or indices do not fit.
    """
    check_bins(bins, COARSE_BINS)
    _check_classes(tally.num_classes, classes, class_names)
    counts, confusion, images = tally.by_predicted, tally.confusion, tally.images
    per_image = _image_scores(images, bins, classes)
    image_eces = np.array([row.ece for row in per_image if row.pixels])
    adaptive = adaptive_ece(counts, bins)
    return Scores(
        convention=Convention(bins, tally.edges).describe(),
        miou=mean_iou(confusion, classes),
        macc=mean_accuracy(confusion, classes),
        accuracy=pixel_accuracy(confusion),
        mean_confidence=calibration.mean_confidence(counts),
        signed_gap=calibration.signed_gap(counts),
        ece=calibration.ece(counts, bins),
        ece_10=calibration.ece(counts, 10),
        ece_15=calibration.ece(counts, 15),
        ece_image=float(image_eces.mean()) if image_eces.size else math.nan,
        ece_image_median=float(np.median(image_eces)) if image_eces.size else math.nan,
        ece_image_w=_mean(math.fsum(row.ece * row.pixels for row in per_image if row.pixels), tally.num_valid),
        aece=adaptive.value,
        aece_bound=adaptive.bound,
        ace_bins=calibration.ace_bins(counts, bins),
        ece_by_pred=calibration.ece_over_groups(counts, bins),
        ece_by_true=calibration.ece_over_groups(tally.by_true, bins),
        mce=calibration.mce(counts, bins, MCE_MIN_COUNT),
        rmsce=calibration.rmsce(counts, bins),
        over_confidence=calibration.over_confidence(counts, bins),
        under_confidence=calibration.under_confidence(counts, bins),
        ks=calibration.ks(counts),
        noise_floor=calibration.noise_floor(counts, bins),
        noise_floor_image=image_noise_floor(images.coarse, bins),
        aurc=aurc(counts).value,
        augrc=augrc(counts).value,
        risk_80=risk_at_coverage(counts, COVERAGE),
        coverage_5=coverage_at_risk(counts, RISK),
        nll=_mean(math.fsum(images.nll), tally.num_valid),
        brier=_mean(math.fsum(images.brier), tally.num_valid),
        brier_top=_mean(math.fsum(images.brier_top), tally.num_valid),
        num_images=len(images.ids),
        num_valid=tally.num_valid,
        num_ignored=tally.num_ignored,
        num_invalid=tally.num_invalid,
        classes=_class_scores(tally, bins, classes, class_names),
        images=per_image,
        **_balance(confusion, classes),
        **_extra_scores(tally, bins, tuple(class_names)),
    )


def _balance(confusion: Confusion, classes: Sequence[int] | None) -> dict[str, Any]:
    rows = (iou(confusion)[None], class_accuracy(confusion)[None], class_bias(confusion)[None])
    found = spread_scores(*rows, classes) | group_scores(*rows, classes)
    return {name: float(value[0]) for name, value in found.items()}


def _extra_scores(tally: Tally, bins: int, class_names: tuple[str, ...]) -> dict[str, Any]:
    """What is read off counts made on request; nothing of those that were not."""
    found: dict[str, Any] = {}
    extra = tally.extra
    if extra.classwise is not None:
        found |= {"cece": cece(extra.classwise, bins), "cece_present": cece(extra.classwise, bins, present=True)}
    if extra.preset is not None:
        name = extra.preset.name
        found |= {"preset_ece": preset_ece(extra.preset), "preset_convention": preset(name).describe()}
    if extra.regions is not None:
        told = extra.regions.rule.describe(class_names)
        found |= {"regions": region_scores(extra.regions, bins), "region_convention": told}
    return found


def _class_scores(
    tally: Tally, bins: int, classes: Sequence[int] | None, names: Sequence[str]
) -> tuple[ClassScores, ...]:
    confusion = tally.confusion
    evaluated = range(tally.num_classes) if classes is None else set(classes)
    columns = (
        confusion.sum(axis=1),
        confusion.sum(axis=0),
        iou(confusion),
        class_accuracy(confusion),
        class_precision(confusion),
        _confidence_by_group(tally.by_predicted),
        calibration.ece_by_group(tally.by_predicted, bins),
        calibration.ece_by_group(tally.by_true, bins),
        class_bias(confusion),
    )
    rows = zip(*(column.tolist() for column in columns), strict=True)
    return tuple(
        ClassScores(name, index in evaluated, *row) for index, (name, row) in enumerate(zip(names, rows, strict=True))
    )


def _confidence_by_group(counts: CalibrationCounts) -> NDArray[np.float64]:
    groups = (sum_bins(*group, 1) for group in zip(*counts.arrays(), strict=True))
    return np.array([_mean(float(sums.confidence[0]), sums.num_pixels) for sums in groups])


def _image_scores(images: ImageRows, bins: int, classes: Sequence[int] | None) -> tuple[ImageScores, ...]:
    rows = []
    for index, name in enumerate(images.ids):
        count, correct, fixed = images.coarse[index]
        sums = sum_bins(count, correct, fixed, bins)
        confusion, pixels = images.confusion[index], sums.num_pixels
        rows.append(
            ImageScores(
                id=name,
                pixels=pixels,
                miou=mean_iou(confusion, classes),
                accuracy=pixel_accuracy(confusion),
                ece=ece_of(sums),
                confidence=_mean(float(sums.confidence.sum()), pixels),
                nll=_mean(float(images.nll[index]), pixels),
                brier=_mean(float(images.brier[index]), pixels),
            )
        )
    return tuple(rows)


def _mean(total: float, count: int) -> float:
    return total / count if count else math.nan


def _check_classes(num_classes: int, classes: Sequence[int] | None, names: Sequence[str]) -> None:
    if len(names) != num_classes:
        raise ConfigError(f"{len(names)} class names for {num_classes} classes", "give a name to every class")
    strange = [index for index in classes or () if not 0 <= index < num_classes]
    if strange or (classes is not None and not len(classes)):
        raise ConfigError(
            f"the evaluated classes {strange or '[]'} are not among 0..{num_classes - 1}",
            "name at least one class that the network knows",
        )
