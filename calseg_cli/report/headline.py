"""Owns the top of the page: title, headline numbers, and one sentence that says what they mean."""

import math
from collections.abc import Mapping

from calseg_cli.report.data import ReportData
from calseg_cli.report.markup import text
from calseg_cli.report.wording import (
    BALANCED,
    SCORES,
    is_missing,
    number,
    percent,
    quantity,
    score_label,
    score_text,
    tendency,
)

_CARDS = ("miou", "accuracy", "ece", "signed_gap", "nll")


def headline(data: ReportData) -> str:
    """Title, headline numbers, one sentence that says what they mean, and the convention."""
    cards = "".join(_card(data.scores, key) for key in _CARDS if key in data.scores)
    return (
        f'<h1>{text(data.title)}</h1><p class="subtitle">{text(data.subtitle)}</p><div class="cards">{cards}</div>'
        f'<p class="verdict">{_verdict(data)}</p><p class="convention">{text(data.convention)}</p>'
    )


def _card(scores: Mapping[str, float], key: str) -> str:
    notes = {
        "miou": f"mAcc {number(scores.get('macc'))}",
        "accuracy": f"mean confidence {number(scores.get('mean_confidence'))}",
        "ece": f"noise floor {number(scores.get('noise_floor'))}",
        "signed_gap": "mean confidence − accuracy",
        "nll": f"Brier {number(scores.get('brier'))}",
    }
    return (
        f'<div class="card {SCORES[key].subject}"><div class="name">{text(score_label(key))}</div>'
        f'<div class="number">{score_text(key, scores[key])}</div><div class="note">{notes[key]}</div></div>'
    )


def _verdict(data: ReportData) -> str:
    scores = data.scores
    accuracy, gap = scores.get("accuracy", math.nan), scores.get("signed_gap", math.nan)
    if is_missing(accuracy) or is_missing(gap):
        return "No labelled pixels were found, so there is nothing to measure: every score is n/a."
    pixels = quantity(int(data.reliability.count.sum()))
    tone = "" if abs(gap) < BALANCED else ("over" if gap > 0 else "under")
    size = "" if not tone else f" by {abs(gap) * 100:.1f} points"
    return (
        f"On {pixels} labelled pixels of {len(data.images)} images the network is right {percent(accuracy)} of the "
        f"time and {percent(accuracy + gap)} sure on average: "
        f'<b class="{tone}">{tendency(gap)}{size}</b>.{_against_floor(scores)}'
    )


def _against_floor(scores: Mapping[str, float]) -> str:
    ece, floor = scores.get("ece", math.nan), scores.get("noise_floor", math.nan)
    if is_missing(ece) or is_missing(floor) or floor <= 0:
        return ""
    if ece < 2 * floor:
        return f" Its ECE of {number(ece)} is about what chance alone would show ({number(floor)})."
    times = f"{ece / floor:.0f} times" if ece / floor < 1000 else "more than 1000 times"
    return f" Its ECE of {number(ece)} is {times} what chance alone would show."
