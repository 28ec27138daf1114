"""Owns a report as rows of text for a terminal, as CSV and as JSON."""

import csv
import io
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields
from typing import Any, Literal

import numpy as np

from calseg_cli.errors import ConfigError
from calseg_cli.report.data import (
    LOGIT_LEVELS,
    ClassRow,
    Compared,
    LogitReport,
    LogitRow,
    LogitSpread,
    RegionRow,
    Reliability,
    ReportData,
)
from calseg_cli.report.wording import SCORES, interval_text, is_missing, number, percent, score_label, score_text

ReportKind = Literal["iou", "ece", "full", "bias"]
Table = tuple[list[str], list[list[str]]]
_KINDS = ("iou", "ece", "full", "bias")
_IOU = ("miou", "macc", "accuracy")
_ECE = (
    *("miou", "accuracy", "mean_confidence", "ece", "ece_image", "aece", "preset_ece", "cece"),
    *("signed_gap", "noise_floor", "noise_floor_image", "aurc", "nll", "brier"),
)
_BIAS = (
    *("miou", "macc", "accuracy", "iou_spread", "accuracy_spread", "bias_spread"),
    *("iou_over", "iou_under", "accuracy_over", "accuracy_under"),
)
_COMPARED = ("miou", "accuracy", "ece", "ece_image", "signed_gap", "nll", "brier")
_Cell = Callable[[ClassRow], str]


def score_rows(data: ReportData, report: str = "full") -> Table:
    """Headers and rows of the dataset's scores: those about right and wrong, about trust, about bias, or all.

    Raises ConfigError for a report that is not "iou", "ece", "full" or "bias".
    """
    keys = {"iou": _IOU, "ece": _ECE, "bias": _BIAS, "full": tuple(data.scores)}[_checked(report)]
    rows = [
        [
            score_label(key),
            score_text(key, data.scores[key]),
            *interval_cells(data, key),
            SCORES[key].better if key in SCORES else "",
        ]
        for key in ordered_scores(keys)
        if key in data.scores
    ]
    return ["score", "value", *interval_headers(data), "better"], rows


def interval_headers(data: ReportData) -> list[str]:
    """The heading of the scores' intervals; nothing without them."""
    return [f"{data.intervals.level * 100:.4g} % interval"] if data.intervals is not None else []


def interval_cells(data: ReportData, key: str) -> list[str]:
    """The interval of a score as text, n/a where it has none; nothing without intervals."""
    if data.intervals is None:
        return []
    return [interval_text(key, *data.intervals.scores.get(key, (math.nan, math.nan)))]


def class_rows(data: ReportData, report: str = "full") -> Table:
    """Headers and rows of the classes' scores. Raises ConfigError for an unknown report."""
    total = sum(row.pixels for row in data.classes)
    predicted = sum(row.predicted_pixels for row in data.classes)
    truth: dict[str, _Cell] = {
        "pixels": lambda row: percent(row.pixels / total if total else math.nan),
        "IoU": lambda row: number(row.iou),
        "accuracy": lambda row: number(row.accuracy),
    }
    claims: dict[str, _Cell] = {
        "predicted": lambda row: percent(row.predicted_pixels / predicted if predicted else math.nan),
        "precision": lambda row: number(row.precision),
        "confidence": lambda row: number(row.mean_confidence),
        "gap": lambda row: number(row.gap, signed=True),
        "ECE": lambda row: number(row.ece),
    }
    if _checked(report) == "bias":
        return _bias_rows(data, truth)
    columns = {"iou": truth | {"precision": claims["precision"]}, "ece": claims, "full": truth | claims}[report]
    return ["class", *columns], [[row.name, *(cell(row) for cell in columns.values())] for row in data.classes]


def _bias_rows(data: ReportData, truth: Mapping[str, _Cell]) -> Table:
    """The classes from the most over-predicted to the most under-predicted, with their logits where counted."""
    columns = [*truth.items(), ("bias", lambda row: number(row.bias, signed=True))]
    found = {row.name: logit_cells(row) for row in data.logits.rows} if data.logits is not None else {}
    rows = [
        [row.name, *(cell(row) for _, cell in columns), *found.get(row.name, {}).values()]
        for row in sorted(data.classes, key=lambda row: math.inf if is_missing(row.bias) else -row.bias)
    ]
    return ["class", *(name for name, _ in columns), *next(iter(found.values()), {})], rows


def logit_cells(row: LogitRow) -> dict[str, str]:
    """What the logits of a class say, as text by heading."""
    return {
        "by logits": number(row.bias_by_logits, signed=True),
        "own logit": number(row.positive.mean, decimals=2, signed=True),
        "others' logit": number(row.negative.mean, decimals=2, signed=True),
        "own to anchor": number(row.positive.distance, decimals=2),
        "others' to anchor": number(row.negative.distance, decimals=2),
    }


def logit_note(data: ReportData) -> str:
    """What the columns of the logits mean, in a few lines; empty where they were not counted."""
    if data.logits is None:
        return ""
    own, others = (number(one.mean, decimals=2, signed=True) for one in (data.logits.positive, data.logits.negative))
    return (
        "bias: how often the class is predicted, every true class counting alike, minus its fair share; above 0 is "
        "over-predicted.\nby logits: the same as the distributions of logits alone imply. own logit: mean of the "
        f"class's logit on its own pixels; others' logit: on those of each other class.\nanchors: {own} and {others}, "
        "all classes together; to anchor: how far a class's logits are from them."
    )


