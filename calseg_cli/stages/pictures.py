"""Owns what of a prediction is drawn: label, overlay and confidence beside each other, named by the image."""

from pathlib import Path, PurePosixPath

import numpy as np
import torch
from numpy.typing import NDArray

from calseg_cli.artifacts.reader import Artifact
from calseg_cli.data.catalog import IGNORE
from calseg_cli.data.dataset import SegmentationDataset
from calseg_cli.engine.infer import Prediction
from calseg_cli.engine.interrupt import StopRequest
from calseg_cli.engine.progress import Progress
from calseg_cli.errors import DataError
from calseg_cli.metrics.counting import decide_image
from calseg_cli.report.pictures import colorize, confidence_map, overlay, write_label_png, write_png
from calseg_cli.stages.label_grid import label_grid

Palette = tuple[tuple[int, int, int], ...]


def decide(prediction: Prediction) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """The predicted classes and their confidence, both (H,W) at the label's full size."""
    classes, confidence = decide_image(*label_grid(prediction.logits, prediction.geometry))
    return classes.to(torch.uint8).numpy(), confidence.numpy()


def write_prediction(folder: Path, prediction: Prediction, dataset: SegmentationDataset, palette: Palette) -> None:
    """Write FOLDER/{label,overlay,confidence}/ID.png for one image."""
    classes, confidence = decide(prediction)
    name = safe_name(prediction.id)
    image = dataset.read_image(prediction.id)
    write_label_png(folder / "label" / f"{name}.png", classes, palette)
    write_png(folder / "overlay" / f"{name}.png", overlay(image, colorize(classes, palette, IGNORE)))
    write_png(folder / "confidence" / f"{name}.png", confidence_map(confidence))


def draw_predictions(
    folder: Path, artifact: Artifact, dataset: SegmentationDataset, progress: Progress, stop: StopRequest
) -> None:
    """Draw every image of a logits artifact; `dataset` holds the images. Raises StoppedError on a signal."""
    palette = tuple((int(r), int(g), int(b)) for r, g, b in artifact.meta["classes"]["palette"])
    progress.start("drawing", len(artifact))
    for name in artifact.ids:
        logits = torch.from_numpy(artifact.item(name, "logits"))
        write_prediction(folder, Prediction(name, logits, artifact.geometry(name), None), dataset, palette)
        progress.advance()
        if stop:
            raise stop.error(f"stopped while drawing; {artifact.path} is whole", "--resume draws all pictures anew")
    progress.finish()


def safe_name(image_id: str) -> str:
    """The id as a path below a folder. Raises DataError for one that would leave it."""
    path = PurePosixPath(image_id)
    if path.is_absolute() or ".." in path.parts or not path.parts:
        raise DataError(f"the image id {image_id!r} does not name a file below a folder", "rename the image")
    return str(path)
