"""Owns what is counted only on request: every class's probability and logits, regions, and a preset's own bins."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from calseg_cli.errors import ConfigError
from calseg_cli.metrics.classwise import classwise_counts
from calseg_cli.metrics.fine_histogram import CalibrationCounts, Edges
from calseg_cli.metrics.image_rows import ImageRows, row_order
from calseg_cli.metrics.logit_histograms import LogitHistograms, count_logits
from calseg_cli.metrics.pixels import ValidPixels
from calseg_cli.metrics.presets import PresetRows, preset_row, stack_presets
from calseg_cli.metrics.regions import RegionCounts, Regions, count_regions

_CLASSWISE = ("count", "correct", "confidence")


@dataclass(frozen=True)
class Extra:
    """What to count besides, each at its own cost; nothing by default.

    `classwise`: the probability of every class, for the class-wise ECE; about as much time again. `regions`: see
    `Regions`. `preset`: the name of a convention of `PRESETS`, counted by its own rule. `logits`: histograms of every
    class's logits by true class.
    """

    classwise: bool = False
    regions: Regions | None = None
    preset: str | None = None
    logits: bool = False

    @property
    def needs_logits(self) -> bool:
        """Whether every class's logit is read again at full size."""
        return self.classwise or self.preset is not None or self.logits

    @property
    def needs_pixels(self) -> bool:
        """Whether anything is counted besides."""
        return self.needs_logits or self.regions is not None

    def describe(self) -> str:
        """In a few words, for a message.

        >>> Extra(classwise=True, preset="lts").describe(), Extra().describe()
        ('class-wise counts, preset lts', 'nothing besides')
        """
        parts = [
            "class-wise counts" if self.classwise else "",
            f"regions {', '.join(self.regions.groups)}" if self.regions else "",
            f"preset {self.preset}" if self.preset else "",
            "logits" if self.logits else "",
        ]
        return ", ".join(part for part in parts if part) or "nothing besides"


@dataclass(frozen=True, eq=False)
class ExtraCounts:
    """The counts of an `Extra`; None for what was not asked for."""

    classwise: CalibrationCounts | None = None
    regions: RegionCounts | None = None
    preset: PresetRows | None = None
    logits: LogitHistograms | None = None

    @classmethod
    def zeros(cls, extra: Extra, num_classes: int, edges: Edges) -> "ExtraCounts":
        """Counts of no image."""
        return cls(
            CalibrationCounts.zeros(num_classes, edges) if extra.classwise else None,
            RegionCounts.zeros(extra.regions, edges) if extra.regions else None,
            PresetRows.zeros(extra.preset, num_classes) if extra.preset else None,
            LogitHistograms.zeros(num_classes) if extra.logits else None,
        )

    @property
    def asked(self) -> Extra:
        """What was asked for."""
        rule = self.regions.rule if self.regions is not None else None
        name = self.preset.name if self.preset is not None else None
        return Extra(self.classwise is not None, rule, name, self.logits is not None)

    def contradictions(self, images: ImageRows, everything: CalibrationCounts) -> list[str]:
        """What does not agree with the counts of all pixels, in words."""
        found = []
        if self.classwise is not None:
            found += _classwise_contradictions(self.classwise, images)
        if self.regions is not None:
            found += self.regions.contradictions(everything)
        if self.preset is not None:
            found += self.preset.contradictions(images.valid, images.ignored)
        if self.logits is not None:
            found += self.logits.contradictions(images.confusion.sum(axis=0))
        return found

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """Plain arrays by name for a file; none for what was not asked for."""
        arrays: dict[str, NDArray[Any]] = {}
        if self.classwise is not None:
            named = zip(_CLASSWISE, self.classwise.arrays(), strict=True)
            arrays |= {f"classwise_{name}": array for name, array in named}
        if self.regions is not None:
            arrays |= {f"regions_{name}": array for name, array in self.regions.to_arrays().items()}
        if self.preset is not None:
            arrays |= {"preset_name": np.array([self.preset.name], np.str_), "preset_bins": self.preset.bins}
        if self.logits is not None:
            exponent = np.array([self.logits.exponent], np.int64)
            arrays |= {"logits_counts": self.logits.counts, "logits_exponent": exponent}
        return arrays

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]], edges: Edges) -> "ExtraCounts":
        """What `to_arrays` gave, among other arrays. Raises KeyError or ValueError where a part of it is missing."""
        classwise = _prefixed(arrays, "classwise_")
        regions = _prefixed(arrays, "regions_")
        preset = _prefixed(arrays, "preset_")
        logits = _prefixed(arrays, "logits_")
        return cls(
            CalibrationCounts(*(classwise[name] for name in _CLASSWISE), edges=edges) if classwise else None,
            RegionCounts.from_arrays(regions, edges) if regions else None,
            PresetRows(_text(preset["name"]), preset["bins"]) if preset else None,
            LogitHistograms(logits["counts"], int(logits["exponent"][0])) if logits else None,
        )


