"""Owns augmentation: one image and its label changed together, by random numbers that are handed in."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from calseg_cli.data.layout import IGNORE
from calseg_cli.errors import ConfigError

Pixels = NDArray[np.uint8]
_LUMA = np.array([0.299, 0.587, 0.114])
# RGB to luma and two colour axes (YIQ); hue is a turn of the plane of the two.
_TO_YIQ = np.array([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])
_FROM_YIQ = np.linalg.inv(_TO_YIQ)
_HUE_TURNS = 0.2


@dataclass(frozen=True)
class Augmentation:
    """How much images are changed. `flip`, `color` and `blur` are probabilities.

    An image is resized by a factor drawn from `scale`, then a window of the size `crop` (height, width) is cut at a
    random place; without `crop` the window is as large as the image was. Where the window is larger than the resized
    image, the image lies at a random place in it, surrounded by its mean colour, and the label by IGNORE. Brightness,
    contrast and saturation are multiplied by 1 +- `color_strength`, hue is turned by up to a fifth of that share of a
    whole turn. `blur_sigma` is the range of the blur in pixels.
    """

    scale: tuple[float, float] = (1.0, 1.0)
    crop: tuple[int, int] | None = None
    flip: float = 0.5
    color: float = 0.0
    color_strength: float = 0.5
    blur: float = 0.0
    blur_sigma: tuple[float, float] = (0.2, 1.5)

    def __post_init__(self) -> None:
        if not 0 < self.scale[0] <= self.scale[1]:
            raise ConfigError(f"augment.scale: {list(self.scale)} is not a range above 0", "write [low, high]")
        if self.crop is not None and min(self.crop) < 1:
            raise ConfigError(f"augment.crop: {list(self.crop)} is not a size", "write [height, width]")


PLAIN = Augmentation(flip=0.0)


def augment(
    image: Pixels, label: Pixels | None, augmentation: Augmentation, rng: np.random.Generator
) -> tuple[Pixels, Pixels | None]:
    """The changed image (h,w,3) and its label (h,w), whose values are the label's own or IGNORE.

    The same number of draws is made whatever the settings, so that switching one off leaves the others as they were.
    """
    draws = rng.random(12)
    window = _window(image.shape[:2], augmentation, draws[:3])
    mirrored = bool(draws[3] < augmentation.flip)
    picture = window.cut(Image.fromarray(image), Image.Resampling.BILINEAR)
    if draws[4] < augmentation.color:
        picture = jittered(picture, augmentation.color_strength, 2 * draws[5:9] - 1)
    if draws[9] < augmentation.blur:
        low, high = augmentation.blur_sigma
        picture = picture.filter(ImageFilter.GaussianBlur(low + (high - low) * float(draws[10])))
    mean = tuple(round(value) for value in np.asarray(picture).mean(axis=(0, 1))) if window.pads else (0, 0, 0)
    changed = _placed(np.asarray(picture), window, mean, mirrored)
    if label is None:
        return changed, None
    cut = window.cut(Image.fromarray(label), Image.Resampling.NEAREST)
    return changed, _placed(np.asarray(cut), window, (IGNORE,), mirrored)


@dataclass(frozen=True)
class _Window:
    """A box (left, top, right, bottom) of the original, shown at `shown` (h,w), at `place` within `size` (h,w)."""

    box: tuple[float, float, float, float]
    shown: tuple[int, int]
    place: tuple[int, int]
    size: tuple[int, int]

    @property
    def pads(self) -> bool:
        return self.shown != self.size

    def cut(self, picture: Image.Image, resampling: Image.Resampling) -> Image.Image:
        """Only what the window shows is resized."""
        return picture.resize((self.shown[1], self.shown[0]), resampling, box=self.box)


def _window(hw: tuple[int, ...], augmentation: Augmentation, draws: NDArray[np.float64]) -> _Window:
    low, high = augmentation.scale
    factor = low + (high - low) * float(draws[0])
    size = augmentation.crop or (hw[0], hw[1])
    rows, columns = (
        _span(length, max(1, round(length * factor)), room, float(draw))
        for length, room, draw in zip(hw, size, draws[1:], strict=True)
    )
    box = (columns.low, rows.low, columns.high, rows.high)
    return _Window(box, (rows.shown, columns.shown), (rows.place, columns.place), size)


@dataclass(frozen=True)
class _Span:
    """One axis of a window."""

    low: float
    high: float
    shown: int
    place: int


def _span(length: int, resized: int, room: int, draw: float) -> _Span:
    """Where along one axis `room` pixels of the `resized` ones are taken, in units of the original's `length`."""
    shown = min(resized, room)
    offset = math.floor(draw * (abs(resized - room) + 1))
    if resized <= room:
        return _Span(0.0, float(length), shown, offset)
    unit = length / resized
    return _Span(offset * unit, min((offset + shown) * unit, float(length)), shown, 0)


def _placed(pixels: Pixels, window: _Window, fill: tuple[int, ...], mirrored: bool) -> Pixels:
    if mirrored:
        pixels = pixels[:, ::-1]
    if not window.pads:
        return np.ascontiguousarray(pixels)
    whole = np.empty((*window.size, *pixels.shape[2:]), np.uint8)
    whole[...] = fill if pixels.ndim == 3 else fill[0]
    top, left = window.place
    whole[top : top + window.shown[0], left : left + window.shown[1]] = pixels
    return whole


def jittered(picture: Image.Image, strength: float, draws: NDArray[np.float64]) -> Image.Image:
    """The picture with another brightness, contrast, saturation and hue; `draws` are four numbers in [-1, 1].

    All four are affine in RGB, so they are one 3x4 matrix and the result is rounded and cut to 0..255 only once.
    """
    brightness, contrast, saturation = np.maximum(1 + strength * draws[:3], 0.0)
    turn = 2 * math.pi * _HUE_TURNS * strength * draws[3]
    mean = float(np.asarray(picture.convert("L")).mean()) * brightness
    cosine, sine = math.cos(turn) * saturation, math.sin(turn) * saturation
    colors = _FROM_YIQ @ np.array([[1, 0, 0], [0, cosine, -sine], [0, sine, cosine]]) @ _TO_YIQ
    matrix = brightness * contrast * colors
    shift = (1 - contrast) * mean  # the same for all three: contrast works around the mean grey
    rows = np.concatenate([matrix, np.full((3, 1), shift)], axis=1)
    return picture.convert("RGB", tuple(float(value) for value in rows.ravel()))
