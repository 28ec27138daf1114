"""Owns what must hold between counts of the same pixels; a file in which it does not is not read."""

import numpy as np

from calseg_cli.metrics.fine_histogram import FINE_BINS, ONE, CalibrationCounts
from calseg_cli.metrics.image_rows import ImageRows, coarsen


def contradictions(images: ImageRows, by_predicted: CalibrationCounts, by_true: CalibrationCounts) -> list[str]:
    """What does not agree, in words; empty where every measured pixel is in one cell, one bin and one image."""
    if not by_predicted.num_groups == by_true.num_groups == images.num_classes:
        return ["number of classes"]
    confusion = images.confusion.sum(axis=0)
    hits = np.diagonal(confusion)
    both = (by_predicted, by_true)
    pairs = list(zip(by_predicted.arrays(), by_true.arrays(), strict=True))
    holds = {
        "pixels by predicted class": np.array_equal(by_predicted.count.sum(axis=1), confusion.sum(axis=0)),
        "pixels by true class": np.array_equal(by_true.count.sum(axis=1), confusion.sum(axis=1)),
        "right pixels": all(np.array_equal(counts.correct.sum(axis=1), hits) for counts in both),
        "sums by predicted and by true class": all(
            np.array_equal(one.sum(axis=0), two.sum(axis=0)) for one, two in pairs
        ),
        "right pixels and pixels of a bin": all(((c.correct >= 0) & (c.correct <= c.count)).all() for c in both),
        "confidence and its bin": all(_within_bins(counts) for counts in both),
        "pixels and bins of an image": np.array_equal(images.coarse[:, 0].sum(axis=1), images.valid),
        "bins of the images and of the dataset": all(
            np.array_equal(images.coarse[:, place].sum(axis=0), coarsen(array))
            for place, array in enumerate(by_predicted.arrays())
        ),
    }
    return [name for name, agrees in holds.items() if not agrees]


def _within_bins(counts: CalibrationCounts) -> bool:
    filled = counts.count > 0
    mean = counts.confidence[filled] / counts.count[filled] / ONE
    bins = np.nonzero(filled)[1]
    slack = 1 / ONE  # a confidence below 1/256 is rounded to fixed point
    inside = (mean >= bins / FINE_BINS - slack) & (mean <= (bins + 1) / FINE_BINS + slack)
    return bool(inside.all()) and not counts.confidence[~filled].any()
