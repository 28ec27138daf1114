"""Owns the section of `calseg train-valuenet`: what a value net expects, on which images it learns it, and how."""

from typing import Annotated, Literal

from pydantic import Field

from calseg_cli.config.section import Section, key, section
from calseg_cli.config.values import Float, Int, Positive, Probability

Share = Annotated[Float, Field(gt=0, lt=1)]


class Corrupt(Section):
    """How much worse training images are made, beyond pretrain.augment: a calibration error must vary to be learnt."""

    probability: Probability = key(0.75, "Share of training images that are made worse, 0 to 1; 0 for none.")
    strength: Probability = key(1.0, "Strength of the strongest change, 0 to 1.")


class ValueNetSection(Section):
    """How a value net is trained: a small net that expects an image's calibration error from frozen features."""

    target: Literal["image", "class"] = key(
        "image", "What it expects: image, the ECE of the image's pixels; class, the mean over classes of their ECEs."
    )
    bins: Int = key(10, "Bins of that ECE, 1 to 100.", ge=1, le=100)
    fit_split: Literal["train", "val"] = key(
        "train", "Labelled source images to learn on: train; or val, whose last part is then held out."
    )
    hold_out: Share = key(0.5, "fit_split val: the last share of val's images, held out to measure; above 0, below 1.")
    steps: Int = key(300, "Optimiser steps; at least 1.", ge=1)
    batch_size: Int = key(4, "Images a step; at least 1.", ge=1)
    lr: Positive = key(1e-4, "Learning rate of AdamW at its highest; above 0, at most 1000.", le=1000)
    weight_decay: Float = key(0.01, "Weight decay; at least 0.", ge=0)
    loss: Literal["squared", "logit"] = key(
        "squared", "Squared error of the ECE, or of its standardised logit, which weighs small ECEs more."
    )
    statistics: Literal["pooled", "batch"] = key(
        "pooled", "Batch norm while training: statistics of many images, measured before; or those of each batch."
    )
    pooling: Literal["average", "bilinear"] = key(
        "average", "Features to 4x4: average, all of them; bilinear, a few points as in the paper's code."
    )
    corrupt: Corrupt = section(Corrupt, "How much worse training images are made.")
    measure_strength: Probability = key(0.6, "Strength of the fixed changes that it is measured under, 0 to 1.")
    max_items: Annotated[Int, Field(ge=1)] | None = key(
        None, "Measured on the first N held-out images only; null for all."
    )
    checkpoint_every: Int = key(50, "Steps from one resumable state to the next; 0 only when stopped.", ge=0)
    log_every: Int = key(20, "Steps from one line of the log to the next; at least 1.", ge=1)
