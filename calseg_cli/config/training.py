"""Owns the sections of supervised training: what `calseg pretrain` does, and its augmentation."""

from typing import Literal

from calseg_cli.config.section import Section, key, section
from calseg_cli.config.values import Bool, ClassWeights, Float, Int, Positive, Probability, Range, Size, Text


class Augment(Section):
    """How training images are varied; image and label move together."""

    scale: Range = key((1.0, 1.0), "Random scale [smallest, largest]; [1, 1] keeps the size.")
    crop: Size | None = key(None, "Random crop [height, width] in pixels; smaller images are padded. null: none.")
    flip: Probability = key(0.5, "Probability of mirroring left and right, 0 to 1.")
    color: Probability = key(0.5, "Probability of jittering brightness, contrast, saturation and hue, 0 to 1.")
    color_strength: Probability = key(0.3, "Strength of the colour jitter, 0 to 1.")
    blur: Probability = key(0.0, "Probability of a Gaussian blur, 0 to 1.")


class CalibrationTerm(Section):
    """The calibration error as a term of the loss (Cal-SFDA, Wang et al. 2023, arXiv 2308.03003)."""

    weight: Float = key(0.0, "Weight beside the cross-entropy; 0 leaves the term out, 1 is the paper's.", ge=0)
    start_step: Int = key(0, "Step from which it counts; the cross-entropy alone before; at least 0.", ge=0)
    over: Literal["class", "image"] = key(
        "class", "Whose error: of each true class's pixels, mean over classes; or of all the image's pixels."
    )
    bins: Int = key(10, "Bins of equal width; 1 to 1000.", ge=1, le=1000)
    binning: Literal["hard", "soft"] = key(
        "hard", "hard: a pixel is in one bin. soft: by its distance in neighbours too, differentiable, slower."
    )
    temperature: Positive = key(1e-5, "Smoothing of the largest probability; above 0, at most 1.", le=1)
    absent: Literal["count", "skip"] = key(
        "count", "Classes that an image does not hold, over: class: count as 0, or skip."
    )


class Pretrain(Section):
    """How the network is trained on the labelled source."""

    from_checkpoint: Text | None = key(
        None, "Network to start from: a checkpoint, a run, RUN/STAGE, or a stage of this run. null: network.init."
    )
    steps: Int = key(600, "Optimiser steps; at least 1.", ge=1)
    batch_size: Int = key(4, "Images a batch; at least 1.", ge=1)
    optimizer: Literal["adamw", "sgd"] = key("adamw", "adamw or sgd.")
    lr: Positive = key(2e-4, "Encoder's learning rate at its highest; above 0, at most 1000.", le=1000)
    head_lr: Positive = key(2e-3, "Head's learning rate at its highest; above 0, at most 1000.", le=1000)
    weight_decay: Float = key(0.01, "Weight decay; at least 0.", ge=0)
    momentum: Float = key(0.9, "Momentum of sgd, 0 to below 1.", ge=0, lt=1)
    schedule: Literal["poly", "constant", "cosine"] = key(
        "poly", "Course of the learning rate: poly, constant, cosine."
    )
    power: Positive = key(0.9, "Exponent of poly; above 0.")
    warmup_steps: Int = key(50, "Steps over which the learning rate rises from 0; 0 for none.", ge=0)
    clip_norm: Positive | None = key(None, "Largest norm of the gradient; above 0, null for no clipping.")
    accumulate: Int = key(1, "Batches whose gradients make one step; at least 1.", ge=1)
    amp: Literal["off", "bf16", "fp16"] = key("off", "Mixed precision: off, bf16 or fp16.")
    channels_last: Bool = key(False, "Keep tensors channels-last in memory, quicker on some devices.")
    grad_checkpoint: Bool = key(False, "Compute blocks again going backward: less memory, the same numbers, slower.")
    sync_batch_norm: Bool = key(
        True, "Under torchrun batch norm sees the batch of all processes; false: each one's own share."
    )
    class_weights: ClassWeights = key(
        "none", "Weights of the classes in the loss: none, inverse, sqrt-inverse (of frequency), or one number a class."
    )
    label_smoothing: Float = key(0.0, "Share of the target spread over all classes, 0 to below 1.", ge=0, lt=1)
    validate_every: Int = key(200, "Steps from one validation to the next; 0 only at the end.", ge=0)
    checkpoint_every: Int = key(200, "Steps from one resumable state to the next; 0 only when stopped.", ge=0)
    keep: Literal["all", "last"] = key("all", "Networks to keep: all validated ones, or the last.")
    log_every: Int = key(20, "Steps from one line of the log to the next; at least 1.", ge=1)
    ece: CalibrationTerm = section(CalibrationTerm, "The calibration error as a term of the loss; off by default.")
    augment: Augment = section(Augment, "How training images are varied.")
