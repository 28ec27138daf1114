"""Owns what of pseudo-labels is drawn: the label, the label with its ignored pixels striped, and over the image."""

import shutil
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from calseg_cli.artifacts.provenance import file_digest
from calseg_cli.artifacts.reader import Artifact
from calseg_cli.artifacts.safe_open import PARTIAL
from calseg_cli.artifacts.whole_file import write_whole
from calseg_cli.config import Resolved
from calseg_cli.data.catalog import IGNORE
from calseg_cli.data.labels import read_image
from calseg_cli.engine.interrupt import StopRequest
from calseg_cli.engine.progress import Progress
from calseg_cli.errors import ConfigError, DataError
from calseg_cli.report.pictures import write_label_png, write_png
from calseg_cli.report.pseudo_pictures import believed_overlay, striped_labels
from calseg_cli.stages.domains import open_domain
from calseg_cli.stages.pictures import Palette, safe_name
from calseg_cli.stages.roads import palette_of

STAMP = "made-from.txt"


def draw_pseudo_labels(
    artifact: Artifact, resolved: Resolved, *, resume: bool, progress: Progress, stop: StopRequest
) -> Path:
    """Write pictures of every image into ARTIFACT-pictures, from the artifact itself, and return the folder.

    They are drawn into FOLDER.partial, which takes its name when it is whole. `resume` keeps what is there already if
    it was drawn from this very artifact; the digest in `made-from.txt` says so.
    """
    folder = artifact.path.with_name(f"{artifact.path.stem}-pictures")
    if resume and _drawn_from(folder) == artifact.digest:
        return folder
    drawing = folder.with_name(f"{folder.name}{PARTIAL}")
    if not resume or _drawn_from(drawing) != artifact.digest:
        shutil.rmtree(drawing, ignore_errors=True)
    write_whole(drawing / STAMP, f"{artifact.digest}\n")
    images = _images(artifact, resolved, progress)
    palette, without = palette_of(artifact), 0
    progress.start("drawing", len(artifact))
    for name in artifact.ids:
        if stop:
            raise stop.error(
                f"stopped while drawing; {artifact.path} is whole, {drawing} is not",
                "the same command with --resume draws the rest",
            )
        if not (drawing / "label" / f"{safe_name(name)}.png").exists():
            without += not _draw(drawing, artifact, name, images.get(name), palette)
        progress.advance()
    progress.finish()
    if images and without:
        progress.note(f"{without} images have no overlay: the configured images are not those of the logits")
    shutil.rmtree(folder, ignore_errors=True)
    drawing.rename(folder)
    return folder


def _drawn_from(folder: Path) -> str:
    stamp = folder / STAMP
    return stamp.read_text(encoding="utf-8").strip() if stamp.is_file() else ""


def _draw(folder: Path, artifact: Artifact, name: str, image: Path | None, palette: Palette) -> bool:
    """Draw one image, its label last; whether there is an overlay."""
    labels: NDArray[np.uint8] = artifact.item(name, "label")
    file = f"{safe_name(name)}.png"
    fits = image is not None and file_digest(image) == artifact.image_digest(name)
    pixels = read_image(image) if fits and image is not None else None
    overlaid = pixels is not None and pixels.shape[:2] == labels.shape
    if pixels is not None and overlaid:
        write_png(folder / "overlay" / file, believed_overlay(pixels, labels, palette, IGNORE))
    write_png(folder / "ignored" / file, striped_labels(labels, palette, IGNORE))
    write_label_png(folder / "label" / file, labels, palette)
    return overlaid


def _images(artifact: Artifact, resolved: Resolved, progress: Progress) -> dict[str, Path]:
    """The image files of the domain and split that the logits are of, by id; none where they are not configured."""
    origin = artifact.meta["protocol"]
    if "domain" not in origin or "split" not in origin:
        progress.note("no overlays: the logits are not of a split of the configuration")
        return {}
    try:
        dataset = open_domain(resolved, origin["domain"]).dataset(origin["split"], with_labels=False)
    except (ConfigError, DataError) as error:
        progress.note(f"no overlays: {error.message}")
        return {}
    return {item.id: item.image for item in dataset.items}
