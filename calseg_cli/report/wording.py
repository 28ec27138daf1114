"""Owns how scores are called, explained and written as text, so that terminal, page and figures say the same."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Any, Literal

NOT_AVAILABLE = "n/a"
BALANCED = 0.005
Better = Literal["higher", "lower", "near 0", ""]
Subject = Literal["accuracy", "calibration", "likelihood"]


@dataclass(frozen=True)
class Score:
    """A score's name, which way is better, and one sentence on what it says."""

    label: str
    better: Better
    subject: Subject
    meaning: str
    signed: bool = False


SCORES: dict[str, Score] = {
    "miou": Score("mIoU", "higher", "accuracy", "Intersection over union, averaged over the classes that occur."),
    "macc": Score("mAcc", "higher", "accuracy", "Share of each true class that is found, averaged over the classes."),
    "iou_spread": Score(
        "spread of IoU", "", "accuracy", "How unequal the classes' IoU are: their standard deviation over the classes."
    ),
    "accuracy_spread": Score(
        "spread of accuracy", "", "accuracy", "The same of the shares of each true class that are found."
    ),
    "bias_spread": Score(
        "spread of bias", "lower", "accuracy", "The same of the classes' biases; 0 where none is preferred."
    ),
    "iou_over": Score("mIoU, over-predicted", "higher", "accuracy", "mIoU of the classes with a bias above 0."),
    "iou_under": Score("mIoU, under-predicted", "higher", "accuracy", "mIoU of the classes with a bias below 0."),
    "accuracy_over": Score("mAcc, over-predicted", "higher", "accuracy", "mAcc of the classes with a bias above 0."),
    "accuracy_under": Score("mAcc, under-predicted", "higher", "accuracy", "mAcc of the classes with a bias below 0."),
    "accuracy": Score("accuracy", "higher", "accuracy", "Share of the labelled pixels that are right."),
    "mean_confidence": Score("mean confidence", "", "accuracy", "How sure the network is on average."),
    "ece": Score(
        "ECE", "lower", "calibration", "Distance between confidence and accuracy, averaged over all pixels by bins."
    ),
    "ece_10": Score("ECE, 10 bins", "lower", "calibration", "The same with 10 bins, as some papers have it."),
    "ece_15": Score("ECE, 15 bins", "lower", "calibration", "The same with 15 bins, the most common number."),
    "ece_image": Score(
        "ECE/image", "lower", "calibration", "Mean over images of each image's own ECE; mostly above the dataset's."
    ),
    "ece_image_median": Score("ECE/image, median", "lower", "calibration", "Half of the images have a lower ECE."),
    "ece_image_w": Score(
        "ECE/image, by pixels", "lower", "calibration", "Mean of the images' ECE by their pixels; never below the ECE."
    ),
    "aece": Score("equal-mass ECE", "lower", "calibration", "The ECE with bins of equally many pixels."),
    "aece_bound": Score(
        "equal-mass ECE, bound", "", "calibration", "How far at most the equal-mass ECE is from that of sorted pixels."
    ),
    "ace_bins": Score("ACE of bins", "lower", "calibration", "Mean gap of the bins, each bin counting alike."),
    "ece_by_pred": Score(
        "ECE by predicted class", "lower", "calibration", "The ECE where classes too sure and too unsure do not cancel."
    ),
    "ece_by_true": Score(
        "ECE by true class", "", "calibration", "The same by true class: where the error sits, not whether to trust."
    ),
    "cece": Score(
        "class-wise ECE", "lower", "calibration", "The ECE of every class's probability, mean of the classes."
    ),
    "cece_present": Score(
        "class-wise ECE, present", "lower", "calibration", "The same over the classes that have labelled pixels."
    ),
    "preset_ece": Score("ECE by preset", "lower", "calibration", "The ECE by the convention of a paper or library."),
    "signed_gap": Score(
        "signed gap", "near 0", "calibration", "Mean confidence minus accuracy; + is over-confident.", signed=True
    ),
    "over_confidence": Score("over-confidence", "lower", "calibration", "The part of the ECE from bins too sure."),
    "under_confidence": Score("under-confidence", "lower", "calibration", "The part of the ECE from bins too unsure."),
    "mce": Score("MCE", "lower", "calibration", "The gap of the worst bin among those with 100 pixels or more."),
    "rmsce": Score("RMSCE", "lower", "calibration", "Root mean square of the gaps: large gaps count more."),
    "ks": Score("KS", "lower", "calibration", "Largest cumulative gap between confidence and accuracy; needs no bins."),
    "noise_floor": Score(
        "noise floor", "", "calibration", "The ECE that a perfectly calibrated network would show by chance."
    ),
    "noise_floor_image": Score(
        "noise floor/image",
        "",
        "calibration",
        "The ECE/image that a perfectly calibrated network would show by chance.",
    ),
    "aurc": Score(
        "AURC", "lower", "likelihood", "Mean share of wrong pixels among the surest ones, over all shares of pixels."
    ),
    "augrc": Score("AUGRC", "lower", "likelihood", "How often a wrong pixel stands above another one: 0 to 1/2."),
    "risk_80": Score("risk at 80 %", "lower", "likelihood", "Share of wrong pixels among the surest 80 %."),
    "coverage_5": Score("coverage at 5 %", "higher", "likelihood", "Largest share of surest pixels with 5 % wrong."),
    "nll": Score("NLL", "lower", "likelihood", "Mean negative log-probability of the true class, in nats."),
    "brier": Score("Brier", "lower", "likelihood", "Squared distance of the probabilities from the truth, 0 to 2."),
    "brier_top": Score(
        "Brier, top label", "lower", "likelihood", "Squared distance of confidence from right or wrong."
    ),
}


