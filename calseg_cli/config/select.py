"""Owns the section of `calseg select-checkpoint-by-ECE`: by what a checkpoint is chosen, and which ones are refused."""

from typing import Annotated, Literal

from pydantic import Field

from calseg_cli.config.section import Section, key
from calseg_cli.config.values import Bool, Int, Probability, Split


class Select(Section):
    """How one checkpoint of several is chosen."""

    by: Literal["ece", "ece-image-mean", "nll", "miou", "entropy", "snd", "value-net"] = key(
        "ece",
        "Criterion: ece, ece-image-mean, nll, miou (labels of the source); entropy, snd, value-net (no label).",
    )
    oracle: Bool = key(False, "Measure on labels of the target instead: a bound to compare with, not a choice.")
    split: Split | None = key(
        None, "Split: train, val or test; null: val of the source, train of the target, test for an oracle."
    )
    floor: Probability = key(
        0.02, "With labels: refuse a checkpoint whose mIoU is further than this below the best one's, 0 to 1."
    )
    kept_classes: Probability = key(
        0.75, "Without labels: refuse one that predicts less than this share of the classes that the start predicts."
    )
    most_moved: Probability = key(
        0.5, "Without labels: refuse one whose class shares differ from the start's by more (total variation, 0 to 1)."
    )
    max_items: Annotated[Int, Field(ge=1)] | None = key(None, "Only the first N images; null for all.")
    intervals: Int = key(
        1000, "Resamples of the images for 95 % intervals, 100 to 100000; 0 for none.", ge=0, le=100_000
    )
