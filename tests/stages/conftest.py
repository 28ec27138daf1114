"""Logits of five small images in a working directory, the stage that labels them, and listeners that stop it."""

import os
import signal
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from calseg_cli.artifacts.geometry import Geometry
from calseg_cli.artifacts.provenance import file_digest
from calseg_cli.artifacts.reader import open_artifact
from calseg_cli.artifacts.writer import ArtifactWriter
from calseg_cli.config import load_config
from calseg_cli.engine.progress import Silent
from calseg_cli.stages.pseudo_label import pseudo_label

NAMES = ("road", "car", "sky", "ghost")  # nothing is ever predicted as the last
PALETTE = ((128, 64, 128), (0, 0, 142), (70, 130, 180), (1, 1, 1))
SIZES = ((12, 16), (9, 7), (20, 13), (12, 16), (1, 1))
IDS = tuple(f"city/{number}" for number in range(len(SIZES)))


def logits_of(number: int, classes: int = len(NAMES)) -> np.ndarray:
    height, width = (-(-side // 4) for side in SIZES[number])
    generator = np.random.default_rng(number)
    logits = generator.normal(0, 1.5, (classes, height, width)).astype(np.float16)
    logits[3:] = -60
    return logits


def write_logits(path, order=IDS, *, protocol=None, classes=NAMES, images=None, shift=0.0):
    meta = {
        "classes": {"names": list(classes), "palette": [list(c) for c in PALETTE[: len(classes)]], "ignore": 255},
        "protocol": protocol or {"domain": "target", "split": "train", "network": "pretrain"},
        "recipe": {"stage": "predict"},
        "provenance": {},
        "config": {},
    }
    with ArtifactWriter(path, "logits", meta=meta, ids=order, force=True) as writer:
        for name in order:
            number = IDS.index(name)
            geometry = Geometry(in_hw=SIZES[number], out_hw=SIZES[number], stride=4)
            digest = file_digest(images / f"{name}.png") if images else ""
            values = logits_of(number, len(classes)) + np.float16(shift)
            writer.add_item(name, {"logits": values}, geometry, image_digest=digest)
    return path


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working directory with target images, and the logits of the run."""
    for name, (height, width) in zip(IDS, SIZES, strict=True):
        path = tmp_path / "target" / "train" / "images" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(height).integers(0, 255, (height, width, 3), np.uint8)
        Image.fromarray(pixels).save(path)
    (tmp_path / "calseg.yaml").write_text("target: {root: target}\n")
    monkeypatch.chdir(tmp_path)
    write_logits(tmp_path / "runs/run/5-predict/x-target-train.h5", images=tmp_path / "target/train/images")
    return tmp_path


def run(rule=None, *, logits=None, out=None, resume=False, force=False, progress=None, **options):
    """The stage with these options of the section, said as named options are."""
    flags = {f"pseudo_label.{key}": value for key, value in {**(rule or {}), **options}.items()}
    resolved = load_config(None, flags=flags, environ={})
    return pseudo_label(resolved, logits=logits, out=out, resume=resume, force=force, progress=progress or Silent())


def labels_in(path):
    with open_artifact(path, "pseudo_labels") as artifact:
        return {name: artifact.item(name, "label") for name in artifact.ids}


class Notes(Silent):
    """Remembers what it was told."""

    def __init__(self):
        self.told, self.titles = [], []

    def note(self, text):
        self.told.append(text)

    def start(self, title, total, *, done=0):
        self.titles.append((title, done))


class Breaker(Notes):
    """Sends a signal after so many images."""

    def __init__(self, after, signum=signal.SIGINT):
        super().__init__()
        self.left, self.signum = after, signum

    def advance(self, units=1, **facts):
        self.left -= 1
        if not self.left:
            os.kill(os.getpid(), self.signum)


@pytest.fixture
def bench(folder):
    """The helpers of this file by their names."""
    return SimpleNamespace(
        names=NAMES,
        palette=PALETTE,
        sizes=SIZES,
        ids=IDS,
        logits_of=logits_of,
        write_logits=write_logits,
        run=run,
        labels_in=labels_in,
        notes=Notes,
        breaker=Breaker,
    )
