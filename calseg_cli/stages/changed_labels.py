"""Owns which pixels a correction gives another class, counted at the label's full size, and pictures of them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from calseg_cli.artifacts.provenance import file_digest
from calseg_cli.config import Resolved
from calseg_cli.data.catalog import IGNORE
from calseg_cli.data.labels import read_image
from calseg_cli.engine.interrupt import StopRequest
from calseg_cli.engine.progress import Progress
from calseg_cli.errors import ConfigError, DataError
from calseg_cli.methods.correction import Correction
from calseg_cli.metrics.counting import decide_image
from calseg_cli.report.changed_figure import change_rows, changed_figure, changed_overlay
from calseg_cli.report.drawing import save_png
from calseg_cli.report.pictures import write_png
from calseg_cli.report.wording import percent
from calseg_cli.stages.domains import open_domain
from calseg_cli.stages.label_grid import label_grid
from calseg_cli.stages.pictures import safe_name
from calseg_cli.stages.prototype_input import Counted, Input
from calseg_cli.stages.whole_folder import whole_folder

FIGURE = "changed.png"
MOST_ROWS = 20


@dataclass(frozen=True)
class ChangedLabels:
    """Pixels (C,C) int64 by class before (row) and after (column), over all images at the label's full size."""

    counts: NDArray[np.int64]
    class_names: list[str]
    images: int
    pictures: Path | None

    def table(self) -> tuple[str, list[str], list[list[str]]]:
        """Title, headers and rows: the 20 largest changes, most pixels first, and all others together."""
        rows = change_rows(self.counts, self.class_names)
        written = [
            [row.before, row.after, str(row.pixels), percent(row.share, 2), percent(row.of_before, 2)]
            for row in rows[:MOST_ROWS]
        ]
        if rest := rows[MOST_ROWS:]:
            pixels, share = sum(row.pixels for row in rest), sum(row.share for row in rest)
            written.append([f"{len(rest)} others", "", str(pixels), percent(share, 2), ""])
        title = f"{percent(self.share)} of the pixels of {self.images} images change class"
        return title, ["from", "to", "pixels", "of all", "of its class"], written

    @property
    def share(self) -> float:
        """How many of all pixels change, in [0,1]; NaN without a pixel."""
        total = int(self.counts.sum())
        return 1 - int(self.counts.trace()) / total if total else float("nan")

    def document(self) -> dict[str, Any]:
        """The same as plain values for JSON."""
        rows = change_rows(self.counts, self.class_names)
        return {
            "images": self.images,
            "pixels": int(self.counts.sum()),
            "changed": int(self.counts.sum() - self.counts.trace()),
            "share": self.share,
            "pictures": self.pictures,
            "classes": [
                {"name": name, "before": int(before), "after": int(after)}
                for name, before, after in zip(
                    self.class_names, self.counts.sum(axis=1), self.counts.sum(axis=0), strict=True
                )
            ],
            "changes": [
                {"from": row.before, "to": row.after, "pixels": row.pixels, "share": row.share} for row in rows
            ],
        }


def changed_labels(
    given: Input,
    correction: Correction,
    resolved: Resolved,
    *,
    drawn: Path | None,
    progress: Progress,
    stop: StopRequest,
) -> ChangedLabels:
    """Count what a correction changes; `drawn` is a folder for a figure and a picture of each image that changes.

    An older folder of such pictures is replaced. Raises ArtifactError where `drawn` holds anything else.
    """
    work = _Work(given, correction, progress, stop)
    if drawn is None:
        work.count({}, None)
    else:
        images = _images(given, resolved, progress)
        mark = {"from": "calseg calibrate-prototypes", "parents": given.parents}
        with whole_folder(drawn, force=True, mark=mark, endings={".png"}) as folder:
            work.count(images, folder)
            save_png(changed_figure(work.counts, given.class_names), folder / FIGURE)
    return ChangedLabels(work.counts, list(given.class_names), len(given.ids), drawn)


def before_and_after(image: Counted, correction: Correction) -> tuple[Tensor, Tensor]:
    """The classes (H,W) int64 of an image at the label's full size, without and with the correction.

    Corrected logits are rounded to the type of the logits, as those of every other command are.
    """
    after = correction(image.logits.float()).to(image.logits.dtype)
    one, other = (decide_image(*label_grid(logits, image.geometry))[0] for logits in (image.logits, after))
    return one, other


class _Work:
    def __init__(self, given: Input, correction: Correction, progress: Progress, stop: StopRequest) -> None:
        self._given, self._correction = given, correction
        self._progress, self._stop = progress, stop
        classes = len(given.class_names)
        self.counts: NDArray[np.int64] = np.zeros((classes, classes), np.int64)

    def count(self, images: dict[str, Path], folder: Path | None) -> None:
        """All images; those that change are drawn into `folder` where there is one."""
        classes = len(self.counts)
        self._progress.start("looking for changes", len(self._given.ids))
        for image in self._given.stream():
            if self._stop:
                raise self._stop.error("stopped while looking for changes", "give the same command with --changed-by")
            before, after = before_and_after(image, self._correction)
            pairs = torch.bincount((before * classes + after).flatten(), minlength=classes**2)
            self.counts += pairs.reshape(classes, classes).numpy()
            if folder is not None and bool((before != after).any()):
                self._draw(folder, image.id, images.get(image.id), before.numpy(), after.numpy())
            self._progress.advance()
        self._progress.finish()

    def _draw(
        self, folder: Path, name: str, path: Path | None, before: NDArray[np.int64], after: NDArray[np.int64]
    ) -> None:
        fits = path is not None and self._given.image_digest(name) in ("", file_digest(path))
        pixels = read_image(path) if fits and path is not None else None
        if pixels is not None and pixels.shape[:2] != before.shape:
            pixels = None
        picture = changed_overlay(pixels, before, after, self._given.palette, IGNORE)
        write_png(folder / "images" / f"{safe_name(name)}.png", picture)


def _images(given: Input, resolved: Resolved, progress: Progress) -> dict[str, Path]:
    """The image files by id; none where the logits are not of a configured split."""
    domain, split = given.protocol.get("domain"), given.protocol.get("split")
    if domain is None or split is None:
        progress.note("changes are drawn on grey: the logits are not of a split of the configuration")
        return {}
    try:
        dataset = open_domain(resolved, domain).dataset(split, with_labels=False)
    except (ConfigError, DataError) as error:
        progress.note(f"changes are drawn on grey: {error.message}")
        return {}
    return {item.id: item.image for item in dataset.items}
