"""Owns the exact reading of PNGs with 16 bits a channel, which Pillow alone cuts to 8."""

import struct
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from calseg_cli.errors import DataError

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_CHANNELS = {0: 1, 2: 3, 4: 2, 6: 4}  # by colour type; 3 is a palette, which has no 16 bits
_RAW_MODES = {"RGB;16B": ("RGB", "RGB;16L"), "RGBA;16B": ("RGBA", "RGBA;16L")}


def read_png16(path: Path) -> NDArray[np.uint16]:
    """The samples (H,W,channels) of a PNG with 16 bits a channel, exactly.

    Raises DataError when the file is missing, broken, interlaced or of another depth.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}", "run calseg data check") from error
    height, width, channels = _header(path, content)
    try:
        fast = _through_pillow(path)
        return _unpack(content, height, width, channels) if fast is None else fast
    except (OSError, SyntaxError, ValueError, zlib.error, struct.error) as error:
        raise DataError(f"{path} is broken: {error}", "is the file whole? Copy it again") from error


def _header(path: Path, content: bytes) -> tuple[int, int, int]:
    """Height, width and channels, from the first chunk."""
    if not content.startswith(_SIGNATURE) or content[12:16] != b"IHDR" or len(content) < 29:
        raise DataError(f"{path} is not a PNG", "the labels of this layout are PNGs with 16 bits a channel")
    width, height, depth, kind, _, _, interlace = struct.unpack(">IIBBBBB", content[16:29])
    if depth != 16 or kind not in _CHANNELS:
        raise DataError(
            f"{path} has {depth} bits a channel, not 16",
            "was it converted? Then set encoding: index and the ids that it holds now",
        )
    if interlace:
        raise DataError(f"{path} is interlaced, which is not read at 16 bits", "save it without interlacing")
    return height, width, _CHANNELS[kind]


def _through_pillow(path: Path) -> NDArray[np.uint16] | None:
    """High and low bytes, each by Pillow's decoder; None where Pillow describes the file in a way unknown here.

    Pillow keeps the first of two bytes (its raw mode "RGB;16B"). Asking for the same data as little-endian makes it
    keep the other one. Two of the filters, undone byte by byte below, would take seconds an image.
    """
    halves = []
    for low in (False, True):
        with Image.open(path) as image:
            raw_mode = image.tile[0][3] if image.tile else None
            if len(image.tile) != 1 or raw_mode not in _RAW_MODES:
                return None
            mode, little = _RAW_MODES[raw_mode]
            if image.mode != mode:
                return None
            if low:
                image.tile = [image.tile[0]._replace(args=little)]
            halves.append(np.asarray(image).astype(np.uint16))
    return _joined(halves[0], halves[1])


def _unpack(content: bytes, height: int, width: int, channels: int) -> NDArray[np.uint16]:
    """The samples by undoing the filters line by line (PNG specification, section 9)."""
    step = 2 * channels
    data = np.frombuffer(zlib.decompress(_image_data(content)), np.uint8)
    lines = data[: height * (width * step + 1)].reshape(height, width * step + 1)
    done = np.zeros((height + 1, width * step), np.uint8)
    for number, line in enumerate(lines):
        done[number + 1] = _unfiltered(int(line[0]), line[1:], done[number], step)
    samples = done[1:].reshape(height, width, channels, 2).astype(np.uint16)
    return _joined(samples[..., 0], samples[..., 1])


def _joined(high: NDArray[np.uint16], low: NDArray[np.uint16]) -> NDArray[np.uint16]:
    return (high * 256 + low).astype(np.uint16)


def _image_data(content: bytes) -> bytes:
    """The compressed stream: all IDAT chunks behind each other."""
    parts, place = [], len(_SIGNATURE)
    while place + 8 <= len(content):
        length, kind = struct.unpack(">I4s", content[place : place + 8])
        if kind == b"IDAT":
            parts.append(content[place + 8 : place + 8 + length])
        place += 12 + length
    return b"".join(parts)


def _unfiltered(kind: int, line: NDArray[np.uint8], above: NDArray[np.uint8], step: int) -> NDArray[np.uint8]:
    if kind == 0:
        return line
    if kind == 1:  # sums run over one byte of each pixel and wrap at 256
        return np.cumsum(line.reshape(-1, step), axis=0, dtype=np.uint8).reshape(-1)
    if kind == 2:
        return line + above
    if kind not in (3, 4):
        raise ValueError(f"unknown filter {kind}")
    return _one_after_the_other(kind, line.tolist(), above.tolist(), step)


def _one_after_the_other(kind: int, line: list[int], above: list[int], step: int) -> NDArray[np.uint8]:
    """The two filters in which every byte needs the one before it."""
    before, corner = [0] * step + line, [0] * step + above
    for place, value in enumerate(line):
        left, up = before[place], above[place]
        guess = (left + up) // 2 if kind == 3 else _paeth(left, up, corner[place])
        before[place + step] = (value + guess) & 255
    return np.array(before[step:], np.uint8)


def _paeth(left: int, up: int, corner: int) -> int:
    """Whichever neighbour is nearest to left + up - corner; ties go in that order."""
    to_left, to_up, to_corner = abs(up - corner), abs(left - corner), abs(left + up - 2 * corner)
    if to_left <= to_up and to_left <= to_corner:
        return left
    return up if to_up <= to_corner else corner
