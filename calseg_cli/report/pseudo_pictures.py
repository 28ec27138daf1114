"""Owns pictures of labels that leave pixels out: what is ignored must not look like a class."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calseg_cli.report.data import Color, Picture
from calseg_cli.report.pictures import colorize, overlay

STRIPE: tuple[Color, Color] = ((255, 255, 255), (176, 182, 192))
_STRIPE_WIDTH = 3  # pixels, measured along a row
_GREY = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601 luma


def striped_labels(labels: NDArray[Any], palette: Sequence[Color], ignore: int) -> Picture:
    """Each class index (H,W) in its colour, ignored pixels in white and grey stripes that no flat colour resembles.

    >>> striped_labels(np.array([[0, 255, 255]]), [(1, 2, 3)], 255)[0].tolist()
    [[1, 2, 3], [255, 255, 255], [255, 255, 255]]
    """
    rows, columns = np.indices(labels.shape)
    stripes = np.array(STRIPE, dtype=np.uint8)[(rows + columns) // _STRIPE_WIDTH % 2]
    return np.where((labels == ignore)[..., None], stripes, colorize(labels, palette, ignore))


def believed_overlay(image: Picture, labels: NDArray[Any], palette: Sequence[Color], ignore: int) -> Picture:
    """The classes' colours laid over an image (H,W,3) where there is one; the image in grey where it is ignored."""
    grey = np.rint(image @ _GREY).astype(np.uint8)[..., None].repeat(3, axis=-1)
    return np.where((labels == ignore)[..., None], grey, overlay(image, colorize(labels, palette, ignore)))
