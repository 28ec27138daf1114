"""Owns the mixing of two domains: masks that say which pixels of a source image are pasted, and the pasting."""

import math

import torch
from torch import Tensor

from calseg_cli.data.layout import IGNORE

_BOX_DRAWS = 3


def class_mix_masks(labels: Tensor, generator: torch.Generator, first: int = 0) -> Tensor:
    """Masks (B,1,H,W) bool of the pixels to paste from images with these `labels` (B,H,W), on the labels' device.

    Of the n classes that an image shows, ceil(n/2) are drawn and all their pixels are True. Olsson et al. 2021
    (ClassMix); Tranheden et al. 2021 (DACS). The classes are listed for each image and not for the whole batch, as
    DAFormer's code does. Where an image shows one class, all or nothing would be pasted: a box of about half the
    area takes its place, with a random ratio of its sides, as French et al. 2020 draw it (CutMix for segmentation).

    A pixel of the label 255 is never True. `generator` is on the CPU. Every image takes the same number of draws,
    so that a mask depends on the generator, on its own label and on its place in the batch alone. The first image's
    place is `first`, where these are a part of a batch.

    >>> labels = torch.tensor([[[0, 1, 1, 255]]])
    >>> class_mix_masks(labels, torch.Generator().manual_seed(0)).int().tolist()
    [[[[0, 1, 1, 0]]]]
    """
    for _ in range(first):
        _draws(generator)
    return torch.stack([_class_mix_mask(label, _draws(generator)) for label in labels])[:, None]


def mixed(source: Tensor, target: Tensor, masks: Tensor) -> Tensor:
    """`source` where `masks` (B,1,H,W) are True and `target` elsewhere: images or probabilities (B,C,H,W), or labels.

    Labels and weights are (B,H,W). Both keep their values bit for bit. `mixed(target, source, masks)` is the
    complement: between the two results every pixel of either domain occurs exactly once.
    """
    return torch.where(masks if source.ndim == 4 else masks[:, 0], source, target)


def _draws(generator: torch.Generator) -> Tensor:
    """A key for each value below IGNORE, then what a box needs."""
    return torch.rand(IGNORE + _BOX_DRAWS, generator=generator, dtype=torch.float64)


def _class_mix_mask(label: Tensor, draws: Tensor) -> Tensor:
    classes = torch.unique(label).cpu()
    classes = classes[classes != IGNORE]
    if len(classes) < 2:
        return _box(label.shape, draws[IGNORE:]).to(label.device) & (label != IGNORE)
    # The classes with the smallest keys are a random choice, whichever others there are.
    chosen = classes[draws[classes].argsort()[: math.ceil(len(classes) / 2)]]
    pasted = torch.zeros(IGNORE + 1, dtype=torch.bool)
    pasted[chosen] = True
    return pasted.to(label.device)[label]


def _box(hw: torch.Size, draws: Tensor) -> Tensor:
    share, down, right = draws.tolist()
    height, width = hw
    # Both sides are between half and all of the image's, and their shares multiply to one half.
    tall = math.ceil(height * 0.5**share)
    wide = max(1, round(height * width / 2 / tall))
    top, left = math.floor(down * (height - tall + 1)), math.floor(right * (width - wide + 1))
    mask = torch.zeros(height, width, dtype=torch.bool)
    mask[top : top + tall, left : left + wide] = True
    return mask