def region_rows(data: ReportData, report: str = "full") -> Table:
    """Headers and rows of the regions that were measured apart. Raises ConfigError for an unknown report."""
    total = int(data.reliability.count.sum())
    truth: dict[str, Callable[[RegionRow], str]] = {
        "pixels": lambda row: percent(row.pixels / total if total else math.nan),
        "accuracy": lambda row: number(row.accuracy),
    }
    claims: dict[str, Callable[[RegionRow], str]] = {
        "confidence": lambda row: number(row.confidence),
        "gap": lambda row: number(row.signed_gap, signed=True),
        "ECE": lambda row: number(row.ece),
        "noise floor": lambda row: number(row.noise_floor),
    }
    columns = truth if _checked(report) in ("iou", "bias") else truth | claims
    return ["region", *columns], [[row.name, *(cell(row) for cell in columns.values())] for row in data.regions]


def comparison_rows(results: Sequence[Compared], keys: Sequence[str] = _COMPARED) -> Table:
    """Headers and rows of several results side by side, one a row, with the scores that any of them has."""
    shown = [key for key in keys if any(key in result.scores for result in results)]
    rows = [[result.name, *(score_text(key, result.scores.get(key)) for key in shown)] for result in results]
    return ["result", *(score_label(key) for key in shown)], rows


def ordered_scores(keys: Sequence[str]) -> list[str]:
    """Score keys in the order of `wording.SCORES`, unknown ones last."""
    known = list(SCORES)
    return sorted(keys, key=lambda key: known.index(key) if key in SCORES else len(known))


def _checked(report: str) -> str:
    if report not in _KINDS:
        raise ConfigError(f"there is no report {report!r}", f"choose {', '.join(_KINDS[:-1])} or {_KINDS[-1]}")
    return report


def to_csv(data: ReportData) -> str:
    """All scores as CSV with one number a line: scope, name, score, value. Full precision; empty where n/a."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["scope", "name", "score", "value"])
    writer.writerows([scope, name, key, "" if is_missing(value) else value] for scope, name, key, value in _cells(data))
    return _encodable(text.getvalue())


def _cells(data: ReportData) -> Iterator[tuple[str, str, str, Any]]:
    for key, value in data.scores.items():
        yield "dataset", "", key, _scalar(value)
    for row in data.classes:
        for key, value in _class_document(row).items():
            if key not in ("name", "color"):
                yield "class", row.name, key, value
    for found in data.logits.rows if data.logits is not None else ():
        yield from (("class", found.name, key, value) for key, value in _logit_numbers(found).items())
    for region in data.regions:
        yield from (("region", region.name, key, value) for key, value in _region_document(region).items())
    for image in data.images:
        for key, value in image.items():
            if key != "id":
                yield "image", str(image["id"]), key, _scalar(value)


def to_document(data: ReportData) -> dict[str, Any]:
    """The report as plain values for JSON: floats in full precision, None where n/a; without pictures."""
    return {
        "title": data.title,
        "subtitle": data.subtitle,
        "num_images": len(data.images),
        "convention": data.convention,
        "scores": _plain(data.scores),
        "class_names": list(data.class_names),
        "classes": [_plain(_class_document(row)) for row in data.classes],
        "reliability": _reliability_document(data.reliability),
        "images": _plain(data.images),
        "protocol": _plain(data.protocol),
        "provenance": _plain(data.provenance),
        "command": data.command,
        "confusion": data.confusion.tolist(),
        **({"regions": {row.name: _plain(_region_document(row)) for row in data.regions}} if data.regions else {}),
        **({} if data.intervals is None else {"intervals": _plain(vars(data.intervals))}),
        **({} if data.logits is None else {"logits": _plain(_logit_document(data.logits))}),
    }


def to_json(data: ReportData) -> str:
    """`to_document` as JSON text: floats in full precision, null where n/a."""
    return _encodable(json.dumps(to_document(data), indent=1, ensure_ascii=False, allow_nan=False)) + "\n"


def _encodable(text: str) -> str:
    """A file name that is not UTF-8 reaches us with lone surrogates; their escapes are what JSON has for them too."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _class_document(row: ClassRow) -> dict[str, Any]:
    return {**{item.name: _scalar(getattr(row, item.name)) for item in fields(row)}, "gap": _scalar(row.gap)}


def _region_document(row: RegionRow) -> dict[str, Any]:
    return {item.name: _scalar(getattr(row, item.name)) for item in fields(row) if item.name != "name"}


def _logit_document(logits: LogitReport) -> dict[str, Any]:
    return {
        "bin_width": logits.bin_width,
        "quantile_levels": LOGIT_LEVELS,
        "anchors": {"positive": _spread_document(logits.positive), "negative": _spread_document(logits.negative)},
        "classes": [
            {
                "name": row.name,
                "bias_by_logits": row.bias_by_logits,
                "positive": {**_spread_document(row.positive), "distance": row.positive.distance},
                "negative": {**_spread_document(row.negative), "distance": row.negative.distance},
            }
            for row in logits.rows
        ],
    }


def _spread_document(spread: LogitSpread) -> dict[str, Any]:
    return {"mean": spread.mean, "quantiles": spread.quantiles}


def _logit_numbers(row: LogitRow) -> dict[str, float]:
    return {
        "bias_by_logits": row.bias_by_logits,
        "positive_logit": row.positive.mean,
        "negative_logit": row.negative.mean,
        "positive_distance": row.positive.distance,
        "negative_distance": row.negative.distance,
    }


def _reliability_document(reliability: Reliability) -> dict[str, Any]:
    return {item.name: _plain(getattr(reliability, item.name)) for item in fields(reliability)}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    value = _scalar(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _scalar(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value
