"""Owns pictures of predictions: arrays uint8 (H,W,3) and PNG files."""

import io
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib import colormaps
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from calseg_cli.artifacts.whole_file import write_whole
from calseg_cli.report.data import Color, Picture

IGNORED_COLOR: Color = (0, 0, 0)
CONFIDENCE_COLORS = "viridis"
CORRECT_UNSURE, CORRECT_SURE = (206, 222, 230), (242, 243, 245)
WRONG_UNSURE, WRONG_SURE = (255, 214, 120), (196, 8, 32)
TOO_SURE, HONEST, TOO_UNSURE = (196, 8, 32), (247, 247, 246), (0, 105, 100)
UNLABELLED: Color = (158, 166, 178)


def colorize(labels: NDArray[Any], palette: Sequence[Color], ignore: int) -> Picture:
    """Each class index (H,W) in its colour, `ignore` in black. Raises ValueError for any other index.

    >>> colorize(np.array([[1, 255]]), [(9, 9, 9), (1, 2, 3)], 255).tolist()
    [[[1, 2, 3], [0, 0, 0]]]
    """
    ignored = labels == ignore
    outside = ~ignored & ((labels < 0) | (labels >= len(palette)))
    if outside.any():
        raise ValueError(f"class {int(labels[outside][0])} has no colour: the palette has {len(palette)}")
    table = np.array([*palette, IGNORED_COLOR], dtype=np.uint8).reshape(-1, 3)
    return table[np.where(ignored, len(palette), labels)]


def overlay(image: Picture, colors: Picture, alpha: float = 0.55) -> Picture:
    """Colours laid over an image: `alpha` 0 is the image alone, 1 the colours alone.

    >>> overlay(np.full((1, 1, 3), 100, np.uint8), np.full((1, 1, 3), 200, np.uint8), alpha=0.25).tolist()
    [[[125, 125, 125]]]
    """
    if image.shape != colors.shape:
        raise ValueError(f"image {image.shape} and colours {colors.shape} differ in shape")
    mixed = image.astype(np.float64) * (1 - alpha) + colors.astype(np.float64) * alpha
    return np.rint(mixed).astype(np.uint8)


def confidence_map(confidence: NDArray[Any], *, lowest: float = 0.0) -> Picture:
    """Confidence (H,W) in viridis from dark (`lowest`, such as 0 or 1/C) to yellow (1), never rescaled by picture.

    NaN is grey.
    """
    scaled = np.clip((confidence.astype(np.float64) - lowest) / (1 - lowest), 0, 1)
    colors: Picture = colormaps[CONFIDENCE_COLORS](np.nan_to_num(scaled), bytes=True)[..., :3]
    return np.where(np.isnan(scaled)[..., None], np.uint8(UNLABELLED[0]), colors)


def error_map(wrong: NDArray[np.bool_], confidence: NDArray[Any], ignored: NDArray[np.bool_]) -> Picture:
    """Where the prediction is wrong, the louder the surer: pale yellow (unsure) to red (sure); all (H,W).

    Right pixels are nearly white, unlabelled ones grey.
    """
    sure = np.clip(np.nan_to_num(confidence.astype(np.float64)), 0, 1)[..., None]
    right = _between(CORRECT_UNSURE, CORRECT_SURE, sure)
    colors = np.where(wrong[..., None], _between(WRONG_UNSURE, WRONG_SURE, sure), right)
    return np.where(ignored[..., None], np.array(UNLABELLED, dtype=np.uint8), colors)


def confidence_error(
    wrong: NDArray[np.bool_], confidence: NDArray[Any], ignored: NDArray[np.bool_]
) -> NDArray[np.float32]:
    """Confidence minus 1 where right, minus 0 where wrong: (H,W) in [-1,1], NaN where ignored or not known.

    >>> confidence_error(np.array([[True, False]]), np.array([[0.75, 0.75]]), np.zeros((1, 2), bool)).tolist()
    [[0.75, -0.25]]
    """
    return np.where(ignored, np.nan, confidence - ~wrong).astype(np.float32)


def shrink(values: NDArray[np.float32], width: int) -> NDArray[np.float32]:
    """Values (H,W) made `width` wide by the mean of those that are known; NaN where fewer than half of an area are."""
    height = max(1, round(values.shape[0] * width / values.shape[1]))
    known = ~np.isnan(values)
    total, share = (
        np.asarray(Image.fromarray(part.astype(np.float32)).resize((width, height), Image.Resampling.BOX))
        for part in (np.nan_to_num(values), known)
    )
    mean: NDArray[np.float32] = np.divide(total, share, out=np.full_like(share, np.nan), where=share >= 0.5)
    return mean


