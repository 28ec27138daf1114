"""Owns what a calibrator is fitted on: images with logits and labels, gone through as often as a fit asks."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from calseg_cli.data.catalog import IGNORE
from calseg_cli.errors import DataError
from calseg_cli.metrics.confusion import check_labels
from calseg_cli.metrics.grid import Grid
from calseg_cli.metrics.pixels import logit_blocks

GRID = "every labelled pixel, on logits enlarged bilinearly to the label's full size"
"""On which pixels a calibrator is fitted; it acts on the cells of the logits' own grid."""


@dataclass(frozen=True, eq=False)
class Scene:
    """One image: logits (C,h,w) on their own grid, a label (H,W) with 255 where there is none, and the image itself.

    `lay` says how logits of this image lie on the label (`stages.label_grid`). `image` (3,H',W') float32 in [0,1] is
    at the network's input size, and None where no fit looks at it.
    """

    id: str
    logits: Tensor
    label: Tensor
    lay: Callable[[Tensor], tuple[Tensor, Grid]]
    image: Tensor | None = None

    def blocks(self, logits: Tensor | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """Logits (C,n) float32 and labels (n,) int64 of the labelled pixels, some rows of full size at a time.

        `logits` (C,h,w) take the place of the scene's own, and gradients flow back to them. Raises as `check`.
        """
        self.check()
        placed, grid = self.lay(self.logits if logits is None else logits)
        labels = self.label.flatten()
        start = 0
        for block in logit_blocks(placed, grid):
            truth = labels[start : start + block.shape[1]].long()
            start += block.shape[1]
            has_class = truth != IGNORE
            if has_class.any():
                yield block[:, has_class], truth[has_class]

    def check(self) -> None:
        """Raise DataError, naming the image, for a logit that is NaN or infinite and a label that is no class."""
        if not bool(torch.isfinite(self.logits).all()):
            raise DataError(
                f"the logits of {self.id} hold NaN or infinity",
                "the network is broken, or float16 is too small for its logits (predict.logits_dtype=float32)",
            )
        check_labels(self.label, self.logits.shape[0], ignore=IGNORE, where=self.id)


Scenes = Callable[[], Iterable[Scene]]
"""Begins at the first image each time it is called; no more than one image is in memory at once."""


def class_count(scenes: Scenes) -> int:
    """The classes C of the first image's logits. Raises DataError where there is no image."""
    for scene in scenes():
        return int(scene.logits.shape[0])
    raise DataError("there is no image to fit a calibrator on", "check the split, and --max-items")


def no_pixels() -> DataError:
    """What a fit says of images without a single labelled pixel."""
    return DataError(
        "no pixel of these images has a label that could be fitted on", "all of them are ignored: check the labels"
    )
