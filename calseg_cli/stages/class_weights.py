"""Owns the weights of classes in the loss on labelled source images, from the configuration's word or numbers."""

from typing import Literal

import torch
from torch import Tensor

from calseg_cli.data.dataset import SegmentationDataset
from calseg_cli.errors import ConfigError
from calseg_cli.methods.source import inverse_frequency_weights

Asked = Literal["none", "inverse", "sqrt-inverse"] | tuple[float, ...]


def class_weights(asked: Asked, dataset: SegmentationDataset, key: str) -> Tensor | None:
    """Weights (C,) float32, or None for "none"; frequencies are those of the dataset's labels.

    Raises ConfigError, naming `key`, where there is not one number a class.
    """
    if asked == "none":
        return None
    if not isinstance(asked, str):
        if len(asked) != dataset.num_classes:
            raise ConfigError(
                f"{key} holds {len(asked)} numbers for {dataset.num_classes} classes",
                "give one number a class, in the order of the classes",
            )
        return torch.tensor(asked, dtype=torch.float32)
    pixels = torch.from_numpy(dataset.count_pixels())
    return inverse_frequency_weights(pixels, power=0.5 if asked == "sqrt-inverse" else 1.0)