def score_label(key: str) -> str:
    """The name to show for a score; unknown keys keep their own.

    >>> score_label("miou"), score_label("my_score")
    ('mIoU', 'my score')
    """
    return SCORES[key].label if key in SCORES else key.replace("_", " ")


def number(value: Any, *, decimals: int = 4, signed: bool = False) -> str:
    """A score as text; "n/a" for NaN and None.

    >>> number(0.03051), number(float("nan")), number(0.0682, signed=True), number(-0.00001)
    ('0.0305', 'n/a', '+0.0682', '0.0000')
    """
    if is_missing(value):
        return NOT_AVAILABLE
    if math.isinf(value):
        return "inf" if value > 0 else "-inf"
    shown = round(float(value), decimals)
    return f"{shown or 0.0:{'+' if signed and shown else ''}.{decimals}f}"


def is_missing(value: Any) -> bool:
    """True for None and NaN."""
    return value is None or (isinstance(value, Real) and bool(value != value))


def score_text(key: str, value: Any) -> str:
    """A dataset-wide score as text, with its sign where the sign means something."""
    return number(value, signed=key in SCORES and SCORES[key].signed)


def interval_text(key: str, low: float, high: float) -> str:
    """The interval of a score as text.

    >>> interval_text("miou", 0.43379, 0.4723), interval_text("signed_gap", -0.01, 0.02)
    ('0.4338 to 0.4723', '-0.0100 to +0.0200')
    """
    return NOT_AVAILABLE if is_missing(low) else f"{score_text(key, low)} to {score_text(key, high)}"


def percent(value: Any, decimals: int = 1) -> str:
    """A fraction as a percentage.

    >>> percent(0.8437), percent(float("nan")), percent(0.00004)
    ('84.4 %', 'n/a', '<0.1 %')
    """
    if is_missing(value):
        return NOT_AVAILABLE
    smallest = 10.0**-decimals
    return f"<{smallest:.{decimals}f} %" if 0 < value * 100 < smallest / 2 else f"{value * 100:.{decimals}f} %"


def quantity(count: int) -> str:
    """A number of pixels in three figures.

    >>> quantity(999), quantity(12_345), quantity(1_048_576_000)
    ('999', '12.3 k', '1.05 G')
    """
    for unit, size in (("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if count >= size:
            return f"{count / size:.3g} {unit}" if count < 999.5 * size else f"{count / size:.0f} {unit}"
    return str(count)


def plain(value: Any) -> str:
    """A value of a protocol or provenance as one line of text.

    >>> plain({"torch": "2.6", "numpy": "2.1"}), plain([1.0, 0.5]), plain(None), plain(True)
    ('torch 2.6, numpy 2.1', '1.0, 0.5', 'n/a', 'yes')
    """
    if is_missing(value):
        return NOT_AVAILABLE
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {plain(item)}" for name, item in value.items()) or "none"
    if isinstance(value, Iterable) and not isinstance(value, str | bytes):
        return ", ".join(plain(item) for item in value) or "none"
    return str(value)


def tendency(gap: float) -> str:
    """What a signed gap says of a network, in a word.

    >>> tendency(0.07), tendency(-0.02), tendency(0.0004)
    ('over-confident', 'under-confident', 'balanced')
    """
    if abs(gap) < BALANCED:
        return "balanced"
    return "over-confident" if gap > 0 else "under-confident"
