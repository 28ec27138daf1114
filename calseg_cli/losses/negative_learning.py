"""Owns negative learning: a pixel is taught which class it is not. Kim et al. 2019 (NLNL), arXiv 1908.07387.

The class is one in the middle of the pixel's own ranking, as in You et al. 2021 (LD) and Cal-SFDA, arXiv 2308.03003.
"""

import torch
from torch import Tensor


def complementary_rank(num_classes: int, generator: torch.Generator | None) -> int:
    """Half the number of classes plus a whole number from -3 to 3, held within 2 and C; rank 1 is the most probable.

    For two classes it is always 2.
    """
    shift = int(torch.randint(-3, 4, (), generator=generator))
    return min(max(num_classes // 2 + shift, 2), num_classes)


def negative_learning(logits: Tensor, rank: int, *, floor: float = 1e-5) -> Tensor:
    """Mean over all pixels of -log(max(1 - p, floor)), p the probability of the class ranked `rank`; a scalar, float32.

    Logits (B,C,H,W); which class has the rank is decided without gradient, ties by the lower class. Raises ValueError
    for a rank outside 1..C.
    """
    if not 1 <= rank <= logits.shape[1]:
        raise ValueError(f"rank {rank} of {logits.shape[1]} classes")
    with torch.autocast(logits.device.type, enabled=False):
        wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
        order = wide.detach().argsort(dim=1, descending=True, stable=True)
        unlike = wide.softmax(dim=1).gather(1, order[:, rank - 1 : rank])
        return -(1 - unlike).clamp_min(floor).log().mean()
