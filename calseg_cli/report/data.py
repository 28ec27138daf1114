"""Owns what a report is made of: plain numbers, names and pictures, filled by whoever measured."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Picture = NDArray[np.uint8]
Color = tuple[int, int, int]
Role = Literal["best", "median", "worst"]


@dataclass(frozen=True)
class Reliability:
    """Bins of confidence, each field (bins,); mean `confidence` and `accuracy` are NaN where `count` is 0."""

    lower: NDArray[np.float64]
    upper: NDArray[np.float64]
    count: NDArray[np.int64]
    confidence: NDArray[np.float64]
    accuracy: NDArray[np.float64]

    def contribution(self) -> NDArray[np.float64]:
        """What each bin adds to the ECE, with its sign: above zero where confidence exceeds accuracy. Empty bins: 0.

        >>> edges, confidence, accuracy = np.array([0.0, 0.5, 1.0]), np.array([np.nan, 0.9]), np.array([np.nan, 0.6])
        >>> bins = Reliability(edges[:2], edges[1:], np.array([0, 10]), confidence, accuracy)
        >>> bins.contribution().round(3).tolist()
        [0.0, 0.3]
        """
        gap: NDArray[np.float64] = np.where(self.count > 0, self.confidence - self.accuracy, 0.0)
        return self.share() * gap

    def share(self) -> NDArray[np.float64]:
        """The bins' shares of the pixels, (bins,) in [0,1]; all 0 without a pixel."""
        share: NDArray[np.float64] = self.count / max(int(self.count.sum()), 1)
        return share

    @property
    def pixels(self) -> int:
        """The pixels of all bins."""
        return int(self.count.sum())

    @property
    def ece(self) -> float:
        """The ECE of these bins in [0,1]; NaN without a pixel."""
        return float(np.abs(self.contribution()).sum()) if self.pixels else math.nan


@dataclass(frozen=True)
class Selection:
    """What is left wrong where only the surest pixels are answered; each (n,), empty without a pixel.

    `risk` in [0,1] is the share of wrong pixels among the surest share `coverage` of all, rising from above 0 to 1;
    `threshold` in [0,1] is the confidence above which that share lies.
    """

    coverage: NDArray[np.float64]
    risk: NDArray[np.float64]
    threshold: NDArray[np.float64]

    def error_rate(self) -> float:
        """The risk of answering everything, which is that of a random order at any coverage; NaN without a pixel."""
        return float(self.risk[-1]) if self.risk.size else math.nan

    def perfect(self) -> NDArray[np.float64]:
        """The risk (n,) of an order with every wrong pixel after every right one.

        >>> Selection(np.array([0.5, 1.0]), np.array([0.4, 0.75]), np.zeros(2)).perfect().tolist()
        [0.5, 0.75]
        """
        risk: NDArray[np.float64] = np.maximum(self.coverage - (1 - self.error_rate()), 0) / self.coverage
        return risk


@dataclass(frozen=True)
class ConfidenceHistogram:
    """How many pixels have which confidence, the right ones and the wrong ones apart; each (bins,)."""

    lower: NDArray[np.float64]
    upper: NDArray[np.float64]
    correct: NDArray[np.int64]
    wrong: NDArray[np.int64]


@dataclass(frozen=True)
class ClassRow:
    """One class. `pixels`, `iou`, `accuracy` go by the true class; `predicted_pixels`, `precision`, `mean_confidence`
    and `ece` by the predicted one; `bias` is how often the class is predicted, every true class counting alike, minus
    its fair share. NaN where nothing is there to measure.
    """

    name: str
    color: Color
    pixels: int
    iou: float
    accuracy: float
    ece: float
    predicted_pixels: int
    mean_confidence: float
    precision: float
    bias: float = math.nan

    @property
    def gap(self) -> float:
        """Mean confidence minus precision: above zero where the class is claimed with too much confidence."""
        return self.mean_confidence - self.precision


