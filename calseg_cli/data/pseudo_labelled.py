"""Owns target images with the labels that a network gave them, which lie in an artifact."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from calseg_cli.artifacts.reader import Artifact
from calseg_cli.data.dataset import Sample, SegmentationDataset, Size, resized_image, resized_label
from calseg_cli.data.items import Item
from calseg_cli.data.labels import read_image
from calseg_cli.data.layout import Layout


class PseudoLabelledDataset(SegmentationDataset):
    """Images of a dataset whose labels (h,w), 255 where none is believed, are read from a pseudo_labels artifact.

    Labels are those of the network's input size, or of any other: they are brought to it by the nearest pixel. No
    annotated label is known to it. Raises ArtifactError for an image that the artifact lacks.
    """

    pseudo = True

    def __init__(self, items: Sequence[Item], layout: Layout, *, size: Size | None, labels: Artifact) -> None:
        super().__init__(items, layout, size=size, with_labels=False)
        self.labels = labels
        self.with_labels = True
        for item in self.items:
            if item.id not in labels:
                raise labels.missing(item.id)

    def read_label(self, index: int) -> NDArray[np.uint8]:
        """The pseudo-label of an image, at the size it has in the artifact."""
        label: NDArray[np.uint8] = self.labels.item(self.items[index].id, "label")
        return label

    def read(self, index: int) -> Sample:
        """Image and pseudo-label at the network's input size."""
        item = self.items[index]
        image, label = read_image(item.image), self.read_label(index)
        height, width = image.shape[:2]
        size = self.size or (height, width)
        return Sample(item.id, resized_image(image, size), resized_label(label, size), (height, width))
