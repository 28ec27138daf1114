"""Owns the section of `calseg pseudo-label`: which predicted pixels are believed, and what is kept of them."""

from typing import Annotated, Literal

from pydantic import Field

from calseg_cli.config.section import Section, key
from calseg_cli.config.values import Bool, Float, Probability

Portion = Annotated[Float, Field(gt=0, le=1)]


class PseudoLabel(Section):
    """How logits become labels that ignore what is not believed."""

    threshold: Literal["none", "global", "class-balanced"] = key(
        "class-balanced", "What decides: none (believe all), global, or class-balanced (Zou et al. 2018)."
    )
    confidence: Probability = key(0.9, "global: the confidence from which a pixel is believed, 0 to 1.")
    portion: Portion = key(
        0.3, "class-balanced: most confident share of each class's pixels that is believed; above 0, at most 1."
    )
    ceiling: Probability | None = key(
        None, "class-balanced: no threshold is above this, 0 to 1, such as 0.9; null for no ceiling."
    )
    keep_confidence: Literal["none", "u8", "f16"] = key(
        "none", "Store each pixel's confidence too: none, u8 or f16; about ten times the labels."
    )
    png: Bool = key(False, "Also write label, overlay and ignored-pixel pictures.")
