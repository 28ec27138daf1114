"""Owns the reading of one image and of one label: raw pixels in, RGB or class indices out. No torch."""

import struct
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from calseg_cli.data.layout import IGNORE, MAX_RAW, Layout
from calseg_cli.data.png16 import read_png16
from calseg_cli.errors import ConfigError, DataError

_UNKNOWN = 254
# Pillow stretches grey PNGs of 2 and 4 bits over 0 to 255; labels need the values as stored.
_STRETCHED = {"L;2": 85, "L;4": 17}
_BROKEN = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, Image.DecompressionBombError)


def read_image(path: Path) -> NDArray[np.uint8]:
    """The pixels (H,W,3) in RGB as stored: a camera's turn flag is not applied, because labels follow the raw pixels.

    Grey, palette, transparent and 16-bit grey images are converted. Raises DataError when it cannot be read.
    """
    with _opened(path) as image:
        if image.mode.startswith("I;16"):
            grey = (np.asarray(image) >> 8).astype(np.uint8)
            return np.repeat(grey[..., None], 3, axis=2)
        if image.mode in ("I", "F"):
            raise DataError(f"{path} has 32 bits a pixel, which is no picture", "save it as 8-bit RGB")
        # Through RGBA, because a palette with transparency has no other road; what is transparent keeps its colour.
        straight = image.convert("RGBA") if image.mode in ("P", "PA") else image
        return np.array(straight.convert("RGB"))


def read_image_size(path: Path) -> tuple[int, int]:
    """The (height, width) that `read_image` gives, from the file's head alone. Raises DataError as that does."""
    with _opened(path) as image:
        return image.height, image.width


def read_label(path: Path, layout: Layout) -> NDArray[np.uint8]:
    """The class indices (H,W) of a label file, IGNORE where the layout ignores the value.

    Raises DataError when the file cannot be read, is of another kind than the layout's encoding, or holds values that
    the layout does not know, with their counts; ConfigError when the layout lists no classes.
    """
    classes, unknown = classified(read_raw(path, layout), layout)
    if unknown:
        shown = ", ".join(f"{value_name(value, layout)} ({count} pixels)" for value, count in list(unknown.items())[:8])
        more = f" and {len(unknown) - 8} more" if len(unknown) > 8 else ""
        raise DataError(f"{path} holds label values that are not known: {shown}{more}", mend_hint(unknown, layout))
    return classes


def read_raw(path: Path, layout: Layout) -> NDArray[np.integer]:
    """The raw values (H,W) of a label file, before any map; colours packed as 0xRRGGBB. Raises DataError."""
    if layout.encoding == "first-channel-16bit":
        return read_png16(path)[..., 0]
    with _opened(path) as image:
        if image.format == "JPEG":
            raise DataError(f"{path} is a JPEG, which changes label values", "labels must be PNG")
        if layout.encoding == "color":
            return _packed_colors(path, image)
        return _indices(path, image)


def classified(raw: NDArray[np.integer], layout: Layout) -> tuple[NDArray[np.uint8], dict[int, int]]:
    """Class indices (H,W) of raw values, and the values that the layout does not know with their pixel counts.

    Unknown values are IGNORE in the result. Raises ConfigError when the layout lists no classes.
    """
    if not layout.class_names:
        raise ConfigError(f"the dataset {layout.name!r} lists no classes, so its labels mean nothing", "set classes")
    table = _table(layout.encoding, tuple(layout.raw_classes().items()))
    classes = table[raw]
    strange = classes == _UNKNOWN
    if not strange.any():
        return classes, {}
    classes[strange] = IGNORE
    values, counts = np.unique(raw[strange], return_counts=True)
    by_count = sorted(zip(values.tolist(), counts.tolist(), strict=True), key=lambda pair: (-pair[1], pair[0]))
    return classes, dict(by_count)


def value_name(value: int, layout: Layout) -> str:
    """How a user writes a raw value: a number, or "#rrggbb"."""
    return f"#{value:06x}" if layout.encoding == "color" else str(value)


def mend_hint(unknown: dict[int, int], layout: Layout) -> str:
    """What to do about unknown values: which are valid, and the line that maps or ignores the others."""
    first = next(iter(unknown))
    if layout.encoding == "color":
        lines = ", ".join(f'"{value_name(value, layout)}": ignore' for value in list(unknown)[:8])
        known = f"{len(layout.colors)} colours are mapped"
        return f"{known}; add the rest to colors, as in {{{lines}}} or with a class name"
    known = ranges(layout.raw_classes())
    ignore = ", ".join(str(value) for value in sorted(unknown)[:8])
    return f"known values: {known}; map them with ids: {{{first}: CLASS}}, or leave them out with ignore: [{ignore}]"


def ranges(values: Iterable[int]) -> str:
    """Numbers in short.

    >>> ranges([0, 1, 2, 7, 255])
    '0-2, 7, 255'
    """
    runs: list[list[int]] = []
    for value in sorted(values):
        if runs and value == runs[-1][1] + 1:
            runs[-1][1] = value
        else:
            runs.append([value, value])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """An image, open; whatever Pillow says about a file that is missing or broken becomes one line."""
    try:
        with Image.open(path) as image:
            yield image
    except FileNotFoundError as error:
        raise DataError(f"{path} is not there", "was it moved since the command began?") from error
    except PermissionError as error:
        raise DataError(f"{path} cannot be opened: permission denied", "check the file's rights") from error
    except _BROKEN as error:
        # Pillow's own words name the file again, or an object in memory.
        reason = "it is not an image" if "cannot identify" in str(error) else str(error)
        raise DataError(f"{path} cannot be read: {reason}", "is the file whole? Copy it again") from error


def _indices(path: Path, image: Image.Image) -> NDArray[np.integer]:
    """Indices of a palette image, or values of a grey one."""
    if image.mode not in ("P", "L", "1", "I", "I;16", "I;16B", "I;16L"):
        raise DataError(
            f"{path} is a colour image ({image.mode}), but labels of encoding index have one channel",
            "for labels painted in colours set encoding: color and colors",
        )
    tiles = getattr(image, "tile", None)  # only images opened from a file have them
    stretch = _STRETCHED.get(str(tiles[0][3]), 1) if tiles else 1
    values: NDArray[np.integer] = np.asarray(image)
    if image.mode == "1":
        return values.astype(np.uint8)
    if image.mode == "I" and not 0 <= values.min() <= values.max() <= MAX_RAW:
        raise DataError(f"{path} holds label values outside 0 to {MAX_RAW}", "save labels with 8 or 16 bits")
    return values // stretch if stretch > 1 else values


def _packed_colors(path: Path, image: Image.Image) -> NDArray[np.integer]:
    if image.mode not in ("RGB", "RGBA", "P"):
        raise DataError(
            f"{path} is a grey image ({image.mode}), but labels of encoding color are painted",
            "for labels that hold class numbers set encoding: index",
        )
    straight = image.convert("RGBA") if image.mode == "P" else image
    color = np.asarray(straight.convert("RGB")).astype(np.int32)
    packed: NDArray[np.int32] = color[..., 0] << 16 | color[..., 1] << 8 | color[..., 2]
    return packed


@lru_cache(maxsize=8)
def _table(encoding: str, pairs: tuple[tuple[int, int], ...]) -> NDArray[np.uint8]:
    """Class by raw value. For colours 16 MiB, which is a hundred times as quick as sorting each label's colours."""
    table = np.full(1 << 24 if encoding == "color" else MAX_RAW + 1, _UNKNOWN, np.uint8)
    for raw, index in pairs:
        table[raw] = index
    table.flags.writeable = False
    return table
