"""Owns a comparison as rows of text for a terminal and as plain values for JSON."""

from collections.abc import Mapping
from typing import Any

from calseg_cli.metrics.intervals import Difference
from calseg_cli.report.tables import Table, ordered_scores
from calseg_cli.report.wording import NOT_AVAILABLE, SCORES, is_missing, number, score_label, score_text
from calseg_cli.stages.compare import Against, Comparison, Result


def tables(found: Comparison, *, classes: bool) -> list[tuple[str, list[str], list[list[str]]]]:
    """Title, headers and rows: for each result the scores against the first one's, and with `classes` each IoU."""
    made = []
    for against in found.against:
        title = f"{_called(against.second)} against {_called(against.first)}"
        made.append((title, *_score_table(found, against)))
        if classes:
            made.append((f"IoU by class: {title}", *_class_table(found, against)))
    return made


def explanation(found: Comparison) -> list[str]:
    """How the intervals came about, and what else a reader has to know."""
    options = found.options
    drawn = f"{found.num_images} images"
    if options.unit == "sequence":
        drawn = f"{found.num_groups} sequences with {drawn}"
    kind = f"{options.level * 100:.4g} % {options.method} intervals"
    return [
        f"{kind} of {options.resamples} draws of {drawn}, seed {options.seed}",
        found.convention,
        *(f"note: {note}" for note in found.notes),
    ]


def _called(result: Result) -> str:
    return f"{result.source.name} (oracle)" if result.source.oracle is not None else result.source.name


def _score_table(found: Comparison, against: Against) -> Table:
    twice = f"ece_{found.options.bins}"  # what the row "ECE" says already
    rows = [
        [
            score_label(key),
            score_text(key, against.first.scores[key].value),
            score_text(key, against.second.scores[key].value),
            *_difference(against.scores[key]),
            _mark(against.scores[key], SCORES[key].better if key in SCORES else ""),
        ]
        for key in ordered_scores(list(against.scores))
        if key != twice
    ]
    return ["score", *_headers(found, against)], rows


def _class_table(found: Comparison, against: Against) -> Table:
    rows = []
    for name in found.evaluated:
        index = found.class_names.index(name)
        one, two = (result.classes[index]["iou"].value for result in (against.first, against.second))
        apart = against.classes[index]["iou"]
        rows.append([name, number(one), number(two), *_difference(apart), _mark(apart, "higher")])
    return ["class", *_headers(found, against)], rows


def _headers(found: Comparison, against: Against) -> list[str]:
    level = f"{found.options.level * 100:.4g} % interval"
    return [_called(against.first), _called(against.second), "difference", level, "share", "beyond 0"]


def _difference(apart: Difference) -> list[str]:
    low, high = (number(end, signed=True) for end in (apart.low, apart.high))
    between = NOT_AVAILABLE if is_missing(apart.low) else f"{low} to {high}"
    return [number(apart.value, signed=True), between, number(apart.share, decimals=3)]


def _mark(apart: Difference, better: str) -> str:
    """What a difference whose interval excludes 0 means: "better" or "worse" where the score has a good side."""
    if not apart.excludes_zero:
        return ""
    up = apart.value > 0 if apart.value else apart.low > 0
    if better not in ("higher", "lower"):
        return "higher" if up else "lower"
    return "better" if up == (better == "higher") else "worse"


def document(found: Comparison) -> dict[str, Any]:
    """The comparison as plain values, NaN where n/a."""
    options = found.options
    return {
        "convention": found.convention,
        "num_images": found.num_images,
        "resampled": options.unit,
        "num_groups": found.num_groups,
        "level": options.level,
        "interval": options.method,
        "resamples": options.resamples,
        "seed": options.seed,
        "evaluated_classes": list(found.evaluated),
        "notes": list(found.notes),
        "results": [_result_document(found, result) for result in found.results],
        "differences": [_against_document(found, against) for against in found.against],
    }


def _result_document(found: Comparison, result: Result) -> dict[str, Any]:
    source = result.source
    return {
        "name": source.name,
        "file": str(source.path),
        "content_digest": source.digest,
        "labels_used_for": source.protocol.get("labels_used_for"),
        "oracle": source.oracle is not None,
        "scores": {key: vars(value) for key, value in result.scores.items()},
        "classes": [
            {"name": name, **{key: vars(value) for key, value in row.items()}}
            for name, row in zip(found.class_names, result.classes, strict=True)
        ],
    }


def _against_document(found: Comparison, against: Against) -> dict[str, Any]:
    return {
        "first": against.first.source.name,
        "second": against.second.source.name,
        "scores": _apart_document(against.scores),
        "classes": [
            {"name": name, **_apart_document(row)} for name, row in zip(found.class_names, against.classes, strict=True)
        ],
    }


def _apart_document(row: Mapping[str, Difference]) -> dict[str, Any]:
    return {key: {**vars(value), "excludes_zero": value.excludes_zero} for key, value in row.items()}
