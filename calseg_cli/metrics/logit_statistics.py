"""Owns the statistics of logits by label and channel of a set of images, in a form that a file holds and parts add."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from calseg_cli.errors import ArtifactError, DataError
from calseg_cli.metrics.logit_histograms import COARSEST, FINEST, LOGIT_BINS, Counts, LogitHistograms, count_logits


@dataclass(frozen=True, eq=False)
class LogitStatistics:
    """Exact histograms of logits (BLDA's sets M[c][l], ICML 2025, Eq. 3), and the images that are in them, by name."""

    histograms: LogitHistograms
    images: frozenset[str] = frozenset()

    @classmethod
    def zeros(cls, num_classes: int) -> "LogitStatistics":
        """Of no image."""
        return cls(LogitHistograms.zeros(num_classes))

    @classmethod
    def of_image(cls, logits: Tensor, labels: Tensor, name: str) -> "LogitStatistics":
        """Of n pixels of one image, from finite logits (C,n) and labels (n,) in [0,C)."""
        return cls(count_logits(logits, labels), frozenset([name]))

    @property
    def pixels(self) -> Counts:
        """(C,) int64: pixels of each label."""
        return pixels_by_label(self.histograms)

    def __add__(self, other: "LogitStatistics") -> "LogitStatistics":
        """Both together, exactly. Raises ConfigError for other classes, DataError for the same image twice."""
        twice = self.images & other.images
        if twice:
            raise DataError(f"{min(twice)!r} was counted twice", "add parts that share no image")
        return LogitStatistics(self.histograms + other.histograms, self.images | other.images)

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """What `from_arrays` reads: `counts` (C,C,1024), `edges` (1025,), `pixels` (C,), `images`."""
        arrays: dict[str, NDArray[Any]] = {
            "counts": self.histograms.counts,
            "edges": self.histograms.edges,
            "pixels": self.pixels,
        }
        if self.images:
            arrays["images"] = np.array(sorted(self.images), dtype=object)
        return arrays

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> "LogitStatistics":
        """The inverse of `to_arrays`. Raises ArtifactError for shapes, types or values that no counting gives."""
        counts, edges, pixels = (np.asarray(arrays[name]) for name in ("counts", "edges", "pixels"))
        if counts.dtype != np.int64 or counts.ndim != 3 or counts.shape != (len(counts), len(counts), LOGIT_BINS):
            raise _unusable(f"counts are int64 (C, C, {LOGIT_BINS}), not {counts.dtype} {counts.shape}")
        histograms = LogitHistograms(counts, _exponent(edges))
        if (counts < 0).any() or not (counts.sum(axis=2) == pixels_by_label(histograms)[:, None]).all():
            raise _unusable("the channels of a label do not count the same pixels")
        if not np.array_equal(pixels, pixels_by_label(histograms)):
            raise _unusable("its pixels are not those of its counts")
        return cls(histograms, frozenset(str(name) for name in arrays.get("images", ())))


def pixels_by_label(histograms: LogitHistograms) -> Counts:
    """(C,) int64: pixels of each label, as its first channel counts them."""
    found: Counts = histograms.counts[:, 0].sum(axis=-1)
    return found


def _exponent(edges: NDArray[Any]) -> int:
    """Of bins 2**exponent wide that these are the edges of."""
    if edges.shape == (LOGIT_BINS + 1,) and edges.dtype == np.float64:
        for exponent in range(FINEST, COARSEST + 1):
            if edges[-1] == np.ldexp(LOGIT_BINS // 2, exponent):
                wanted = np.ldexp(np.arange(-LOGIT_BINS // 2, LOGIT_BINS // 2 + 1, dtype=np.float64), exponent)
                if np.array_equal(edges, wanted):
                    return exponent
    raise _unusable("the edges of its bins are not those of any grid of calseg's")


def _unusable(what: str) -> ArtifactError:
    return ArtifactError(f"logit statistics cannot be read: {what}", "make them again with `calseg logit-statistics`")
