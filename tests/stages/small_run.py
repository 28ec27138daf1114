"""A folder with a few small images of both domains and a configuration, on which whole stages take a blink."""

from pathlib import Path

import numpy as np
from PIL import Image

from calseg_cli.config import Resolved, load_config
from calseg_cli.engine.progress import Silent
from calseg_cli.stages.pretrain import Trained, pretrain

CONFIG = """
name: small
runs: runs
device: cpu
source: {root: data/source, classes: [road, car, sky]}
target: {root: data/target}
pretrain: {steps: 3, batch_size: 2, warmup_steps: 0, validate_every: 0}
adapt: {method: tent, tent: {steps: 3, batch_size: 2}}
"""


def make_folder(folder: Path, *, images: int = 4, size: tuple[int, int] = (48, 64)) -> Path:
    """Source with labels and target with a few of each split, drawn at random."""
    draws = np.random.default_rng(0)
    for domain in ("source", "target"):
        for split in ("train", "val", "test"):
            for number in range(images):
                place = folder / "data" / domain / split
                for kind, pixels in (
                    ("images", draws.integers(0, 256, (*size, 3), np.uint8)),
                    ("labels", draws.integers(0, 3, size, np.uint8)),
                ):
                    (place / kind).mkdir(parents=True, exist_ok=True)
                    Image.fromarray(pixels).save(place / kind / f"{number}.png")
    (folder / "calseg.yaml").write_text(CONFIG)
    return folder


def configured(folder: Path, **flags: object) -> Resolved:
    """The folder's configuration with flags, two underscores for a dot."""
    given = {key.replace("__", "."): value for key, value in flags.items()}
    return load_config(folder / "calseg.yaml", flags=given, environ={})


def trained(folder: Path, **flags: object) -> Trained:
    """`pretrain` with these flags, in this process."""
    return pretrain(configured(folder, **flags), resume=False, force=False, progress=Silent())


def tree(folder: Path) -> dict[str, tuple[int, int]]:
    """Every file and folder below, with its size and time of change."""
    return {str(path.relative_to(folder)): (path.stat().st_size, path.stat().st_mtime_ns) for path in folder.rglob("*")}