def confidence_error_map(error: NDArray[Any]) -> Picture:
    """A confidence error (H,W) in [-1,1]: red above 0 (too sure), teal below (too unsure), nearly white at 0.

    The scale is the same for every picture; NaN is grey.
    """
    known = np.clip(np.nan_to_num(error.astype(np.float64)), -1, 1)[..., None]
    colors = np.where(known > 0, _between(HONEST, TOO_SURE, known), _between(HONEST, TOO_UNSURE, -known))
    return np.where(np.isnan(error)[..., None], np.array(UNLABELLED, dtype=np.uint8), colors)


def _between(start: Color, stop: Color, position: NDArray[np.float64]) -> Picture:
    low, high = np.array(start, dtype=np.float64), np.array(stop, dtype=np.float64)
    return np.rint(low + (high - low) * position).astype(np.uint8)


def legend(names: Sequence[str], palette: Sequence[Color], *, width: int = 960, size: int = 14) -> Picture:
    """The classes' colours and names in rows that fill `width`, (H,width,3)."""
    letters, chip, gap = font(size), size + 2, size // 2
    places, x, y, row = [], gap, gap, chip + gap
    for name in names:
        wide = chip + gap + int(np.ceil(letters.getlength(name))) + 2 * gap
        if x > gap and x + wide > width:
            x, y = gap, y + row
        places.append((x, y))
        x += wide
    canvas = Image.new("RGB", (width, y + row), "white")
    draw = ImageDraw.Draw(canvas)
    for (left, top), name, color in zip(places, names, palette, strict=True):
        draw.rectangle((left, top, left + chip, top + chip), fill=color, outline=(120, 120, 120))
        draw.text((left + chip + gap, top + chip / 2), name, fill=(20, 20, 20), font=letters, anchor="lm")
    return np.asarray(canvas)


def contact_sheet(
    rows: Sequence[Sequence[Picture]], *, headers: Sequence[str] = (), captions: Sequence[str] = (), width: int = 320
) -> Picture:
    """Pictures in a grid: each scaled to `width`, one heading a column and one caption below each row."""
    size, gap = 14, 8
    columns = max((len(row) for row in rows), default=0)
    scaled = [[scale_to(picture, width) for picture in row] for row in rows]
    heights = [max((picture.shape[0] for picture in row), default=0) for row in scaled]
    line = size + gap
    top = gap + (line if headers else 0)
    total = top + sum(heights) + len(rows) * (gap + (line if captions else 0))
    canvas = Image.new("RGB", (gap + columns * (width + gap), total), "white")
    draw, letters = ImageDraw.Draw(canvas), font(size)
    for column, header in enumerate(headers):
        draw.text((gap + column * (width + gap), gap), header, fill=(20, 20, 20), font=letters)
    for index, (row, height) in enumerate(zip(scaled, heights, strict=True)):
        for column, picture in enumerate(row):
            canvas.paste(Image.fromarray(picture), (gap + column * (width + gap), top))
        if index < len(captions):
            draw.text((gap, top + height + gap // 2), captions[index], fill=(20, 20, 20), font=letters)
        top += height + gap + (line if captions else 0)
    return np.asarray(canvas)


def scale_to(picture: Picture, width: int, *, smooth: bool = True) -> Picture:
    """The picture with its width at `width`; `smooth=False` keeps exact colours, for labels."""
    height = max(1, round(picture.shape[0] * width / picture.shape[1]))
    if (height, width) == picture.shape[:2]:
        return picture
    filter_ = Image.Resampling.LANCZOS if smooth else Image.Resampling.NEAREST
    return np.asarray(Image.fromarray(picture).resize((width, height), filter_))


@cache
def font(size: int) -> ImageFont.FreeTypeFont:
    """The font that comes with matplotlib, so that every machine writes the same letters."""
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"), size)


def png_bytes(picture: Picture) -> bytes:
    """The picture as a PNG file's bytes, the same for the same picture."""
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, format="png", optimize=True)
    return stream.getvalue()


def write_png(path: Path, picture: Picture) -> None:
    """Write a picture whole or not at all, making its folder. Raises DiskFullError."""
    write_whole(path, png_bytes(picture))


def write_label_png(path: Path, labels: NDArray[np.uint8], palette: Sequence[Color]) -> None:
    """Write class indices (H,W) as an indexed PNG: the values stay indices, the palette gives viewers colours.

    Indices past the palette, such as the ignore value, are black.
    """
    if labels.dtype != np.uint8 or len(palette) > 256:
        raise ValueError("an indexed PNG holds uint8 indices and at most 256 colours")
    picture = Image.fromarray(labels).convert("L")
    picture.putpalette(bytes(value for color in palette for value in color) + bytes(768 - 3 * len(palette)))
    stream = io.BytesIO()
    picture.save(stream, format="png", optimize=False)
    write_whole(path, stream.getvalue())
