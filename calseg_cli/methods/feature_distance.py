"""Owns DAFormer's feature distance: the encoder may not forget what it knew of things. Hoyer et al. 2022 (CVPR).

arXiv 2111.14887, section 3.3: the distance of the student's last feature map to that of a frozen encoder, on source
images, over cells of the map that show one class.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from calseg_cli.data.catalog import IGNORE
from calseg_cli.engine.distributed import ALONE, Ranks


class FeatureDistance(nn.Module):
    """Weight times the mean Euclidean distance of two last feature maps over the cells of `classes` (None: of all).

    A cell belongs to the class that at least `ratio` of its pixels show; other cells do not count. `encoder` is kept
    frozen and in evaluation mode, in the state dict with all else that a method remembers.
    """

    def __init__(
        self, encoder: nn.Module, *, weight: float = 0.005, ratio: float = 0.75, classes: Sequence[int] | None = None
    ) -> None:
        super().__init__()
        self.encoder = encoder.requires_grad_(False)
        self.weight, self.ratio = weight, ratio
        self.classes = None if classes is None else tuple(classes)
        self.train(False)

    def train(self, mode: bool = True) -> "FeatureDistance":
        """Always as it predicts."""
        super().train(False)
        return self

    def forward(
        self, features: Tensor, entering: Tensor, labels: Tensor, num_classes: int, ranks: Ranks = ALONE
    ) -> Tensor:
        """The weighted term, a scalar; 0 where no cell counts.

        `features` (B,D,h,w) is the student's last map, `entering` what its encoder got, labels (B,H,W) int64. Where
        several `ranks` share a batch, the mean is over all their cells, and this is the part of this one's.
        """
        with torch.no_grad():
            known = last_map(self.encoder(entering))
        padding = (0, entering.shape[-1] - labels.shape[-1], 0, entering.shape[-2] - labels.shape[-2])
        labels = F.pad(labels, padding, value=IGNORE)
        cells = cell_labels(labels, (features.shape[-2], features.shape[-1]), num_classes, self.ratio)
        counted = cells != IGNORE
        if self.classes is not None:
            counted &= torch.isin(cells, torch.tensor(self.classes, device=cells.device))
        difference = (features.float() - known.float()).permute(0, 2, 3, 1)[counted]  # (cells, D)
        distances = torch.linalg.vector_norm(difference, dim=1)
        term: Tensor = self.weight * distances.sum() / ranks.total(counted.sum()).clamp_min(1)
        return term


def cell_labels(labels: Tensor, size: tuple[int, int], num_classes: int, ratio: float) -> Tensor:
    """The class (B,h,w) that at least `ratio` of a cell's pixels in `labels` (B,H,W) show; 255 where none does."""
    shown = F.one_hot(labels.masked_fill(labels == IGNORE, num_classes), num_classes + 1)
    shares = F.adaptive_avg_pool2d(shown.permute(0, 3, 1, 2).float(), size)
    share, cells = shares.max(dim=1)
    return cells.masked_fill((share < ratio) | (cells == num_classes), IGNORE)


@contextmanager
def encoder_seen(network: nn.Module) -> Iterator[dict[str, Tensor]]:
    """What the network's encoder gets ("entering") and the last map that it gives ("features") in passes inside."""
    seen: dict[str, Tensor] = {}

    def note(module: nn.Module, entering: tuple[Tensor, ...], maps: Any) -> None:
        seen["entering"], seen["features"] = entering[0].detach(), last_map(maps)

    hook = network.get_submodule("encoder").register_forward_hook(note)
    try:
        yield seen
    finally:
        hook.remove()


def last_map(maps: Any) -> Tensor:
    """The coarsest of an encoder's maps (B,D,h,w): a tensor, the last of several, or of what transformers return."""
    while not isinstance(maps, Tensor):
        maps = maps[-1]  # with all stages asked for, SegFormer's encoder ends with a tuple of them
    return maps
