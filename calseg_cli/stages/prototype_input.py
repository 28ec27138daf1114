"""Owns the images whose soft labels are counted: logits of an artifact, or computed by a network, time and again."""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from calseg_cli.artifacts.geometry import Geometry
from calseg_cli.artifacts.lineage import stale_note
from calseg_cli.artifacts.provenance import file_digest
from calseg_cli.artifacts.reader import Artifact, open_artifact
from calseg_cli.artifacts.recipe import changes
from calseg_cli.config import Resolved
from calseg_cli.engine.progress import Progress
from calseg_cli.errors import ArtifactError, ConfigError, DataError
from calseg_cli.stages.cells import cell_centres, pixels_under
from calseg_cli.stages.chain import check_configured_classes
from calseg_cli.stages.predict import PreparedPrediction
from calseg_cli.stages.pseudo_label import newest_logits
from calseg_cli.stages.roads import network_of, palette_of
from calseg_cli.stages.run_folder import run_folder, short_name

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Counted:
    """One image: its logits (C,h,w) on their own grid, and how they lie on the image."""

    id: str
    logits: Tensor
    geometry: Geometry

    def mask(self, wanted: Mask | None = None) -> Tensor | None:
        """Which cells (h,w) count: those on the image, and not on padding, where `wanted` (H,W) is True; None for all.

        Raises DataError where `wanted` has not the image's size.
        """
        return image_cells(self.geometry, (int(self.logits.shape[1]), int(self.logits.shape[2])), wanted)


@dataclass(frozen=True)
class Asked:
    """Whose soft labels are asked for: a logits artifact, or a network and perhaps a folder; nothing: the run's own."""

    logits: Path | None = None
    checkpoint: str | None = None
    images: Path | None = None
    mask: Path | None = None
    """A picture that is 0 where no image counts, such as on the car that carries the camera."""


class LogitsInput:
    """The images of a logits artifact."""

    device = "cpu"

    def __init__(self, path: Path, resolved: Resolved, progress: Progress) -> None:
        self.artifact: Artifact = open_artifact(path, "logits")
        check_configured_classes(self.artifact, resolved)
        if (stale := stale_note(self.artifact)) is not None:
            progress.note(stale)
        self.ids = list(self.artifact.ids)
        self.class_names, self.palette = list(self.artifact.class_names), palette_of(self.artifact)
        self.protocol: dict[str, Any] = dict(self.artifact.meta["protocol"])
        self.parents, self.files = {"logits": self.artifact.digest}, {"logits": path}
        self.network_digest = network_of(self.artifact.meta.get("provenance", {}))
        self.stem = path.name.removesuffix(".json").removesuffix(".manifest").removesuffix(".h5")
        self.told = f"logits {path}"

    def stream(self) -> Iterator[Counted]:
        """All images, in the artifact's order."""
        for name in self.ids:
            yield Counted(name, torch.from_numpy(self.artifact.item(name, "logits")), self.artifact.geometry(name))

    def image_digest(self, name: str) -> str:
        """The digest of the image's file; empty where it was not recorded."""
        return self.artifact.image_digest(name)

    def open(self) -> AbstractContextManager[Any]:
        """Closes the artifact at the end."""
        return self.artifact


class NetworkInput:
    """The images of a split or a folder, by a network; no label is opened."""

    def __init__(self, resolved: Resolved, checkpoint: str | None, images: Path | None) -> None:
        work = PreparedPrediction(resolved, checkpoint=checkpoint, images=images, out=None)
        self._road, self.ids = work.road, work.ids
        self._paths = {item.id: item.image for item in work.dataset.items}
        self.device = str(work.device)
        self.class_names, self.palette = list(work.road.class_names), work.road.palette
        self.protocol: dict[str, Any] = {**work.road.protocol, **work.origin}
        self.parents, self.files = dict(work.road.parents), dict(work.road.files)
        self.network_digest = work.road.network_digest
        self.stem = f"{short_name(work.checkpoint, run_folder(resolved))}-{work.place}"
        self.told = f"network {work.checkpoint}, images of {work.place}"

    def stream(self) -> Iterator[Counted]:
        """All images; each time the network computes them anew."""
        for one in self._road.stream():
            yield Counted(one.id, one.logits, one.geometry)

    def image_digest(self, name: str) -> str:
        """The digest of the image's file."""
        return file_digest(self._paths[name])

    def open(self) -> AbstractContextManager[Any]:
        """Nothing is held open."""
        return nullcontext()


