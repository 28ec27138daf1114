"""Owns the section of `calseg calibrate-prototypes`: which pixels count, what a prototype is, what is nearest."""

from typing import Annotated, Literal

from pydantic import Field

from calseg_cli.config.section import Section, key
from calseg_cli.config.values import Bool, Float, Int, Location, Probability

Share = Annotated[Float, Field(ge=1e-9, le=1)]
Weight = Annotated[Float, Field(ge=1e-9, le=1e12)]
Kept = Annotated[Float, Field(ge=0, lt=1)]


class PrototypeSection(Section):
    """How soft-label prototypes (Bohdal et al. 2023, arXiv 2307.10842) are made; the defaults are the paper's."""

    weight_power: Float = key(1.0, "A pixel weighs its confidence to this power, 0 to 16; 0: all alike.", ge=0, le=16)
    temperature: Float = key(1.0, "Of the softmax, 0.01 to 1000; above 1 softens saturated labels.", ge=0.01, le=1000)
    min_confidence: Probability = key(0.0, "Only pixels of at least this confidence count, 0 to 1.")
    top_frac: Share | None = key(
        None, "Only this most confident share of each predicted class counts; above 0, at most 1; null for all."
    )
    iterations: Int = key(1, "Times that pixels are assigned and counted, 1 to 100; the paper: once.", ge=1, le=100)
    min_pixels: Int = key(0, "A class predicted by fewer pixels has no prototype.", ge=0, le=2**53)
    prior: Float = key(
        0.0, "Weight, in pixels, of a one-hot label (or of prior_from) that each class begins with.", ge=0, le=1e12
    )
    prior_from: Location | None = key(
        None, "Prototypes of the source: classes never seen take theirs, prior is weight of them; null for none."
    )
    unseen: Literal["mask", "onehot", "source", "error"] = key(
        "mask", "Class without a prototype: mask (takes no pixel), onehot, source (from --source), or error."
    )
    shrink: Probability = key(0.0, "0: the prototypes; 1: one-hot ones, which change nothing; between: mixed.")
    distance: Literal["l2", "cosine", "hellinger", "kl"] = key("l2", "What is nearest: l2, cosine, hellinger or kl.")
    per_image: Weight | None = key(
        None, "Mix in each image's own sums, the common ones weighing so many pixels; null for not."
    )
    confidence: Literal["max", "distance"] = key(
        "max", "Confidence of corrected pixels: max (as it was) or distance (no part of the paper)."
    )
    tau: Float = key(0.25, "confidence distance: its temperature, 0.001 to 1000.", ge=0.001, le=1000)
    online: Literal["off", "causal", "inclusive"] = key(
        "off", "Correct while counting: causal (by earlier images), inclusive (by the image too), or off."
    )
    forget: Kept | None = key(
        None, "online: share of what was counted that each image keeps, 0 to below 1; null for all."
    )
    png: Bool = key(False, "Also count and draw which pixels change class.")
