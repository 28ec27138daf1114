"""Owns the pseudo-labels of one round: what a look at the images becomes, as an artifact with overlays."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calseg_cli.artifacts.geometry import Geometry
from calseg_cli.artifacts.provenance import beside, file_digest, provenance
from calseg_cli.artifacts.reader import Artifact
from calseg_cli.artifacts.writer import ArtifactWriter
from calseg_cli.data.catalog import IGNORE
from calseg_cli.data.dataset import resized_image
from calseg_cli.methods.expected_confidence import image_temperature
from calseg_cli.methods.pseudo_labels import (
    GRID,
    VoteHistogram,
    Votes,
    believed_labels,
    class_pixels,
    locally_believed,
    votes,
)
from calseg_cli.methods.round_self_training import Beliefs
from calseg_cli.report.pictures import write_png
from calseg_cli.report.pseudo_pictures import believed_overlay
from calseg_cli.stages.corrections import Loaded, told
from calseg_cli.stages.label_grid import label_grid
from calseg_cli.stages.pictures import safe_name
from calseg_cli.stages.roads import classes_table
from calseg_cli.stages.round_pass import RoundPass, Seen
from calseg_cli.stages.target_training import Setting

_RULE = "the confidence, times 1 - expected error of the image, reaches the threshold of the predicted class (>=)"


def write_round_labels(
    setting: Setting, seen: RoundPass, path: Path, *, portion: float, network: Path, corrections: Sequence[Loaded]
) -> None:
    """Write the labels of a round at the network's input size, and the beliefs that go with them.

    Thresholds are measured on the scaled confidence of all images and compared with the same: spec 7.1, both sides.
    """
    histogram = VoteHistogram(len(setting.loaded.class_names))
    for one in seen:
        histogram.add(_votes(one, seen))
    thresholds = histogram.thresholds(portion)
    kept = np.zeros_like(histogram.predicted)
    writer = ArtifactWriter(
        path, "pseudo_labels", meta=_meta(setting, path, network, portion, corrections), ids=seen.ids, force=True
    )
    digests = {item.id: item.image for item in setting.images.items}
    with writer:
        for one in seen:
            labels = _labels(one, seen, thresholds, setting.options.local_portion)
            kept += class_pixels(labels, len(kept))
            geometry = Geometry(in_hw=one.geometry.in_hw, out_hw=one.geometry.in_hw)
            writer.add_item(one.id, {"label": labels.numpy()}, geometry, image_digest=file_digest(digests[one.id]))
        for name, array in _arrays(setting, seen, thresholds, histogram.predicted, kept).items():
            writer.add_array(name, array)


def read_beliefs(labels: Artifact) -> Beliefs:
    """What the round starts from, as the artifact tells it."""
    columns = {name: labels.array(name).tolist() for name in ("expected_error", "mean_confidence", "temperature")}
    ids = list(labels.ids)
    return Beliefs(
        labels.array("thresholds"),
        dict(zip(ids, columns["expected_error"], strict=True)),
        dict(zip(ids, columns["mean_confidence"], strict=True)),
        dict(zip(ids, columns["temperature"], strict=True)),
    )


def kept_share(labels: Artifact) -> float:
    """The share of all pixels that is believed."""
    predicted = int(labels.array("predicted").sum())
    return int(labels.array("kept").sum()) / predicted if predicted else 0.0


def draw_overlays(setting: Setting, labels: Artifact, folder: Path, number: int) -> None:
    """Pictures of `number` images spread over the set: the image in grey where nothing is believed."""
    items = setting.images.items
    for place in sorted({round(step) for step in np.linspace(0, len(items) - 1, min(number, len(items)))}):
        label: NDArray[np.uint8] = labels.item(items[place].id, "label")
        height, width = label.shape
        image = resized_image(setting.images.read_image(place), (height, width))
        picture = believed_overlay(image, label, setting.loaded.palette, IGNORE)
        write_png(folder / f"{safe_name(items[place].id)}.png", picture)


def _votes(one: Seen, seen: RoundPass) -> Votes:
    native, grid = label_grid(one.logits, one.geometry)
    return votes(native, grid=grid, scale=1 - seen.expected_error.get(one.id, 0.0))


def _labels(one: Seen, seen: RoundPass, thresholds: NDArray[np.float64], local: float) -> Any:
    image = _votes(one, seen)
    labels = believed_labels(image, thresholds)
    return locally_believed(image, labels, local) if local else labels


def _arrays(
    setting: Setting,
    seen: RoundPass,
    thresholds: NDArray[np.float64],
    predicted: NDArray[np.int64],
    kept: NDArray[np.int64],
) -> Mapping[str, NDArray[Any]]:
    errors = [seen.expected_error.get(name, 0.0) for name in seen.ids]
    soft = getattr(setting.options, "softness", "none") == "temperature"
    temperatures = [
        image_temperature(one.logits, (1 - error) * seen.confidence[one.id]) if soft and error else 1.0
        for one, error in zip(seen, errors, strict=True)
    ]
    return {
        "thresholds": thresholds,
        "predicted": predicted,
        "kept": kept,
        "expected_error": np.array(errors),
        "mean_confidence": np.array([seen.confidence[name] for name in seen.ids]),
        "temperature": np.array(temperatures),
    }


def _meta(setting: Setting, path: Path, network: Path, portion: float, corrections: Sequence[Loaded]) -> dict[str, Any]:
    config = setting.resolved.config
    options = setting.options
    done = {
        "believed_where": _RULE,
        "threshold": "class-balanced",
        "portion": portion,
        "local_portion": options.local_portion,
        "guidance": getattr(options, "guidance", "none"),
        "grid": GRID,
        "size": "the network's input",
    }
    return {
        "classes": classes_table(setting.loaded.class_names, setting.loaded.palette, IGNORE),
        "protocol": {
            "domain": config.adapt.domain,
            "split": config.adapt.split,
            "pseudo_labels": done,
            **told(corrections),
        },
        "provenance": provenance(
            sys.argv,
            seed=config.seed,
            config_digest=setting.resolved.digest,
            parents={"checkpoint": file_digest(network), **{one.role: one.digest for one in corrections}},
            files={"checkpoint": beside(network, path.parent)},
            device=str(setting.device),
        ),
        "config": setting.resolved.to_dict(),
    }
