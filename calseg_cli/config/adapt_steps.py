"""Owns the keys that every adaptation has which trains on the target, however it does so."""

from typing import Annotated, Literal

from pydantic import Field

from calseg_cli.config.section import Section, key, section
from calseg_cli.config.training import Augment
from calseg_cli.config.values import Bool, Float, Int, Positive

Weight = Annotated[Float, Field(ge=0)]


class AdaptSteps(Section):
    """What every method that trains on the target has in common."""

    batch_size: Int = key(4, "Images a step, and images normalised together; at least 1.", ge=1)
    optimizer: Literal["adamw", "sgd"] = key("adamw", "adamw or sgd.")
    weight_decay: Weight = key(0.01, "Weight decay; at least 0.")
    momentum: Float = key(0.9, "Momentum of sgd, 0 to below 1.", ge=0, lt=1)
    schedule: Literal["poly", "constant", "cosine"] = key(
        "poly", "Course of the learning rate: poly, constant, cosine."
    )
    clip_norm: Positive | None = key(None, "Largest norm of the gradient; above 0, null for no clipping.")
    amp: Literal["off", "bf16", "fp16"] = key("off", "Mixed precision: off, bf16 or fp16.")
    channels_last: Bool | None = key(None, "Keep tensors channels-last; null: as in pretrain.")
    grad_checkpoint: Bool = key(False, "Compute blocks again going backward: less memory, the same numbers, slower.")
    checkpoint_every: Int = key(50, "Steps from one resumable state to the next; 0 only when stopped.", ge=0)
    log_every: Int = key(20, "Steps from one line of the log to the next; at least 1.", ge=1)
    augment: Augment = section(Augment, "How target images are varied.")
