"""Owns other people's conventions of the ECE by name, each with counts of its own, so that their numbers come out."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from calseg_cli.errors import ConfigError
from calseg_cli.metrics.fine_histogram import ONE, Edges
from calseg_cli.metrics.pixels import finite_pixels, first_index, pixel_blocks, probabilities

Counts = NDArray[np.int64]
Void = Literal["left out", "wrong"]
Level = Literal["dataset", "mean over images", "mean over images and classes"]


@dataclass(frozen=True)
class Preset:
    """What one paper's or library's code does: its `boundaries` (bins + 1,), which belong to a bin, and whom it counts.

    A confidence equal to the first edge of bins (lo,hi] is in no bin where `drops_zero`; one equal to the last edge of
    bins [lo,hi) is in a bin of its own where `extra_bin`, else in the last one. Both remain in the number of pixels.
    """

    name: str
    source: str
    bins: int
    edges: Edges
    level: Level
    boundaries: Callable[[int], Tensor]
    void: Void = "left out"
    drops_zero: bool = False
    extra_bin: bool = False
    by_class: bool = False
    differs: str = ""

    def describe(self) -> str:
        """The convention in one line.

        >>> preset("netcal").describe()
        'netcal: top-label, 10 bins [lo,hi), the last one closed, void left out, dataset'
        """
        interval = {
            "right": "(lo,hi]" + (", 0 in none of them" if self.drops_zero else ""),
            "left": "[lo,hi), " + ("1 in one more bin" if self.extra_bin else "the last one closed"),
        }[self.edges]
        which = "each class against the rest" if self.by_class else "top-label"
        void = "counted as wrong" if self.void == "wrong" else "left out"
        more = f" ({self.differs})" if self.differs else ""
        return f"{self.name}: {which}, {self.bins} bins {interval}, void {void}, {self.level}{more}"

    def cells(self, confidence: Tensor) -> Tensor:
        """The bin int64 of each float32 confidence in [0,1]; the last one, `slots` - 1, holds those in no bin."""
        edges = self.boundaries(self.bins).to(confidence.device)
        place = torch.searchsorted(edges, confidence.to(edges.dtype), right=self.edges == "left") - 1
        if self.edges == "left":
            return place.clamp_(0, self.bins if self.extra_bin else self.bins - 1)
        first = torch.where(place < 0, self.slots - 1, 0) if self.drops_zero else 0
        return torch.where(place < 0, first, place.clamp(max=self.bins - 1))

    @property
    def slots(self) -> int:
        """Bins that are kept: those of the preset, one more for confidence 1, and one for those in none."""
        return self.bins + 2


def _float32(bins: int) -> Tensor:
    return torch.linspace(0, 1, bins + 1, dtype=torch.float32)


def _float64(bins: int) -> Tensor:
    return torch.from_numpy(np.linspace(0, 1, bins + 1))


def _monai(bins: int) -> Tensor:
    return torch.linspace(0, 1 + torch.finfo(torch.float32).eps, bins + 1, dtype=torch.float32)


_KNOWN = (
    Preset("guo15", "Guo et al. 2017", 15, "right", "dataset", _float32, drops_zero=True),
    Preset(
        "calsfda",
        "Cal-SFDA 2023",
        10,
        "right",
        "mean over images",
        _float32,
        void="wrong",
        drops_zero=True,
        differs="its smoothed maximum is up to 4.2e-6 above the confidence used here",
    ),
    Preset(
        "lts",
        "Local Temperature Scaling 2021",
        10,
        "right",
        "mean over images",
        _float64,
        drops_zero=True,
        differs="its ECE; its ACE takes percentiles over void too and is not made",
    ),
    Preset(
        "torchmetrics",
        "torchmetrics 1.9",
        15,
        "left",
        "dataset",
        _float32,
        extra_bin=True,
        differs="in exact sums; its own are float32",
    ),
    Preset("netcal", "netcal 1.4", 10, "left", "dataset", _float64),
    Preset("monai", "MONAI 1.6", 20, "right", "mean over images and classes", _monai, void="wrong", by_class=True),
)
PRESETS: dict[str, Preset] = {one.name: one for one in _KNOWN}


def preset(name: str) -> Preset:
    """The convention of that name. Raises ConfigError for an unknown one."""
    if name not in PRESETS:
        raise ConfigError(f"there is no preset {name!r}", f"choose {', '.join(PRESETS)}")
    return PRESETS[name]


@dataclass(frozen=True, eq=False)
class PresetRows:
    """Counts by a preset's own bins, a row an image: I images, G groups (1, or the classes), B = `slots` bins.

    `bins` (I,G,3,B) int64: pixels, right ones, confidence times 2**31. The order of the images is the tally's.
    """

    name: str
    bins: Counts

    def __post_init__(self) -> None:
        slots = preset(self.name).slots
        if self.bins.dtype != np.int64 or self.bins.ndim != 4 or self.bins.shape[2:] != (3, slots):
            raise ValueError(f"counts of {self.name} are int64 (I, G, 3, {slots}), not {self.bins.shape}")

    @classmethod
    def zeros(cls, name: str, num_classes: int) -> "PresetRows":
        """Rows of no image. Raises ConfigError for an unknown preset."""
        one = preset(name)
        return cls(name, np.zeros((0, num_classes if one.by_class else 1, 3, one.slots), np.int64))

    def contradictions(self, valid: Counts, ignored: Counts) -> list[str]:
        """What does not agree with the pixels of the images (I,), in words."""
        pixels = self.bins[:, :, 0].sum(axis=2)
        wanted = valid + ignored if preset(self.name).void == "wrong" else valid
        # Void pixels with a broken logit are in `ignored` and in no bin, so there may be fewer.
        agree = ((pixels <= wanted[:, None]) & (pixels >= valid[:, None])).all() if len(valid) == len(pixels) else False
        right = bool(((self.bins[:, :, 1] >= 0) & (self.bins[:, :, 1] <= self.bins[:, :, 0])).all())
        return [] if agree and right else ["bins of the preset and pixels of the images"]


@torch.no_grad()
def preset_row(name: str, logits: Tensor, labels: Tensor, ignore: int) -> PresetRows:
    """The row of one image from logits (C,N) and labels (N,): pixels with a NaN or infinite logit are left out."""
    one = preset(name)
    groups = logits.shape[0] if one.by_class else 1
    total = torch.zeros((3, groups * one.slots), dtype=torch.int64, device=logits.device)
    for block, truth in pixel_blocks(logits, labels):
        kept = finite_pixels(block) if one.void == "wrong" else finite_pixels(block) & (truth != ignore)
        _add(total, one, probabilities(block[:, kept]), truth[kept])
    bins = total.reshape(3, groups, one.slots).permute(1, 0, 2).cpu().numpy()
    return PresetRows(name, np.ascontiguousarray(bins)[None])


def _add(total: Tensor, one: Preset, probs: Tensor, labels: Tensor) -> None:
    """A void pixel's label is no class, so it is right nowhere."""
    if one.by_class:
        values, classes = probs, torch.arange(len(probs), device=probs.device)[:, None]
    else:
        values = probs.amax(dim=0, keepdim=True)
        classes = first_index(probs, values[0])[None]
    offsets = torch.arange(len(values), device=probs.device)[:, None] * one.slots
    cells = (one.cells(values) + offsets).flatten()
    total[0] += torch.bincount(cells, minlength=total.shape[1])
    total[1] += torch.bincount(cells[(classes == labels).flatten()], minlength=total.shape[1])
    total[2].index_add_(0, cells, values.double().mul_(ONE).round_().long().flatten())


def stack_presets(rows: Sequence[PresetRows], order: NDArray[np.intp]) -> PresetRows:
    """One table of all rows in the given order. Raises ConfigError where they are of two presets."""
    names = sorted({table.name for table in rows})
    if len(names) > 1:
        raise ConfigError(f"counts of the presets {' and '.join(names)} cannot be added", "measure both alike")
    return PresetRows(names[0], np.concatenate([table.bins for table in rows])[order])


def preset_ece(rows: PresetRows) -> float:
    """The ECE by the preset's convention, in [0,1]; images without a pixel are left out, NaN where all are."""
    one = preset(rows.name)
    groups = rows.bins.sum(axis=0, keepdims=True) if one.level == "dataset" else rows.bins
    eces = [_ece(group, one) for image in groups for group in image if group[0].any()]
    return math.fsum(eces) / len(eces) if eces else math.nan


def _ece(group: Counts, one: Preset) -> float:
    """Of (3,B) counts; those in no bin are in the number of pixels alone."""
    count, correct, confidence = group
    excess = (confidence // ONE - correct) + (confidence % ONE) / ONE
    return float(np.abs(excess[: one.slots - 1]).sum() / count.sum())
