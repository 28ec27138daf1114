"""Owns the sample data: two domains of drawn streets, by day and at a hazy dusk, written as folders of PNG."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from calseg_cli.data.street import FAR, HEIGHT, WIDTH, Street, draw_street
from calseg_cli.errors import DataError, disk_errors

SAMPLE_CLASSES = (
    "road",
    "marking",
    "sidewalk",
    "building",
    "vegetation",
    "sky",
    "pole",
    "sign",
    "car",
    "person",
)
SAMPLE_PALETTE = (
    (110, 88, 122),
    (240, 240, 220),
    (218, 120, 190),
    (128, 98, 78),
    (86, 142, 62),
    (112, 178, 226),
    (250, 150, 40),
    (250, 220, 30),
    (30, 60, 190),
    (220, 30, 50),
)
_ROLES = ("train", "val", "test")

Range = tuple[float, float]


@dataclass(frozen=True)
class Appearance:
    """How a domain looks. Each range is drawn from once an image.

    `gain` multiplies brightness before `gamma`; `warmth` moves light from blue to red; `haze` is extinction per metre
    towards a light of `airlight` grey levels; `blur` is a sigma in pixels and `noise` one in grey levels.
    """

    gain: Range
    gamma: Range
    warmth: Range
    haze: Range
    airlight: Range
    blur: Range
    noise: Range


DAY = Appearance(
    gain=(0.86, 1.1),
    gamma=(0.92, 1.08),
    warmth=(-0.04, 0.05),
    haze=(0.0005, 0.003),
    airlight=(205, 225),
    blur=(0.0, 0.35),
    noise=(1.5, 4.0),
)
DUSK = Appearance(
    gain=(0.54, 0.82),
    gamma=(1.0, 1.22),
    warmth=(-0.18, -0.04),
    haze=(0.006, 0.016),
    airlight=(115, 155),
    blur=(0.25, 0.7),
    noise=(3.5, 7.0),
)


def write_sample_data(
    folder: Path,
    *,
    seed: int = 0,
    train: int = 120,
    val: int = 40,
    test: int = 40,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write source/{train,val,test} and target/{train,test} below `folder`, each with images/ and labels/.

    PNG of 96x160 pixels; labels hold class indices of SAMPLE_CLASSES. The target's train split has no labels, as a
    target has none. The same seed gives the same files. `progress` hears (images written, images in all). Raises
    DataError when the folder holds a source or target already.
    """
    for domain in ("source", "target"):
        if (folder / domain).exists():
            raise DataError(f"{folder / domain} exists already", "choose a new folder, or remove this one first")
    counts = {"train": train, "val": val, "test": test}
    total = sum(counts.values()) + train + test
    with disk_errors(folder):
        for number, (path, street, image) in enumerate(_pictures(seed, counts), start=1):
            labels = None if path.startswith("target/train/") else street.labels
            _write(folder, path, image, labels)
            if progress is not None:
                progress(number, total)


def _pictures(seed: int, counts: dict[str, int]) -> Iterator[tuple[str, Street, NDArray[np.uint8]]]:
    """Every image of both domains with its path; no scene occurs in both."""
    for number, (domain, appearance) in enumerate((("source", DAY), ("target", DUSK))):
        for role, split in enumerate(_ROLES):
            if (domain, split) == ("target", "val"):
                continue
            for index in range(counts[split]):
                rng = np.random.default_rng((seed, number, role, index))
                street = draw_street(rng)
                yield f"{domain}/{split}/images/{index:04d}.png", street, photograph(street, appearance, rng)


def photograph(street: Street, appearance: Appearance, rng: np.random.Generator) -> NDArray[np.uint8]:
    """What a camera sees of a street under an appearance: RGB bytes (H,W,3)."""
    gain, gamma, warmth = (rng.uniform(*part) for part in (appearance.gain, appearance.gamma, appearance.warmth))
    lit = 255 * (street.colors / 255 * gain).clip(0, 1) ** gamma
    clear = np.exp(-rng.uniform(*appearance.haze) * np.minimum(street.metres, FAR))[..., None]
    hazy = lit * clear + rng.uniform(*appearance.airlight) * (1 - clear)
    tinted = hazy * np.array([1 + warmth, 1.0, 1 - warmth], np.float32)
    soft = Image.fromarray(tinted.clip(0, 255).astype(np.uint8)).filter(
        ImageFilter.GaussianBlur(rng.uniform(*appearance.blur))
    )
    noise = rng.uniform(*appearance.noise) * rng.standard_normal((HEIGHT, WIDTH, 3), dtype=np.float32)
    seen: NDArray[np.uint8] = (np.asarray(soft) + noise).round().clip(0, 255).astype(np.uint8)
    return seen


def _write(folder: Path, path: str, image: NDArray[np.uint8], labels: NDArray[np.uint8] | None) -> None:
    file = folder / path
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(file)
    if labels is not None:
        file = folder / path.replace("/images/", "/labels/")
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(labels).save(file)
