"""Owns the calibration error as a loss: confidence against correctness in bins, over an image or over its classes.

Wang et al. 2023 (Cal-SFDA, ACM MM), arXiv 2308.03003; soft bins after Karandikar et al. 2021, arXiv 2108.00106.
"""

from typing import Literal

import torch
from torch import Tensor

from calseg_cli.losses.pixel_confidence import PixelConfidence, log_probabilities, pixel_confidence

Binning = Literal["hard", "soft"]
Absent = Literal["count", "skip"]

BIN_SOFTNESS = 0.5
"""How far a soft bin reaches over its edges, in bins: a confidence at a bin's middle belongs to it by 96 %."""


def smoothed_confidence(probs: Tensor, temperature: float = 1e-5) -> Tensor:
    """The largest of probabilities (B,C,H,W), smoothed: t * log(sum over k of exp(p_k / t)); (B,H,W) float32.

    Lies between the largest probability and that plus t * log(C). Its gradient with respect to the probabilities is
    softmax(p / t): non-negative, with sum 1. Half precision is left at once: p / t would be infinite in it. float64
    stays float64. Cal-SFDA's confidence, with its t of 1e-5.
    """
    with torch.autocast(probs.device.type, enabled=False):
        wide = probs.to(torch.promote_types(probs.dtype, torch.float32))
        largest = wide.detach().amax(dim=1, keepdim=True)  # taken out first: p / t alone rounds to 1e-7 of p
        return largest.squeeze(1) + temperature * torch.logsumexp((wide - largest) / temperature, dim=1)


def class_conditional_ece(
    logits: Tensor,
    labels: Tensor,
    *,
    bins: int = 10,
    temperature: float = 1e-5,
    binning: Binning = "hard",
    absent: Absent = "count",
) -> Tensor:
    """Mean over classes k of the ECE of the pixels whose true class is k, for each image; (B,) in [0, 1 + t log C].

    Logits (B,C,H,W), labels (B,H,W) int64; labels outside 0..C-1 take no part, and a class without a pixel counts as 0.
    `absent` "count" divides by C, as Cal-SFDA's code does; "skip" by the number of classes that the image holds. An
    image without a labelled pixel gives 0 with zero gradient. Differentiable through the confidence, see `ece_of_sets`.

    Given the true class, accuracy is recall, which is not what a calibrated confidence equals: this pulls each class's
    mean confidence towards its recall, rare classes as strongly as frequent ones.
    """
    pixels = pixel_confidence(log_probabilities(logits), labels, temperature)
    return class_conditional_ece_of(pixels, labels, logits.shape[1], bins=bins, binning=binning, absent=absent)


def class_conditional_ece_of(
    pixels: PixelConfidence,
    labels: Tensor,
    classes: int,
    *,
    bins: int = 10,
    binning: Binning = "hard",
    absent: Absent = "count",
) -> Tensor:
    """`class_conditional_ece` from what is known of each pixel: for a loss that has it already."""
    images = len(labels)
    sets = torch.arange(images, device=labels.device)[:, None, None] * classes + labels
    members = torch.where((labels >= 0) & (labels < classes), sets, images * classes)
    errors, sizes = ece_of_sets(pixels, members, images * classes, bins, binning)
    total = errors.view(images, classes).sum(dim=1)
    if absent == "count":
        return total / classes
    return total / (sizes.view(images, classes) > 0).sum(dim=1).clamp_min(1)


def image_ece(
    logits: Tensor, labels: Tensor, *, bins: int = 10, temperature: float = 1e-5, binning: Binning = "hard"
) -> Tensor:
    """ECE over all labelled pixels of each image; (B,) in [0, 1 + t log C], 0 with zero gradient where there are none.

    Logits (B,C,H,W), labels (B,H,W) int64; labels outside 0..C-1 take no part.
    """
    pixels = pixel_confidence(log_probabilities(logits), labels, temperature)
    return image_ece_of(pixels, labels, logits.shape[1], bins=bins, binning=binning)


def image_ece_of(
    pixels: PixelConfidence, labels: Tensor, classes: int, *, bins: int = 10, binning: Binning = "hard"
) -> Tensor:
    """`image_ece` from what is known of each pixel."""
    images = len(labels)
    own = torch.arange(images, device=labels.device)[:, None, None]
    members = torch.where((labels >= 0) & (labels < classes), own, images)
    return ece_of_sets(pixels, members, images, bins, binning)[0]


def ece_of_sets(
    pixels: PixelConfidence, members: Tensor, count: int, bins: int, binning: Binning
) -> tuple[Tensor, Tensor]:
    """ECE of `count` sets of pixels, and their sizes, both (count,); `members` (B,H,W) names each pixel's set.

    A pixel of the set `count` takes no part. With confidence c and correctness a (1 where the most probable class is
    the true one) of the set S,

        ECE(S) = (1/|S|) * sum over bins m of |sum over i in S of w_im (c_i - a_i)|,   bins (m-1)/M < c <= m/M.

    "hard": w_im is 1 in the pixel's own bin and 0 elsewhere, so dECE/dc_i = sign(sum of its bin) / |S|. "soft": w_im is
    the softmax over m of -((c_i - middle of m) * M / `BIN_SOFTNESS`)^2, and the gradient flows through it too. None
    flows through labels or the choice of the most probable class. An empty set's ECE is 0. Raises ValueError for
    another binning.
    """
    if binning not in ("hard", "soft"):
        raise ValueError(f"binning {binning!r} is neither 'hard' nor 'soft'")
    with torch.autocast(members.device.type, enabled=False):
        confidence, flat = pixels.confidence.flatten(), members.flatten()
        gap = confidence - pixels.correct.flatten().to(confidence.dtype)
        sums = (_hard_sums if binning == "hard" else _soft_sums)(gap, confidence, flat, count + 1, bins)
        sizes = torch.bincount(flat, minlength=count + 1)[:count]
        errors = sums[:count].abs().sum(dim=1) / sizes.clamp_min(1)
        return errors.to(confidence.dtype), sizes


def _hard_sums(gap: Tensor, confidence: Tensor, members: Tensor, count: int, bins: int) -> Tensor:
    """Sums (count,bins) of the gaps, in float64 where the device has it: near 0 the sign of a sum is the gradient."""
    exact = torch.float32 if gap.device.type == "mps" else torch.float64
    cells = members * bins + bin_index(confidence.detach(), bins)
    zeros = torch.zeros(count * bins, dtype=exact, device=gap.device)
    return zeros.index_add(0, cells, gap.to(exact)).view(count, bins)


def _soft_sums(gap: Tensor, confidence: Tensor, members: Tensor, count: int, bins: int) -> Tensor:
    middles = (torch.arange(bins, device=gap.device, dtype=gap.dtype) + 0.5) / bins
    weights = torch.softmax(-(((confidence[:, None] - middles) * (bins / BIN_SOFTNESS)) ** 2), dim=1)
    return gap.new_zeros(count, bins).index_add(0, members, weights * gap[:, None])


def bin_index(confidence: Tensor, bins: int) -> Tensor:
    """The bin 0..bins-1 of each confidence: open to the left, closed to the right; above 1 in the last. uint8 or int64.

    Counts the inner edges below, which torch does several times quicker than its search.
    """
    edges = torch.linspace(0, 1, bins + 1).tolist()[1:-1]
    index = torch.zeros_like(confidence, dtype=torch.uint8 if bins <= 256 else torch.int64)
    for edge in edges:
        index += (confidence > edge).view(torch.uint8)  # as it lies there: torch would copy a bool first
    return index
