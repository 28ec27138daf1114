"""Owns report data made from simulated predictions, so that its numbers fit each other as real ones do."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from calseg_cli.report.data import (
    ClassRow,
    Compared,
    ConfidenceHistogram,
    ImageExample,
    Reliability,
    ReportData,
    Selection,
)

NAMES = ["road", "sidewalk", "building", "sky", "car", "pole", "sign", "bicyclist"]
CONVENTION = "ECE: top-label, 15 equal-width bins (lo,hi], every labelled pixel of the dataset once"


def simulate_scene(
    rng: np.random.Generator, num_classes: int, size: tuple[int, int], overconfidence: float
) -> dict[str, NDArray[Any]]:
    """Labels in patches, a few void pixels, and a prediction whose confidence exceeds its accuracy."""
    height, width = size
    patch = 8
    rough = rng.integers(0, num_classes, (math.ceil(height / patch), math.ceil(width / patch)))
    label = np.kron(rough, np.ones((patch, patch), dtype=np.int64))[:height, :width]
    truth = rng.beta(6, 1.5, size)
    wrong = rng.random(size) > truth
    prediction = np.where(wrong, rng.integers(0, num_classes, size), label)
    confidence = np.clip(truth + overconfidence * (1 - truth), 1 / num_classes, 1).astype(np.float32)
    label = np.where(rng.random(size) < 0.05, 255, label)
    return {"label": label, "prediction": prediction, "confidence": confidence}


def measure_bins(confidence: NDArray[Any], correct: NDArray[np.bool_], bins: int) -> Reliability:
    index = np.clip(np.ceil(confidence.astype(np.float64) * bins).astype(int) - 1, 0, bins - 1)
    count = np.bincount(index, minlength=bins)
    with np.errstate(invalid="ignore"):
        return Reliability(
            lower=np.arange(bins) / bins,
            upper=np.arange(1, bins + 1) / bins,
            count=count,
            confidence=np.bincount(index, confidence, bins) / count,
            accuracy=np.bincount(index, correct, bins) / count,
        )


def select(confidence: NDArray[Any], correct: NDArray[np.bool_]) -> Selection:
    """Risk against coverage of the pixels themselves, the surest first, at 400 steps of coverage or all pixels."""
    order = np.argsort(-confidence, kind="stable")
    wrong = np.cumsum(~correct[order])
    steps = np.unique(np.ceil(np.linspace(0, order.size, 401)[1:]).astype(int)) if order.size else np.zeros(0, int)
    kept = steps[steps > 0]
    return Selection(kept / max(order.size, 1), wrong[kept - 1] / kept, confidence[order][kept - 1].astype(np.float64))


def bins_by_class(whole: dict[str, NDArray[Any]], num_classes: int) -> list[Reliability]:
    found = []
    for index in range(num_classes):
        mine = (whole["prediction"] == index) & (whole["label"] != 255)
        found.append(measure_bins(whole["confidence"][mine], (whole["label"] == index)[mine], 15))
    return found


def ratio(numerator: float, denominator: float) -> float:
    return float(numerator) / float(denominator) if denominator else math.nan


def class_row(name: str, index: int, confusion: NDArray[np.int64], scene: dict[str, NDArray[Any]]) -> ClassRow:
    true, predicted, hit = confusion[index].sum(), confusion[:, index].sum(), confusion[index, index]
    mine = (scene["prediction"] == index) & (scene["label"] != 255)
    confidence = float(scene["confidence"][mine].mean()) if mine.any() else math.nan
    precision = ratio(hit, predicted)
    return ClassRow(
        name=name,
        color=(37 * index % 256, 91 * index % 256, 173 * index % 256),
        pixels=int(true),
        iou=ratio(hit, true + predicted - hit) if true else math.nan,
        accuracy=ratio(hit, true),
        ece=abs(confidence - precision),
        predicted_pixels=int(predicted),
        mean_confidence=confidence,
        precision=precision,
    )


def score_image(name: str, scene: dict[str, NDArray[Any]], num_classes: int) -> dict[str, Any]:
    valid = scene["label"] != 255
    correct, confidence = (scene["prediction"] == scene["label"])[valid], scene["confidence"][valid]
    bins = measure_bins(confidence, correct, 15)
    confusion = count_pairs(scene, num_classes)
    with np.errstate(invalid="ignore"):
        union = confusion.sum(0) + confusion.sum(1) - np.diag(confusion)
        iou = (np.diag(confusion) / union)[confusion.sum(1) > 0]
    return {
        "id": name,
        "miou": float(iou.mean()) if iou.size else math.nan,
        "ece": float(np.abs(bins.contribution()).sum()) if valid.any() else math.nan,
        "accuracy": ratio(correct.sum(), correct.size),
        "confidence": float(confidence.mean()) if valid.any() else math.nan,
    }


def count_pairs(scene: dict[str, NDArray[Any]], num_classes: int) -> NDArray[np.int64]:
    valid = scene["label"] != 255
    pairs = scene["label"][valid] * num_classes + scene["prediction"][valid]
    return np.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)


def make_example(row: dict[str, Any], scene: dict[str, NDArray[Any]], role: Any, palette: NDArray[Any]) -> ImageExample:
    ignored = scene["label"] == 255
    colors = np.vstack([palette, np.zeros((256 - len(palette), 3), np.uint8)])
    return ImageExample(
        id=row["id"],
        role=role,
        miou=row["miou"],
        ece=row["ece"],
        accuracy=row["accuracy"],
        image=(colors[scene["label"]] // 2 + 60).astype(np.uint8),
        label_colors=colors[scene["label"]],
        prediction_colors=colors[scene["prediction"]],
        confidence=scene["confidence"],
        wrong=(scene["prediction"] != scene["label"]) & ~ignored,
        ignored=ignored,
    )


def build_report(
    *,
    num_classes: int = 8,
    num_images: int = 12,
    size: tuple[int, int] = (48, 64),
    overconfidence: float = 0.6,
    num_examples: int = 3,
    seed: int = 0,
    **changes: Any,
) -> ReportData:
    """A report on simulated scenes. `changes` replace its fields."""
    rng = np.random.default_rng(seed)
    names = [NAMES[i] if i < len(NAMES) else f"class {i}" for i in range(num_classes)]
    scenes = [simulate_scene(rng, num_classes, size, overconfidence) for _ in range(num_images)]
    rows = [score_image(f"scene_{i:03d}", scene, num_classes) for i, scene in enumerate(scenes)]
    empty = {
        "label": np.empty((0, 1), int),
        "prediction": np.empty((0, 1), int),
        "confidence": np.empty((0, 1), np.float32),
    }
    whole = {key: np.concatenate([empty[key], *(scene[key].reshape(-1, 1) for scene in scenes)]) for key in empty}
    valid = whole["label"] != 255
    correct, confidence = (whole["prediction"] == whole["label"])[valid], whole["confidence"][valid]
    bins, confusion = measure_bins(confidence, correct, 15), count_pairs(whole, num_classes)
    classes = [class_row(name, index, confusion, whole) for index, name in enumerate(names)]
    palette = np.array([row.color for row in classes], dtype=np.uint8)
    ranked = sorted(range(num_images), key=lambda i: -rows[i]["miou"])
    chosen = [(0, "best"), (len(ranked) // 2, "median"), (-1, "worst")][:num_examples] if ranked else []
    fields: dict[str, Any] = {
        "title": "street: source-only-target-val",
        "subtitle": f"tiny on {num_images} simulated scenes",
        "scores": read_scores(bins, classes, rows),
        "convention": CONVENTION,
        "protocol": {"network_input": "48x64", "grid": "logits at stride 4, bilinear", "scales": [1.0], "flip": False},
        "provenance": {"calseg": "0.1.0", "packages": {"torch": "2.6", "numpy": "2.1"}, "seed": 0, "device": None},
        "reliability": bins,
        "class_names": names,
        "classes": classes,
        "confusion": confusion,
        "examples": [make_example(rows[ranked[k]], scenes[ranked[k]], role, palette) for k, role in chosen],
        "images": rows,
        "confidence_histogram": make_histogram(confidence, correct),
        "class_reliability": bins_by_class(whole, num_classes),
        "selection": select(confidence, correct),
        "command": "calseg evaluate --html --domain target",
    }
    return ReportData(**(fields | changes))


def make_histogram(confidence: NDArray[Any], correct: NDArray[np.bool_], bins: int = 50) -> ConfidenceHistogram:
    edges = np.linspace(0, 1, bins + 1)
    return ConfidenceHistogram(
        edges[:-1], edges[1:], np.histogram(confidence[correct], edges)[0], np.histogram(confidence[~correct], edges)[0]
    )


def read_scores(bins: Reliability, classes: list[ClassRow], rows: list[dict[str, Any]]) -> dict[str, float]:
    total = int(bins.count.sum())
    accuracy = float(np.nansum(bins.accuracy * bins.count)) / total if total else math.nan
    confidence = float(np.nansum(bins.confidence * bins.count)) / total if total else math.nan
    added = bins.contribution()

    def mean(values: list[float]) -> float:
        kept = [value for value in values if not math.isnan(value)]
        return sum(kept) / len(kept) if kept else math.nan

    return {
        "miou": mean([row.iou for row in classes]),
        "macc": mean([row.accuracy for row in classes]),
        "accuracy": accuracy,
        "mean_confidence": confidence,
        "ece": float(np.abs(added).sum()) if total else math.nan,
        "ece_image": mean([row["ece"] for row in rows]),
        "signed_gap": confidence - accuracy,
        "over_confidence": float(added[added > 0].sum()) if total else math.nan,
        "under_confidence": float(-added[added < 0].sum()) if total else math.nan,
        "nll": 0.7132 if total else math.nan,
        "brier": 0.3011 if total else math.nan,
        "noise_floor": 0.0032 if total else math.nan,
    }


def build_log(steps: int = 600) -> list[dict[str, Any]]:
    """The lines of a training log with two loss terms, and a validation every 100 steps."""
    lines: list[dict[str, Any]] = []
    for step in range(20, steps + 1, 20):
        terms = {"cross_entropy": 2.0 * math.exp(-step / 200) + 0.2, "feature_distance": 0.1}
        loss = sum(terms.values())
        lines.append({"event": "step", "step": step, "loss": loss, "terms": terms, "lr": 2e-4 * (1 - step / steps)})
        if step % 100 == 0:
            lines.append({"event": "validation", "step": step, "miou": 0.5 - 40 / (step + 100), "ece": None})
    return lines


@pytest.fixture(scope="session")
def make_report() -> Callable[..., ReportData]:
    return build_report


@pytest.fixture(scope="session")
def report() -> ReportData:
    """A report with everything in it."""
    before, after = build_report(seed=0), build_report(seed=1, overconfidence=0.1, num_examples=0)
    compared = [Compared("source-only", before.scores, before.reliability), Compared("adabn", after.scores)]
    return build_report(comparison=compared, training=build_log())


@pytest.fixture(scope="session")
def log() -> list[dict[str, Any]]:
    return build_log()
