"""Small datasets with the quirks of the real ones, and a PNG encoder for depths that Pillow does not write."""

import struct
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


def save(path: Path, pixels: np.ndarray, palette: list[int] | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(pixels)
    if palette is not None:
        picture = Image.frombytes("P", (pixels.shape[1], pixels.shape[0]), pixels.tobytes())
        picture.putpalette(palette)
    picture.save(path)
    return path


@pytest.fixture(scope="session")
def save_png() -> Callable[..., Path]:
    return save


def picture(hw: tuple[int, int], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*hw, 3), dtype=np.uint8)


@pytest.fixture(scope="session")
def make_picture() -> Callable[..., np.ndarray]:
    return picture


def png_bytes(samples: np.ndarray, *, depth: int = 16, filters: list[int] | None = None, interlace: int = 0) -> bytes:
    """A PNG of samples (H,W,channels) with the filter of each line given; written from the specification."""
    height, width, channels = samples.shape
    lines = _lines(samples, depth)
    step = max(1, channels * depth // 8)
    above, body = bytes(len(lines[0])), b""
    for number, line in enumerate(lines):
        kind = filters[number % len(filters)] if filters else 0
        body += bytes([kind]) + _filtered(kind, line, above, step)
        above = line
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, interlace)
    packed = zlib.compress(body)
    half = len(packed) // 2  # two data chunks, as large files have
    chunks = [(b"IHDR", header), (b"IDAT", packed[:half]), (b"IDAT", packed[half:]), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )


def _lines(samples: np.ndarray, depth: int) -> list[bytes]:
    if depth == 16:
        return [line.astype(">u2").tobytes() for line in samples]
    if depth == 8:
        return [line.astype(np.uint8).tobytes() for line in samples]
    bits = [
        [int(value) >> shift & 1 for value in line.ravel() for shift in range(depth - 1, -1, -1)] for line in samples
    ]
    return [np.packbits(line).tobytes() for line in bits]


def _filtered(kind: int, line: bytes, above: bytes, step: int) -> bytes:
    done = bytearray()
    for place, value in enumerate(line):
        left = line[place - step] if place >= step else 0
        corner = above[place - step] if place >= step else 0
        up = above[place]
        estimate = left + up - corner
        nearest = min((left, up, corner), key=lambda one: abs(estimate - one))
        done.append((value - (0, left, up, (left + up) // 2, nearest)[kind]) % 256)
    return bytes(done)


@pytest.fixture(scope="session")
def encode_png() -> Callable[..., bytes]:
    return png_bytes


@pytest.fixture
def touched() -> Iterator[list[str]]:
    """Every path that Python opens, lists or walks while the test runs."""
    seen: list[str] = []
    _LISTENERS.append(seen)
    yield seen
    _LISTENERS.remove(seen)


_LISTENERS: list[list[str]] = []


def _listen(event: str, arguments: tuple[object, ...]) -> None:
    if _LISTENERS and event in ("open", "os.listdir", "os.scandir"):
        for seen in _LISTENERS:
            seen.append(str(arguments[0]))


sys.addaudithook(_listen)  # cannot be taken away again, hence the list of listeners


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """A `folders` dataset: 3 train images, labels 0 to 2 and 255; train/c has no label, label z no image."""
    for name, seed in (("a", 0), ("b/one", 1), ("c", 2)):
        save(tmp_path / f"train/images/{name}.png", picture((6, 8), seed))
        if name != "c":
            label = np.random.default_rng(seed).integers(0, 3, (6, 8), dtype=np.uint8)
            label[0, 0] = 255
            save(tmp_path / f"train/labels/{name}.png", label)
    save(tmp_path / "train/labels/z.png", np.zeros((6, 8), np.uint8))
    save(tmp_path / "test/images/t.jpg", picture((5, 7), 3))
    return tmp_path


@pytest.fixture
def many(tmp_path: Path) -> Path:
    """A `folders` dataset: 5 labelled train images of 12x16, the images' red channel encoding the label."""
    for number in range(5):
        rng = np.random.default_rng(number)
        label = np.kron(rng.integers(0, 3, (3, 4), dtype=np.uint8), np.ones((4, 4), np.uint8))
        image = picture((12, 16), number)
        image[..., 0] = label * 100
        save(tmp_path / f"many/train/images/{number}.png", image)
        save(tmp_path / f"many/train/labels/{number}.png", label)
    return tmp_path / "many"
