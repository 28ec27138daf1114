"""Owns turning counts and pictures into what a report draws: plain numbers and arrays, no tensors."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from calseg_cli.data.catalog import IGNORE
from calseg_cli.engine.infer import Prediction
from calseg_cli.metrics.calibration import reliability, sum_bins
from calseg_cli.metrics.fine_histogram import CalibrationCounts
from calseg_cli.metrics.scores import ImageScores, Scores
from calseg_cli.metrics.selective import risk_coverage
from calseg_cli.metrics.tally import Tally
from calseg_cli.report.data import (
    ClassRow,
    ConfidenceHistogram,
    ImageExample,
    RegionRow,
    Reliability,
    ReportData,
    Role,
    Selection,
)
from calseg_cli.report.pictures import colorize
from calseg_cli.stages.logit_report import logit_report
from calseg_cli.stages.pictures import decide
from calseg_cli.stages.roads import Road

_HISTOGRAM_BINS = 50
_COVERAGES = 400


def report_data(
    road: Road, tally: Tally, scores: Scores, meta: Mapping[str, Any], *, bins: int, title: str, examples: int
) -> ReportData:
    """Everything a report says of one evaluation, with `examples` pictures of the best, median and worst images each.

    The pictures' predictions come by the same road again: a few images cost less than keeping all of them.
    """
    provenance = meta["provenance"]
    return ReportData(
        title=title,
        subtitle=f"{scores.num_images} images, {scores.num_valid:,} labelled pixels"
        + (f", {scores.num_invalid:,} left out because their logits are not finite" if scores.num_invalid else ""),
        scores={name: value for name, value in vars(scores).items() if isinstance(value, float)},
        convention=scores.convention,
        protocol=meta["protocol"],
        provenance=provenance,
        reliability=_reliability(tally.by_predicted, bins),
        class_names=road.class_names,
        classes=_class_rows(road, scores),
        confusion=tally.confusion,
        examples=list(_examples(road, scores, examples)),
        images=[
            {"id": r.id, "miou": r.miou, "ece": r.ece, "accuracy": r.accuracy, "confidence": r.confidence}
            for r in scores.images
        ],
        confidence_histogram=_histogram(tally),
        regions=[RegionRow(**vars(row)) for row in scores.regions],
        class_reliability=_class_reliability(tally, scores, bins),
        selection=selection(tally.by_predicted),
        logits=logit_report(tally.extra.logits, scores) if tally.extra.logits is not None else None,
        command=str(provenance["command"]),
    )


def _reliability(counts: CalibrationCounts, bins: int) -> Reliability:
    curve = reliability(counts, bins)
    return Reliability(curve.lower, curve.upper, curve.count, curve.confidence, curve.accuracy)


def _class_reliability(tally: Tally, scores: Scores, bins: int) -> list[Reliability]:
    """The bins of each evaluated class, by predicted class."""
    counts = tally.by_predicted
    groups = ([array[index : index + 1] for array in counts.arrays()] for index in range(tally.num_classes))
    return [
        _reliability(CalibrationCounts(*group, edges=counts.edges), bins)
        for row, group in zip(scores.classes, groups, strict=True)
        if row.evaluated
    ]


def selection(counts: CalibrationCounts) -> Selection:
    """The risk-coverage curve at 400 even steps of coverage, so that a page stays small; empty without a pixel.

    Within a fine bin errors are spread evenly, as in `risk_at_coverage`, of which each point is a value.
    """
    curve = risk_coverage(counts)
    if not curve.coverage.size:
        return Selection(*(np.zeros(0) for _ in range(3)))
    coverage = np.arange(1, _COVERAGES + 1) / _COVERAGES
    ends = np.concatenate([[0.0], curve.coverage])
    errors = np.interp(coverage, ends, np.concatenate([[0.0], curve.risk * curve.coverage]))
    bins = np.minimum(np.searchsorted(curve.coverage, coverage - 1e-12), len(curve.threshold) - 1)
    return Selection(coverage, errors / coverage, curve.threshold[bins])


def _class_rows(road: Road, scores: Scores) -> list[ClassRow]:
    return [
        ClassRow(
            name=row.name,
            color=color,
            pixels=row.pixels,
            iou=row.iou,
            accuracy=row.accuracy,
            ece=row.ece,
            predicted_pixels=row.predicted_pixels,
            mean_confidence=row.confidence,
            precision=row.precision,
            bias=row.bias,
        )
        for row, color in zip(scores.classes, road.palette, strict=True)
        if row.evaluated
    ]


def _histogram(tally: Tally) -> ConfidenceHistogram:
    sums = sum_bins(*tally.by_predicted.arrays(), _HISTOGRAM_BINS)
    edges = np.arange(_HISTOGRAM_BINS + 1) / _HISTOGRAM_BINS
    return ConfidenceHistogram(edges[:-1], edges[1:], sums.correct, sums.count - sums.correct)


def _examples(road: Road, scores: Scores, number: int) -> Iterator[ImageExample]:
    chosen = choose_examples(scores.images, number)
    place = {item.id: index for index, item in enumerate(road.dataset.items)}
    rows = {row.id: row for row in scores.images}
    roles = {name: role for role, names in chosen.items() for name in names}
    for prediction in road.stream([place[name] for name in roles]):
        yield _example(road, prediction, rows[prediction.id], roles[prediction.id])


def choose_examples(images: tuple[ImageScores, ...], number: int) -> dict[Role, list[str]]:
    """The ids of the best, the middle and the worst images by mIoU, `number` each; no image twice, best ones first."""
    known = [row for row in images if not math.isnan(row.miou)]
    ordered = [row.id for row in sorted(known, key=lambda row: (-row.miou, row.id))]
    number = min(number, len(ordered) // 3) if len(ordered) >= 3 else min(number, 1, len(ordered))
    best = ordered[:number]
    worst = [name for name in ordered[::-1][:number] if name not in best]
    middle = (len(ordered) - number) // 2
    median = [name for name in ordered[middle : middle + number] if name not in best and name not in worst]
    return {"best": best, "median": median, "worst": worst}


def _example(road: Road, prediction: Prediction, row: ImageScores, role: Role) -> ImageExample:
    assert prediction.label is not None
    classes, confidence = decide(prediction)
    ignored = prediction.label == IGNORE
    return ImageExample(
        id=row.id,
        role=role,
        miou=row.miou,
        ece=row.ece,
        accuracy=row.accuracy,
        image=road.dataset.read_image(prediction.id),
        label_colors=colorize(prediction.label, road.palette, IGNORE),
        prediction_colors=colorize(classes, road.palette, IGNORE),
        confidence=confidence,
        wrong=(classes != prediction.label) & ~ignored,
        ignored=ignored,
    )
