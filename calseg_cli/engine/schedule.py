"""Owns the learning rate's course: a pure function of the step, so that a resumed run cannot lose its place."""

import math
from typing import Literal

Schedule = Literal["poly", "cosine", "constant"]


def lr_factor(step: int, steps: int, *, schedule: Schedule, power: float, warmup_steps: int) -> float:
    """The factor on the base learning rate at `step` of `steps`: a linear warm-up, times a decay over all steps.

    >>> [round(lr_factor(s, 10, schedule="poly", power=1.0, warmup_steps=2), 2) for s in (0, 1, 2, 5, 9)]
    [0.5, 0.9, 0.8, 0.5, 0.1]
    """
    warmup = min(1.0, (step + 1) / warmup_steps) if warmup_steps else 1.0
    done = step / max(steps, 1)
    if schedule == "poly":
        return float(warmup * (1.0 - done) ** power)
    if schedule == "cosine":
        return warmup * 0.5 * (1.0 + math.cos(math.pi * done))
    return warmup
