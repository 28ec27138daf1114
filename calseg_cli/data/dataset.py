"""Owns a list of images as a torch dataset: files in, arrays at the network's input size out."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import Dataset

from calseg_cli.data.items import Item
from calseg_cli.data.labels import read_image, read_label
from calseg_cli.data.layout import IGNORE, Layout
from calseg_cli.errors import DataError

Size = tuple[int, int]


@dataclass(frozen=True)
class Sample:
    """One image (h,w,3) in RGB with its class indices (h,w) or None; `original_hw` is the size on disk."""

    id: str
    image: NDArray[np.uint8]
    label: NDArray[np.uint8] | None
    original_hw: Size


class SegmentationDataset(Dataset[Sample]):
    """Images, read when asked for; labels only with `with_labels`, which needs one for every image.

    `size` (height, width) is the network's input size, None the image's own. Can be pickled; holds no open file.
    `pseudo` says that the labels were made by a network and not by a person.
    """

    pseudo = False

    def __init__(self, items: Sequence[Item], layout: Layout, *, size: Size | None, with_labels: bool) -> None:
        bare = [item.id for item in items if item.label is None]
        if with_labels and bare:
            raise DataError(f"{len(bare)} images have no label, such as {bare[0]!r}", "run calseg data check")
        # Without labels their paths are forgotten, so that nothing can open them by mistake.
        self.items = list(items) if with_labels else [replace(item, label=None) for item in items]
        self.layout, self.size, self.with_labels = layout, size, with_labels

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Sample:
        return self.read(index)

    @property
    def num_classes(self) -> int:
        """How many classes a label may show."""
        return self.layout.num_classes

    def read(self, index: int) -> Sample:
        """Image and label, both at the input size: the image bilinear with antialiasing, the label by nearest pixel.

        Raises DataError when a file cannot be read or the two are of different size.
        """
        sample = self._read_native(index)
        if self.size is None:
            return sample
        label = None if sample.label is None else resized_label(sample.label, self.size)
        return replace(sample, image=resized_image(sample.image, self.size), label=label)

    def read_for_evaluation(self, index: int) -> Sample:
        """The image at the input size, the label at its own full size; raises as `read`."""
        sample = self._read_native(index)
        return sample if self.size is None else replace(sample, image=resized_image(sample.image, self.size))

    def read_image(self, which: int | str) -> NDArray[np.uint8]:
        """The pixels (H,W,3) of an image, by place or id, at its own size. Raises KeyError for an unknown id."""
        index = which if isinstance(which, int) else self._place(which)
        return read_image(self.items[index].image)

    def read_label(self, index: int) -> NDArray[np.uint8] | None:
        """The class indices (H,W) at the label's own size; None in a dataset without labels."""
        label = self.items[index].label
        return None if label is None else read_label(label, self.layout)

    def subset(self, indices: Sequence[int]) -> "SegmentationDataset":
        """The images at these places, in this order."""
        chosen = [self.items[index] for index in indices]
        return SegmentationDataset(chosen, self.layout, size=self.size, with_labels=self.with_labels)

    def count_pixels(self) -> NDArray[np.int64]:
        """The labelled pixels of each class (num_classes,), over all labels at their own size."""
        total = np.zeros(self.num_classes, np.int64)
        for index in range(len(self)):
            label = self.read_label(index)
            if label is not None:
                total += np.bincount(label.ravel(), minlength=IGNORE + 1)[: self.num_classes]
        return total

    def _read_native(self, index: int) -> Sample:
        item = self.items[index]
        image, label = read_image(item.image), self.read_label(index)
        height, width = image.shape[:2]
        if label is not None and label.shape != (height, width):
            raise DataError(
                f"{item.image} is {height}x{width}, but its label {item.label} is {label.shape[0]}x{label.shape[1]} "
                "(height x width)",
                "calseg data check names every such pair; mend them or leave them out with lists",
            )
        return Sample(item.id, image, label, (height, width))

    def _place(self, name: str) -> int:
        for index, item in enumerate(self.items):
            if item.id == name:
                return index
        raise KeyError(name)


def resized_image(image: NDArray[np.uint8], size: Size) -> NDArray[np.uint8]:
    """The image (H,W,3) at `size` (height, width): bilinear, and averaged over what one new pixel covers."""
    if image.shape[:2] == size:
        return image
    return np.array(Image.fromarray(image).resize((size[1], size[0]), Image.Resampling.BILINEAR))


def resized_label(label: NDArray[np.uint8], size: Size) -> NDArray[np.uint8]:
    """The label (H,W) at `size` (height, width), by the nearest pixel: no value is made up."""
    if label.shape == size:
        return label
    return np.array(Image.fromarray(label).resize((size[1], size[0]), Image.Resampling.NEAREST))
