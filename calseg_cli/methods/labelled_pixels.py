"""Owns which pixels of a batch stand for their label: all of them sorted by it, and draws spread evenly among them."""

from dataclasses import dataclass

import torch
from torch import Tensor

from calseg_cli.data.catalog import IGNORE
from calseg_cli.engine.distributed import ALONE, Ranks


@dataclass(frozen=True)
class LabelledPixels:
    """The pixels of a batch, numbered through all images, sorted by label.

    `counts` (C,) int64 of each label; `order` (B*H*W,) int64: the numbers, those that do not count last. Where several
    `ranks` share a batch, `counts` are those of all, whose pixels stand one process after another within each label;
    `order` numbers this one's, (W,C) `shares` counts each one's.
    """

    counts: Tensor
    order: Tensor
    ranks: Ranks = ALONE
    shares: Tensor | None = None

    def logits(self, logits: Tensor, places: Tensor) -> Tensor:
        """Logits (A,N,C) float32 at places (A,N) among the sorted pixels, from this process's logits (B,C,H,W)."""
        if self.shares is None:
            return gathered(logits, self.order[places])
        ends, own = self.counts.cumsum(0), self.shares[self.ranks.rank]
        label = torch.searchsorted(ends, places, right=True)
        within = places - (ends - self.counts)[label] - self.shares[: self.ranks.rank].sum(dim=0)[label]
        held = (within >= 0) & (within < own[label])
        mine = torch.where(held, within + (own.cumsum(0) - own)[label], 0)
        found = torch.where(held[..., None], gathered(logits, self.order[mine]), 0.0)
        return self.ranks.total(found)  # zeros of all processes but one


def labelled_pixels(
    logits: Tensor, labels: Tensor, valid: Tensor | None = None, ranks: Ranks = ALONE
) -> LabelledPixels:
    """Of logits (B,C,H,W) and labels (B,H,W) int64, where `valid` (B,H,W) bool; of the images of all `ranks`.

    Pixels without a label (255) or with a logit that is not finite never count.
    """
    classes = logits.shape[1]
    fine = (labels != IGNORE) & logits.detach().sum(dim=1).isfinite()
    found = torch.where(fine if valid is None else fine & valid, labels, classes).flatten()
    # Bytes are sorted several times as fast as larger numbers.
    order = found.to(torch.uint8 if classes <= IGNORE else torch.int32).argsort(stable=True)
    counts = torch.bincount(found, minlength=classes + 1)[:classes]
    if ranks.world == 1:
        return LabelledPixels(counts, order)
    shares = ranks.whole(counts[None])
    return LabelledPixels(shares.sum(dim=0), order, ranks, shares)


def stratified(counts: Tensor, size: int, drawn: Tensor) -> Tensor:
    """Places (R,size) int64 among pixels that lie sorted by row, counts (R,) int64 of each; 0 where a row has none.

    Each row's pixels are cut into `size` equal parts and one is drawn in each by `drawn` (R,size) in [0,1): every pixel
    is as likely as any other of its row, and where there are fewer than `size` each comes about equally often.
    """
    parts = torch.arange(size, device=counts.device, dtype=torch.float64) + drawn.to(counts.device)
    within = (parts / size * counts[:, None]).long().minimum(counts[:, None] - 1).clamp_min(0)
    return torch.where(counts[:, None] > 0, within + (counts.cumsum(0) - counts)[:, None], 0)


def gathered(logits: Tensor, pixels: Tensor) -> Tensor:
    """Logits (A,N,C) float32 of pixels (A,N) of logits (B,C,H,W), numbered through all images."""
    height, width = logits.shape[-2:]
    return logits.detach()[pixels // (height * width), :, pixels // width % height, pixels % width].float()
