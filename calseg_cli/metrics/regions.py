"""Owns regions of an image that are measured apart: foreground, boundary, interior; their masks and their counts."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from calseg_cli.errors import ConfigError
from calseg_cli.metrics.fine_histogram import CalibrationCounts, Edges, binned_sums, fine_bins
from calseg_cli.metrics.pixels import ValidPixels

Region = Literal["fg-true", "fg-pred", "boundary"]
Distance = Literal["chebyshev", "euclid"]
_TO_VOID = {True: "also to a pixel without a class", False: "void is no edge"}


@dataclass(frozen=True)
class Regions:
    """Which regions are counted, and by what rule; counts by different rules are not added.

    "fg-true" and "fg-pred" are the pixels whose true or predicted class is not `background` (an index): two definitions
    that are both in use and not comparable. "boundary" also counts "interior"; both together are all valid pixels. A
    pixel is on a boundary where one of another true class lies within `band` pixels: in a square of side 2 band + 1
    around it (chebyshev) or a disc of that radius (euclid). With `void_edge` a pixel without a class counts as another
    class, as in Local Temperature Scaling's code; outside the image nothing is known, so its frame is no edge.
    Raises ConfigError for an unknown region, a band below 1, or a foreground without a background.
    """

    names: tuple[Region, ...]
    background: int | None = None
    band: int = 2
    distance: Distance = "chebyshev"
    void_edge: bool = False

    def __post_init__(self) -> None:
        unknown = [name for name in self.names if name not in get_args(Region)]
        if unknown or not self.names or len(set(self.names)) < len(self.names):
            raise ConfigError(f"no regions {', '.join(self.names)!r}", f"each once of {', '.join(get_args(Region))}")
        if self.distance not in get_args(Distance):
            raise ConfigError(f"unknown distance {self.distance!r}", f"choose {' or '.join(get_args(Distance))}")
        if self.band < 1:
            raise ConfigError(f"a boundary {self.band} pixels wide has no pixel", "choose a band of 1 or more")
        if self._has_foreground and self.background is None:
            raise ConfigError("a foreground needs a background", "name the background class")

    @property
    def _has_foreground(self) -> bool:
        return any(name.startswith("fg-") for name in self.names)

    @property
    def groups(self) -> tuple[str, ...]:
        """The regions as they are counted: "boundary" is two of them."""
        return tuple(group for name in self.names for group in ((name, "interior") if name == "boundary" else (name,)))

    def describe(self, class_names: tuple[str, ...] | None = None) -> str:
        """The rule in one line.

        >>> Regions(("boundary",), band=3).describe()
        'boundary: within 3 px (chebyshev) of another true class, void is no edge'
        """
        parts = []
        if self._has_foreground and self.background is not None:
            name = class_names[self.background] if class_names else f"class {self.background}"
            parts.append(f"foreground: not {name}")
        if "boundary" in self.names:
            told = f"within {self.band} px ({self.distance}) of another true class, {_TO_VOID[self.void_edge]}"
            parts.append(f"boundary: {told}")
        return "; ".join(parts)


@dataclass(frozen=True, eq=False)
class RegionCounts:
    """Fine histograms of regions: `counts` has a group for each of `rule.groups`. Regions may overlap."""

    rule: Regions
    counts: CalibrationCounts

    def __post_init__(self) -> None:
        if self.counts.num_groups != len(self.rule.groups):
            raise ValueError(f"{self.counts.num_groups} groups for the regions {', '.join(self.rule.groups)}")

    @classmethod
    def zeros(cls, rule: Regions, edges: Edges) -> "RegionCounts":
        """Counts of nothing."""
        return cls(rule, CalibrationCounts.zeros(len(rule.groups), edges))

    def absorb(self, other: "RegionCounts") -> None:
        """Add `other` in place. Raises ConfigError where it was counted by another rule."""
        if self.rule != other.rule:
            raise ConfigError(
                f"regions of two kinds cannot be added: {self._told()}, and {other._told()}",
                "measure both with the same regions",
            )
        self.counts.absorb(other.counts)

    def _told(self) -> str:
        return f"{', '.join(self.rule.groups)} ({self.rule.describe()})"

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """Plain arrays by name for a file; the rule is JSON text."""
        count, correct, confidence = self.counts.arrays()
        rule = np.array([json.dumps(asdict(self.rule), sort_keys=True)], dtype=np.str_)
        return {"rule": rule, "count": count, "correct": correct, "confidence": confidence}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]], edges: Edges) -> "RegionCounts":
        """The counts that `to_arrays` gave. Raises KeyError, ValueError or ConfigError where they are no such."""
        (text,) = arrays["rule"].tolist()
        fields = json.loads(text)
        if not isinstance(fields, dict) or set(fields) != {"names", "background", "band", "distance", "void_edge"}:
            raise ValueError("the rule of the regions cannot be read")
        rule = Regions(**{**fields, "names": tuple(fields["names"])})
        counts = (arrays[name] for name in ("count", "correct", "confidence"))
        return cls(rule, CalibrationCounts(*counts, edges=edges))

    def contradictions(self, everything: CalibrationCounts) -> list[str]:
        """What does not agree with the counts of all pixels, in words."""
        total = [array.sum(axis=0) for array in everything.arrays()]
        parts = [dict(zip(self.rule.groups, array, strict=True)) for array in self.counts.arrays()]
        both = list(zip(parts, total, strict=True))
        inside = all(((group >= 0) & (group <= whole)).all() for part, whole in both for group in part.values())
        split = "boundary" not in self.rule.names or all(
            np.array_equal(part["boundary"] + part["interior"], whole) for part, whole in both
        )
        right = bool((self.counts.correct <= self.counts.count).all())
        found = {"regions and all pixels": inside and right, "boundary and interior": split}
        return [name for name, agrees in found.items() if not agrees]


def count_regions(
    rule: Regions, pixels: ValidPixels, labels: Tensor, *, ignore: int, edges: Edges = "right"
) -> RegionCounts:
    """The counts of one image with labels (H,W) from its valid pixels."""
    bins = fine_bins(pixels.confidence, edges)
    right = pixels.predictions == pixels.labels
    masks = _masks(rule, pixels, labels, ignore)
    tables = []
    for name in rule.groups:
        inside = masks[name]
        one = torch.zeros(int(inside.sum()), dtype=torch.int64, device=bins.device)
        count, sums = binned_sums(pixels.confidence[inside], bins[inside], one, 1)
        correct, _ = binned_sums(None, bins[inside & right], one[: int((inside & right).sum())], 1)
        tables.append((count, correct, sums))
    stacked = (np.concatenate(column) for column in zip(*tables, strict=True))
    return RegionCounts(rule, CalibrationCounts(*stacked, edges=edges))


def _masks(rule: Regions, pixels: ValidPixels, labels: Tensor, ignore: int) -> dict[str, Tensor]:
    masks: dict[str, Tensor] = {}
    if "fg-true" in rule.names:
        masks["fg-true"] = pixels.labels.ne(rule.background or 0)
    if "fg-pred" in rule.names:
        masks["fg-pred"] = pixels.predictions.ne(rule.background or 0)
    if "boundary" in rule.names:
        edge = boundary_mask(labels, rule.band, rule.distance, ignore=ignore, void_edge=rule.void_edge)
        masks["boundary"] = edge.flatten()[pixels.valid]
        masks["interior"] = ~masks["boundary"]
    return masks


def boundary_mask(
    labels: Tensor, band: int, distance: Distance = "chebyshev", *, ignore: int, void_edge: bool = False
) -> Tensor:
    """Pixels (H,W) bool of integer labels (H,W) with another class within `band` pixels; see `Regions`.

    A pixel has another class near it where the largest or the smallest class of its window is not its own. The window
    is a stack of rows, so each costs one pass along x and a shift along y, whatever the width. Pixels without a class
    are False.
    """
    has_class = labels != ignore
    values = labels.float()  # classes are small whole numbers: exact
    if void_edge:
        ones = zeros = values
    else:
        zeros, ones = values.where(has_class, -math.inf), values.where(has_class, math.inf)
    largest, smallest = _window_max(zeros, band, distance), -_window_max(-ones, band, distance)
    return has_class & ((largest != values) | (smallest != values))


def _window_max(values: Tensor, band: int, distance: Distance) -> Tensor:
    """The largest of (H,W) values within `band` pixels of each; outside the image there is nothing."""
    height = values.shape[0]
    result = values
    for shift in range(-min(band, height - 1), min(band, height - 1) + 1):
        reach = band if distance == "chebyshev" else math.isqrt(band * band - shift * shift)
        rows = _row_max(values[max(shift, 0) : height + min(shift, 0)], reach)
        moved = torch.full_like(values, -math.inf)
        moved[max(-shift, 0) : height - max(shift, 0)] = rows
        result = torch.maximum(result, moved)
    return result


def _row_max(rows: Tensor, reach: int) -> Tensor:
    reach = min(reach, rows.shape[1] - 1)
    padded = F.pad(rows, (reach, reach), value=-math.inf)
    return F.max_pool1d(padded, 2 * reach + 1, stride=1) if rows.numel() else rows
