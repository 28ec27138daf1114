"""Owns the options of the self-training frame: which paper's additions, which labels, how much is believed."""

from dataclasses import dataclass, field
from typing import Literal

from calseg_cli.data.strong_augmentation import StrongAugmentation
from calseg_cli.methods.self_training_labels import Labels, Trust

Base = Literal["dacs", "daformer", "mic"]
Statistics = Literal["batch", "running", "shared"]


@dataclass(frozen=True)
class Masking:
    """MIC: target images with `ratio` of their blocks hidden; side `block` in pixels, None for an eighth of the height.

    `labels` "hard" teaches the teacher's classes, "same" what the mix is taught.
    """

    block: int | None = None
    ratio: float = 0.7
    weight: float = 1.0
    labels: Literal["hard", "same"] = "hard"


@dataclass(frozen=True)
class Frame:
    """The frame's options; see docs/self_training.md. `ema` is the teacher's decay, `hard_steps` begin every run.

    `feature_classes` (None: all), `feature_ratio` and `feature_weight` are the feature distance's. `source_free`:
    target images are mixed with each other, and there is no term of the source.
    """

    base: Base = "dacs"
    labels: Labels = "hard"
    ema: float = 0.99
    trust: Trust = field(default_factory=Trust)
    statistics: Statistics = "batch"
    keep: Literal["student", "teacher"] = "student"
    source_weight: float = 1.0
    mix_weight: float = 1.0
    hard_steps: int = 0
    strong: StrongAugmentation = field(default_factory=StrongAugmentation)
    feature_weight: float = 0.005
    feature_ratio: float = 0.75
    feature_classes: tuple[int, ...] | None = None
    masking: Masking = field(default_factory=Masking)
    source_free: bool = False