def _classwise_contradictions(counts: CalibrationCounts, images: ImageRows) -> list[str]:
    confusion = images.confusion.sum(axis=0)
    agree = (
        counts.num_groups == len(confusion)
        and (counts.count.sum(axis=1) == confusion.sum()).all()
        and np.array_equal(counts.correct.sum(axis=1), confusion.sum(axis=1))
        and ((counts.correct >= 0) & (counts.correct <= counts.count)).all()
    )
    return [] if agree else ["class-wise counts and pixels"]


def count_extra(
    extra: Extra, logits: Tensor | None, labels: Tensor, pixels: ValidPixels, *, ignore: int, edges: Edges
) -> ExtraCounts:
    """The counts of one image from logits (C,H,W), labels (H,W) and its valid pixels; regions need no logits."""
    flat = logits.flatten(1) if logits is not None else None
    classwise = preset = histograms = None
    if flat is not None and extra.classwise:
        classwise = classwise_counts(flat[:, pixels.valid], pixels.labels, edges)
    if flat is not None and extra.preset:
        preset = preset_row(extra.preset, flat, labels.flatten(), ignore)
    if flat is not None and extra.logits:
        histograms = count_logits(flat[:, pixels.valid], pixels.labels)
    regions = count_regions(extra.regions, pixels, labels, ignore=ignore, edges=edges) if extra.regions else None
    return ExtraCounts(classwise, regions, preset, histograms)


class ExtraSum:
    """A running sum of `ExtraCounts`: histograms are added in place, rows kept until the end."""

    def __init__(self) -> None:
        self._asked: Extra | None = None
        self._classwise: CalibrationCounts | None = None
        self._regions: RegionCounts | None = None
        self._logits: LogitHistograms | None = None
        self._rows: list[PresetRows] = []

    def add(self, counts: ExtraCounts) -> None:
        """Add one. Raises ConfigError where something else was asked for than before."""
        if self._asked is None:
            self._start(counts)
        else:
            self._check(counts.asked)
            if self._classwise is not None and counts.classwise is not None:
                self._classwise.absorb(counts.classwise)
            if self._regions is not None and counts.regions is not None:
                self._regions.absorb(counts.regions)
            if self._logits is not None and counts.logits is not None:
                self._logits += counts.logits
        if counts.preset is not None:
            self._rows.append(counts.preset)

    def _start(self, counts: ExtraCounts) -> None:
        self._asked = counts.asked
        self._classwise = counts.classwise.copy() if counts.classwise is not None else None
        self._logits = counts.logits
        if counts.regions is not None:
            self._regions = RegionCounts(counts.regions.rule, counts.regions.counts.copy())

    def _check(self, other: Extra) -> None:
        mine = self._asked or Extra()
        same_regions = (mine.regions is None) == (other.regions is None)  # two rules are told apart by their own sum
        alike = (mine.classwise, mine.preset, mine.logits) == (other.classwise, other.preset, other.logits)
        if not alike or not same_regions:
            raise ConfigError(
                f"counts with {mine.describe()} and with {other.describe()} cannot be added", "measure both alike"
            )

    def total(self, ids: Sequence[Sequence[str]]) -> ExtraCounts:
        """The sum, rows in the order of the sorted ids of the tables that were added."""
        preset = stack_presets(self._rows, row_order(ids)) if self._rows else None
        return ExtraCounts(self._classwise, self._regions, preset, self._logits)


def _prefixed(arrays: Mapping[str, NDArray[Any]], prefix: str) -> dict[str, NDArray[Any]]:
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}


def _text(array: NDArray[Any]) -> str:
    (item,) = array.tolist()
    return item.decode() if isinstance(item, bytes) else str(item)
