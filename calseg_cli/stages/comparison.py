"""Owns finding what a report can be compared with: earlier evaluations of the run on the same images."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from calseg_cli.report.data import Compared, Reliability


def earlier_results(evaluations: Path, name: str, protocol: dict[str, Any], num_images: int) -> list[Compared]:
    """The run's other evaluations of the same domain, split, number of images and metric, the oldest first.

    A file that cannot be read is passed over: it is not what was asked for.
    """
    found = []
    files = sorted(evaluations.glob("*/scores.json"), key=lambda path: path.stat().st_mtime_ns)
    for path in files:
        if path.parent.name == name:
            continue
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
            if document["num_images"] == num_images and _same(document["protocol"], protocol):
                found.append(Compared(path.parent.name, _numbers(document["scores"]), _reliability(document)))
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            continue
    return found


def _same(first: dict[str, Any], second: dict[str, Any]) -> bool:
    keys = ("domain", "split", "metric", "evaluated_classes")
    return all(first.get(key) == second.get(key) for key in keys)


def _numbers(scores: dict[str, Any]) -> dict[str, float]:
    return {name: math.nan if value is None else float(value) for name, value in scores.items()}


def _reliability(document: dict[str, Any]) -> Reliability:
    bins = document["reliability"]
    means = {key: np.array(bins[key], dtype=np.float64) for key in ("lower", "upper", "confidence", "accuracy")}
    return Reliability(**means, count=np.array(bins["count"], dtype=np.int64))
