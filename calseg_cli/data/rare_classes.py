"""Owns rare-class sampling: source images are drawn by a class, and rare classes are drawn more often."""

from functools import partial

import numpy as np
from numpy.typing import NDArray

from calseg_cli.data.dataset import SegmentationDataset, resized_label
from calseg_cli.data.layout import IGNORE
from calseg_cli.data.ordered import read_ahead
from calseg_cli.errors import ConfigError, DataError

_RARE = 2  # what a random stream is for; the loader's own have 0 and 1


class RareClassSampler:
    """Draws a class by its rarity and then one of the images that show it. Hoyer et al. 2022 (DAFormer).

    All labels of `dataset` are read once, at the network's input size, by `workers` processes (0: one thread).
    `probabilities` (num_classes,) float64 are those of `class_probabilities`. An image shows a class if it has at
    least `min_pixels` of it; where none has, the image with most of it stands for the class. Can be pickled and holds
    no dataset.

    Raises DataError when a label cannot be read or no label shows any class, ConfigError for a temperature that is
    not above 0.
    """

    def __init__(
        self, dataset: SegmentationDataset, temperature: float = 0.01, min_pixels: int = 3000, workers: int = 0
    ) -> None:
        if not dataset.with_labels:
            raise ValueError("rare classes are found in labels")
        counts = _pixels_by_image(dataset, workers)
        if not counts.any():
            raise DataError("no label shows any class, so none can be drawn", "check the source's root and splits")
        self.num_images = len(dataset)
        self.probabilities = class_probabilities(counts.sum(0), temperature)
        self._images = [_images_with(counts[:, label], min_pixels) for label in range(counts.shape[1])]
        cumulative = self.probabilities.cumsum()
        self._cumulative = cumulative / cumulative[-1]

    def draw(self, seed: int, step: int, slot: int) -> tuple[int, int]:
        """The place of an image in the dataset and the class it was drawn for; they follow from the arguments alone."""
        by_class, by_image = np.random.default_rng((seed, _RARE, step, slot)).random(2)
        label = int(np.searchsorted(self._cumulative, by_class, side="right"))
        images = self._images[label]
        return int(images[int(by_image * len(images))]), label


def class_probabilities(pixels: NDArray[np.int64], temperature: float) -> NDArray[np.float64]:
    """P(c) = softmax((1 - f_c) / temperature) over the classes that occur, 0 for the others. Hoyer et al. 2022.

    `pixels` (C,) counts each class's pixels and f_c is its share of them. A high temperature makes all classes
    alike, a low one leaves the rarest. Raises ConfigError where it is not above 0.

    >>> class_probabilities(np.array([60, 40, 0]), 0.1).round(4).tolist()
    [0.1192, 0.8808, 0.0]
    """
    if not temperature > 0:
        raise ConfigError(f"rare classes: the temperature {temperature} is not above 0", "DAFormer takes 0.01")
    logits = np.where(pixels > 0, (1 - pixels / pixels.sum()) / temperature, -np.inf)
    odds = np.exp(logits - logits.max())
    probabilities: NDArray[np.float64] = odds / odds.sum()
    return probabilities


def _pixels_by_image(dataset: SegmentationDataset, workers: int) -> NDArray[np.int64]:
    """(images, classes)."""
    return np.stack(list(read_ahead(partial(_pixels, dataset), range(len(dataset)), workers)))


def _pixels(dataset: SegmentationDataset, index: int) -> NDArray[np.int64]:
    label = dataset.read_label(index)
    if label is None:
        return np.zeros(dataset.num_classes, np.int64)
    if dataset.size is not None:
        label = resized_label(label, dataset.size)
    return np.bincount(label.ravel(), minlength=IGNORE + 1)[: dataset.num_classes]


def _images_with(pixels: NDArray[np.int64], min_pixels: int) -> NDArray[np.int64]:
    enough = np.flatnonzero(pixels >= max(1, min_pixels))
    return enough if len(enough) else np.array([pixels.argmax()])
