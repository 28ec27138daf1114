"""Owns prototypes that are counted while a network trains: pseudo-labels by the nearest mean soft label of late.

Label Calibration (Bohdal et al. 2023, arXiv 2307.10842) counts a finished network's soft labels once. In self-training
the teacher moves, so what was counted is forgotten by and by; that it serves there is this project's.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from calseg_cli.engine.distributed import ALONE, Ranks
from calseg_cli.methods.online_prototypes import DecayingSums, OnlinePrototypes
from calseg_cli.methods.prototype_state import PrototypeState
from calseg_cli.methods.prototypes import PrototypeOptions

if TYPE_CHECKING:
    from calseg_cli.artifacts.geometry import Geometry


class PrototypeLabels(nn.Module):
    """Corrects a teacher's logits by the prototypes of the batches before; all it remembers is in the state dict.

    `keep` in [0,1] is the share of what was counted that each batch leaves; 1 forgets nothing. Raises ConfigError as
    `OnlinePrototypes` does: without a prior, and for options that need more than one pass.
    """

    sums: Tensor
    weights: Tensor
    pixels: Tensor

    def __init__(self, classes: int, options: PrototypeOptions, keep: float = 0.99) -> None:
        super().__init__()
        OnlinePrototypes(classes, options, "causal", keep)  # refuses what it cannot do
        self.options, self.keep, self.rule = options, keep, options.rule()
        self.register_buffer("sums", torch.zeros(classes, classes, dtype=torch.float64))
        self.register_buffer("weights", torch.zeros(classes, dtype=torch.float64))
        self.register_buffer("pixels", torch.zeros(classes, dtype=torch.int64))

    @torch.no_grad()
    def count(self, logits: Tensor, geometry: "Geometry", ranks: Ranks = ALONE) -> None:
        """Count a batch's logits (B,C,h,w), those of cells on the images; those of all `ranks` that share it."""
        inside = _on_images(geometry, (int(logits.shape[2]), int(logits.shape[3])))
        batch = PrototypeState(len(self.pixels), self.rule)
        for image in logits.cpu():
            batch.add(image, inside)
        sums, weights, pixels = (
            ranks.total(torch.from_numpy(one)) for one in (batch.sums, batch.weights, batch.pixels)
        )
        self.sums.mul_(self.keep).add_(sums.to(self.sums.device))
        self.weights.mul_(self.keep).add_(weights.to(self.weights.device))
        self.pixels.add_(pixels.to(self.pixels.device))

    @torch.no_grad()
    def forward(self, logits: Tensor) -> Tensor:
        """Logits (B,C,h,w), each pixel's highest now that of the nearest prototype; float32."""
        correct = self._prototypes()
        return torch.stack([correct(image) for image in logits.float().cpu()]).to(logits.device)

    def _prototypes(self) -> Callable[[Tensor], Tensor]:
        online = OnlinePrototypes(len(self.pixels), self.options, "causal", self.keep)
        counted = online.sums
        assert isinstance(counted, DecayingSums)
        counted.sums, counted.weights = (each.cpu().numpy().copy() for each in (self.sums, self.weights))
        counted.pixels = self.pixels.cpu().numpy().copy()
        return online.now()


def _on_images(geometry: "Geometry", grid: tuple[int, int]) -> Tensor | None:
    """The cells (h,w) whose nearest pixel is no padding, bool; None for all."""
    if geometry.pad == (0, 0):
        return None
    shown = F.pad(torch.ones(1, 1, *geometry.in_hw), (0, geometry.pad[1], 0, geometry.pad[0]))
    return F.interpolate(shown, size=grid, mode="nearest-exact")[0, 0] > 0