Input = LogitsInput | NetworkInput


def find_input(resolved: Resolved, asked: Asked, progress: Progress) -> Input:
    """Those named; without any, the run's newest logits of the target.

    Raises ConfigError for two of them, and for options that choose images where logits are read as they are.
    """
    if asked.logits is not None and (asked.checkpoint is not None or asked.images is not None):
        raise ConfigError("--logits excludes --checkpoint and --images", "give the one whose soft labels count")
    if asked.checkpoint is None and asked.images is None:
        _check_whole(resolved)
        found = LogitsInput(asked.logits or newest_logits(run_folder(resolved), progress), resolved, progress)
        _check_uncorrected(found, progress, named=asked.logits is not None)
        return found
    return NetworkInput(resolved, asked.checkpoint, asked.images)


def other_way(before: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """How the logits of now were made differently from those that were counted; None where they were made alike.

    Up-sampling mixes classes at borders, so prototypes of one grid are not those of another.
    """
    keys = [key for key in ("network", "network_input", "grid", "values", "scales", "flip") if key in before]
    differs = changes({key: before[key] for key in keys}, {key: now.get(key) for key in keys})
    return "; ".join(differs) or None


def _check_uncorrected(found: LogitsInput, progress: Progress, *, named: bool) -> None:
    """Prototypes of corrected logits would correct twice: who names such logits is told, and nobody gets them else."""
    if not found.protocol.get("corrected_by"):
        return
    told = f"{found.files['logits']} holds logits that are corrected already"
    if not named:
        raise ArtifactError(told, "name the network's own with --logits")
    progress.note(f"warning: {told}")


def _check_whole(resolved: Resolved) -> None:
    for name in ("domain", "split", "max_items"):
        option = f"--{name.replace('_', '-')}"
        if resolved.sources.get(f"predict.{name}") == option:
            raise ConfigError(
                f"{option} has no effect on logits, all of which count", "--checkpoint names a network for it"
            )


def read_mask(path: Path) -> Mask:
    """A picture as (H,W) bool, False where it is 0 in every channel but alpha. Raises DataError."""
    try:
        with Image.open(path) as picture:
            pixels = np.asarray(picture.convert("RGB") if "A" in picture.mode else picture)
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        told = f"the mask {path} cannot be read as a picture"
        raise DataError(told, "give a PNG that is 0 where nothing counts") from error
    if pixels.dtype == bool:
        pixels = pixels.astype(np.uint8)
    mask: Mask = pixels.reshape(*pixels.shape[:2], -1).max(axis=-1) > 0
    return mask


def image_cells(geometry: Geometry, native_hw: tuple[int, int], wanted: Mask | None = None) -> Tensor | None:
    """Which cells (h,w) have their centre on the image, on a pixel where `wanted` (H,W) is True; None for all."""
    if geometry.pad == (0, 0) and wanted is None:
        return None
    if wanted is not None and wanted.shape != geometry.out_hw:
        sizes = ["x".join(map(str, size)) for size in (wanted.shape, geometry.out_hw)]
        raise DataError(f"the mask is {sizes[0]} and an image is {sizes[1]}", "give a mask of the images' size")
    rows, columns = (
        cell_centres(cells, padded, geometry.align_corners)
        for cells, padded in zip(native_hw, geometry.padded_hw, strict=True)
    )
    inside = (rows < geometry.in_hw[0])[:, None] & (columns < geometry.in_hw[1])[None]
    if wanted is not None:
        sides = zip((rows, columns), geometry.in_hw, geometry.out_hw, strict=True)
        inside &= wanted[np.ix_(*(pixels_under(*side) for side in sides))]
    return torch.from_numpy(inside)
