"""Owns the data of a fit: logits made once and laid down on the disk, read again on every pass."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from calseg_cli.artifacts.geometry import Geometry
from calseg_cli.config import Predict
from calseg_cli.data.dataset import SegmentationDataset
from calseg_cli.data.loader import evaluation_samples, image_tensor
from calseg_cli.engine.infer import Prediction, Sample, predict
from calseg_cli.engine.progress import Progress
from calseg_cli.errors import disk_errors
from calseg_cli.methods.pseudocal import mixed, mixed_label, mixing_pairs
from calseg_cli.methods.scenes import Scene
from calseg_cli.metrics.counting import decide_image
from calseg_cli.metrics.grid import Grid
from calseg_cli.stages.label_grid import label_grid
from calseg_cli.stages.networks import LoadedNetwork
from calseg_cli.stages.roads import Road, views_of

Label = NDArray[np.uint8]


@dataclass
class FittingData:
    """Images with logits and labels in a folder: each pass reads them one by one, so memory holds one image.

    With `pictures` a scene carries its image, at the network's input size.
    """

    folder: Path
    progress: Progress
    pictures: SegmentationDataset | None = None
    _kept: list[tuple[str, Geometry]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self._kept)

    def add(self, prediction: Prediction) -> None:
        """Lay one image's logits (C,h,w) and label (H,W) down."""
        if prediction.label is None:
            raise ValueError(f"{prediction.id} has no label to fit on")
        place = len(self._kept)
        with disk_errors(self.folder):
            np.save(self._file(place, "logits"), prediction.logits.numpy())
            np.save(self._file(place, "label"), prediction.label)
        self._kept.append((prediction.id, prediction.geometry))

    def scenes(self) -> Iterator[Scene]:
        """Every image once, in its order; the progress is told of a pass that goes beyond the first."""
        begun = False
        try:
            for place, one in enumerate(self.predictions()):
                assert one.label is not None
                label, lay = torch.from_numpy(one.label), partial(_laid, one.geometry)
                yield Scene(one.id, one.logits, label, lay, image=self.image(place))
                if not begun:
                    self.progress.start("pass", len(self))
                    begun = True
                self.progress.advance()
        finally:
            if begun:
                self.progress.finish()

    def predictions(self) -> Iterator[Prediction]:
        """The same as predictions with labels, for measuring."""
        for place, (name, geometry) in enumerate(self._kept):
            logits = torch.from_numpy(self._read(place, "logits"))
            yield Prediction(name, logits, geometry, self._read(place, "label"))

    def image(self, place: int) -> Tensor | None:
        """The image (3,H,W) of that place, where pictures are asked for."""
        return None if self.pictures is None else image_tensor(self.pictures.read_for_evaluation(place).image)

    def _read(self, place: int, what: str) -> NDArray[Any]:
        array: NDArray[Any] = np.load(self._file(place, what), allow_pickle=False)
        return array

    def _file(self, place: int, what: str) -> Path:
        return self.folder / f"{place:06d}-{what}.npy"


def _laid(geometry: Geometry, logits: Tensor) -> tuple[Tensor, Grid]:
    return label_grid(logits, geometry)


def labelled_data(road: Road, folder: Path, progress: Progress, *, pictures: bool) -> FittingData:
    """The logits and labels of all images of a road, made or read once."""
    data = FittingData(folder, progress, road.dataset if pictures else None)
    progress.start("collecting logits", len(road.dataset))
    for prediction in road.stream():
        data.add(prediction)
        progress.advance()
    progress.finish()
    return data


@dataclass(frozen=True)
class Mixer:
    """PseudoCal's data: logits of mixes of two images, and the label that the two unmixed images give. No label file.

    Both are at the network's input size: two images of other sizes on disk are one size there.
    """

    loaded: LoadedNetwork
    dataset: SegmentationDataset
    options: Predict
    device: torch.device
    share: float
    seed: int

    def data(self, folder: Path, progress: Progress) -> FittingData:
        """Two forward passes an image: the image, and the mix whose larger part it is."""
        sizes = self._look(folder, progress)
        pairs = mixing_pairs(sizes, self.seed)
        data = FittingData(folder, progress)
        progress.start("mixing images", len(pairs))
        for prediction in self._predict(self._mixes(pairs, folder)):
            data.add(prediction)
            progress.advance()
        progress.finish()
        return data

    def _look(self, folder: Path, progress: Progress) -> list[tuple[int, int]]:
        """The input size of every image; the classes that the network sees in it are laid down in `folder`."""
        progress.start("looking at images", len(self.dataset))
        sizes = []
        bare: Iterator[Sample] = (
            (name, image, None, _size(image)) for name, image, _, _ in evaluation_samples(self.dataset)
        )
        for place, one in enumerate(self._predict(bare)):
            classes, _ = decide_image(*label_grid(one.logits, one.geometry))
            with disk_errors(folder):
                np.save(folder / f"{place:06d}-seen.npy", classes.to(torch.uint8).numpy())
            sizes.append(one.geometry.in_hw)
            progress.advance()
        progress.finish()
        return sizes

    def _mixes(self, pairs: list[tuple[int, int]], folder: Path) -> Iterator[Sample]:
        for pair in pairs:
            first, second = (image_tensor(self.dataset.read_for_evaluation(place).image) for place in pair)
            seen = (torch.from_numpy(np.load(folder / f"{place:06d}-seen.npy", allow_pickle=False)) for place in pair)
            name = "+".join(self.dataset.items[place].id for place in pair)
            image = mixed(first, second, self.share)[None]
            yield name, image, mixed_label(*seen).numpy(), _size(image)

    def _predict(self, samples: Iterator[Sample]) -> Iterator[Prediction]:
        return predict(
            self.loaded.network,
            samples,
            device=self.device,
            views=views_of(self.options),
            amp=self.options.amp,
            dtype=self.options.logits_dtype,
        )


def _size(image: Tensor) -> tuple[int, int]:
    return int(image.shape[-2]), int(image.shape[-1])
