"""Owns prototypes that are counted while images are corrected: causal, inclusive, and with forgetting.

The paper sees all images before it corrects the first one (`prototypes`). Here each image is seen once.
"""

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from calseg_cli.errors import ConfigError
from calseg_cli.methods.prototype_state import PixelRule, PrototypeState
from calseg_cli.methods.prototypes import PrototypeOptions, Prototypes

Rows = NDArray[np.float64]
Counts = NDArray[np.int64]
Mode = Literal["causal", "inclusive"]


@dataclass
class DecayingSums:
    """Sums that forget: times `keep` in [0,1] before each image, so 1 / (1 - keep) images count.

    What is forgotten depends on the order of the images, so two of them cannot be added.
    """

    num_classes: int
    keep: float
    rule: PixelRule = field(default_factory=PixelRule)

    def __post_init__(self) -> None:
        self.sums: Rows = np.zeros((self.num_classes, self.num_classes))
        self.weights: Rows = np.zeros(self.num_classes)
        self.pixels: Counts = np.zeros(self.num_classes, np.int64)

    def add(self, logits: Tensor, mask: Tensor | None = None, *, name: str | None = None) -> None:
        """Forget a part, then count the image as `PrototypeState.add` does."""
        one = PrototypeState(self.num_classes, self.rule)
        one.add(logits, mask, name=name)
        self.sums = self.sums * self.keep + one.sums
        self.weights = self.weights * self.keep + one.weights
        self.pixels = self.pixels + one.pixels

    def __add__(self, other: object) -> "DecayingSums":
        raise ConfigError(
            "sums that forget cannot be added: what they forgot depends on the order of the images",
            "work through all images in one process, or without --forget",
        )


class OnlinePrototypes:
    """Prototypes that are counted while images are corrected, one after the other, in the order given.

    "causal" corrects an image by those before it, "inclusive" by those before it and itself. `forget` in [0,1) is the
    share of what was counted that each image keeps (paper: nothing is forgotten, None). `options.prior` must be above
    0: the first image has no prototypes but the prior's, which are those of argmax. Raises ConfigError.
    """

    def __init__(self, num_classes: int, options: PrototypeOptions, mode: Mode, forget: float | None) -> None:
        if options.prior <= 0:
            raise ConfigError("online prototypes need a prior: the first image has none yet", "--prior 1000")
        if options.top_frac is not None or options.iterations > 1 or options.per_image is not None:
            raise ConfigError(
                "online prototypes see each image once", "leave out --top-frac, --iterations and --per-image"
            )
        self._options, self._mode, self._forget = options, mode, forget
        rule = options.rule()
        self.sums: PrototypeState | DecayingSums = (
            PrototypeState(num_classes, rule) if forget is None else DecayingSums(num_classes, forget, rule)
        )

    def correct(self, logits: Tensor, mask: Tensor | None = None, name: str | None = None) -> Tensor:
        """Logits (C,h,w) of the next image, corrected; its pixels are counted where `mask` is True."""
        if self._mode == "inclusive":
            self.sums.add(logits, mask, name=name)
        corrected = self.now()(logits)
        if self._mode == "causal":
            self.sums.add(logits, mask, name=name)
        return corrected

    def describe(self) -> str:
        """One line: what is done, with which options."""
        kept = "" if self._forget is None else f", each image keeps {self._forget:g} of what was counted"
        return f"online ({self._mode}{kept}): {self.now().describe()}"

    def facts(self) -> dict[str, Any]:
        """Mode, forgetting and options as plain values."""
        return {"online": self._mode, "forget": self._forget, "labels": "none", **asdict(self._options)}

    def now(self) -> Prototypes:
        """The prototypes of what was counted so far."""
        if isinstance(self.sums, PrototypeState):
            return Prototypes(self.sums, self._options)
        return Prototypes(_Snapshot(self.sums), self._options)


class _Snapshot(PrototypeState):
    """Decaying sums as a state, to be looked at only."""

    def __init__(self, decaying: DecayingSums) -> None:
        super().__init__(decaying.num_classes, decaying.rule)
        self.pixels, self._decaying = decaying.pixels, decaying

    @property
    def sums(self) -> Rows:
        """As they are, not in steps."""
        return self._decaying.sums

    @property
    def weights(self) -> Rows:
        """As they are, not in steps."""
        return self._decaying.weights
