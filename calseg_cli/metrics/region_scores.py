"""Owns the scores of a region: accuracy and calibration of the pixels in it."""

from dataclasses import dataclass

import numpy as np

from calseg_cli.metrics.bin_sums import ece_of, per_pixel, sums_of
from calseg_cli.metrics.calibration import noise_floor
from calseg_cli.metrics.fine_histogram import CalibrationCounts
from calseg_cli.metrics.regions import RegionCounts


@dataclass(frozen=True)
class RegionScores:
    """One region: its valid pixels, and the scores of them alone, as shares of 1; NaN (n/a) without a pixel."""

    name: str
    pixels: int
    accuracy: float
    confidence: float
    signed_gap: float
    ece: float
    noise_floor: float


def region_scores(regions: RegionCounts, bins: int = 15) -> tuple[RegionScores, ...]:
    """The scores of each region, in the order of the rule's groups. Raises ConfigError unless `bins` divides 4800."""
    rows = []
    for index, name in enumerate(regions.rule.groups):
        group = (array[index : index + 1] for array in regions.counts.arrays())
        alone = CalibrationCounts(*group, edges=regions.counts.edges)
        whole = sums_of(alone, 1)
        rows.append(
            RegionScores(
                name=name,
                pixels=whole.num_pixels,
                accuracy=per_pixel(whole.correct.astype(np.float64), whole),
                confidence=per_pixel(whole.confidence, whole),
                signed_gap=per_pixel(whole.excess, whole),
                ece=ece_of(sums_of(alone, bins)),
                noise_floor=noise_floor(alone, bins),
            )
        )
    return tuple(rows)