@dataclass(frozen=True)
class RegionRow:
    """One region of the images, and the scores of its labelled pixels; NaN where it has none."""

    name: str
    pixels: int
    accuracy: float
    confidence: float
    signed_gap: float
    ece: float
    noise_floor: float


@dataclass(frozen=True)
class LogitSpread:
    """How some logits lie: their mean, their quantiles (5,) at `LOGIT_LEVELS`, and their `density` (n,) by logit.

    `distance` is how far they are from their anchor, in logits, and 0 for an anchor. NaN where there are no logits.
    """

    mean: float
    quantiles: NDArray[np.float64]
    density: NDArray[np.float64]
    distance: float = 0.0


@dataclass(frozen=True)
class LogitRow:
    """One class's logits on its own pixels (`positive`) and on those of others (`negative`).

    `bias_by_logits` is the bias that the distributions of logits alone imply; `pixels` are those of the true class.
    """

    name: str
    pixels: int
    bias: float
    bias_by_logits: float
    positive: LogitSpread
    negative: LogitSpread


@dataclass(frozen=True)
class LogitReport:
    """The logits of each evaluated class in `rows`, and of all classes together in the two anchors.

    `grid` (n,) are the logits at which densities are given, `bin_width` that of the counts, in logits.
    """

    grid: NDArray[np.float64]
    bin_width: float
    rows: Sequence[LogitRow]
    positive: LogitSpread
    negative: LogitSpread


LOGIT_LEVELS = (0.05, 0.25, 0.5, 0.75, 0.95)
"""Where the quantiles of a `LogitSpread` lie."""


@dataclass(frozen=True)
class ImageExample:
    """One image with everything drawn of it: pictures uint8 (H,W,3), confidence float32 (H,W), masks bool (H,W)."""

    id: str
    role: Role
    miou: float
    ece: float
    accuracy: float
    image: Picture
    label_colors: Picture
    prediction_colors: Picture
    confidence: NDArray[np.float32]
    wrong: NDArray[np.bool_]
    ignored: NDArray[np.bool_]


@dataclass(frozen=True)
class Compared:
    """Another result on the same images, such as the network before adaptation."""

    name: str
    scores: Mapping[str, float]
    reliability: Reliability | None = None


@dataclass(frozen=True)
class Intervals:
    """Between which values scores may lie, (low, high) by key, NaN where n/a: from resamples of whole images.

    `bin_accuracy` (bins,2) float64 has low and high of the accuracy of each bin of the reliability diagram.
    """

    level: float
    resamples: int
    seed: int
    scores: Mapping[str, tuple[float, float]]
    bin_accuracy: NDArray[np.float64] | None = None


@dataclass(frozen=True)
class ReportData:
    """Everything that a report says. NaN means "nothing to measure" and is shown as n/a, never as 0.

    `scores` has the keys of `wording.SCORES` (others are shown under their own names); `confusion` int64 (C,C) has the
    true classes in its rows; `images` holds one mapping an image with id, miou, ece, accuracy and confidence;
    `training` holds the lines of a stage's log.jsonl, for its curves; `class_reliability` has the bins of the pixels
    predicted as each of `classes`, in their order, or is empty.
    """

    title: str
    subtitle: str
    scores: Mapping[str, float]
    convention: str
    protocol: Mapping[str, Any]
    provenance: Mapping[str, Any]
    reliability: Reliability
    class_names: Sequence[str]
    classes: Sequence[ClassRow]
    confusion: NDArray[np.int64]
    examples: Sequence[ImageExample]
    images: Sequence[Mapping[str, Any]]
    confidence_histogram: ConfidenceHistogram | None = None
    command: str = ""
    comparison: Sequence[Compared] = ()
    training: Sequence[Mapping[str, Any]] = ()
    intervals: Intervals | None = None
    regions: Sequence[RegionRow] = ()
    class_reliability: Sequence[Reliability] = ()
    selection: Selection | None = None
    logits: LogitReport | None = None
