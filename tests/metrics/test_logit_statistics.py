"""Statistics of logits: parts add up to the whole, and arrays that no counting gives are refused."""

import numpy as np
import pytest
import torch

from calseg_cli.errors import ArtifactError, ConfigError, DataError
from calseg_cli.metrics.logit_histograms import count_logits
from calseg_cli.metrics.logit_statistics import LogitStatistics

CLASSES = 3


def image(number: int):
    """Logits (C,n) whose size grows with the number, so that grids differ, and labels (n,)."""
    drawn = torch.Generator().manual_seed(number)
    labels = torch.randint(0, CLASSES, (50 + number,), generator=drawn)
    return torch.randn(CLASSES, len(labels), generator=drawn) * 4.0**number, labels


def part(number: int, name: str | None = None) -> LogitStatistics:
    return LogitStatistics.of_image(*image(number), name or f"image {number}")


def equal(one: LogitStatistics, other: LogitStatistics) -> bool:
    mine, theirs = one.to_arrays(), other.to_arrays()
    return mine.keys() == theirs.keys() and all(np.array_equal(mine[key], theirs[key]) for key in mine)


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 1, 0, 2), (2, 3, 1, 0)])
def test_parts_in_any_order_are_the_whole(order):
    whole = count_logits(*(torch.cat(parts, dim=-1) for parts in zip(*map(image, range(4)), strict=True)))
    total = sum((part(number) for number in order), LogitStatistics.zeros(CLASSES))
    assert np.array_equal(total.histograms.counts, whole.counts)
    assert total.histograms.exponent == whole.exponent
    assert total.images == {f"image {number}" for number in range(4)}
    labels = torch.cat([image(number)[1] for number in range(4)])
    assert total.pixels.tolist() == torch.bincount(labels, minlength=CLASSES).tolist()


def test_what_cannot_be_added():
    with pytest.raises(DataError, match="'a' was counted twice"):
        part(0, "a") + part(1, "a")
    with pytest.raises(ConfigError, match="3 and of 2 classes"):
        part(0) + LogitStatistics.zeros(2)


def test_arrays_and_back():
    total = part(0) + part(3)
    assert equal(LogitStatistics.from_arrays(total.to_arrays()), total)
    assert equal(LogitStatistics.from_arrays(LogitStatistics.zeros(2).to_arrays()), LogitStatistics.zeros(2))


def moved(arrays):
    counts = arrays["counts"].copy()
    place = tuple(np.argwhere(counts[:, 1] > 0)[0])
    counts[place[0], 1, place[1]] -= 1
    return {**arrays, "counts": counts}


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda arrays: {**arrays, "counts": arrays["counts"][..., :512]}, "counts are int64"),
        (lambda arrays: {**arrays, "counts": arrays["counts"][:2]}, "counts are int64"),
        (lambda arrays: {**arrays, "counts": arrays["counts"].astype(np.int32)}, "counts are int64"),
        (lambda arrays: {**arrays, "counts": -arrays["counts"], "pixels": -arrays["pixels"]}, "do not count the same"),
        (moved, "do not count the same"),
        (lambda arrays: {**arrays, "pixels": arrays["pixels"] + 1}, "its pixels"),
        (lambda arrays: {**arrays, "edges": arrays["edges"] * 3}, "edges"),
        (lambda arrays: {**arrays, "edges": arrays["edges"] + 1e-3}, "edges"),
        (lambda arrays: {**arrays, "edges": arrays["edges"] * np.nan}, "edges"),
    ],
)
def test_arrays_that_no_counting_gives(spoil, told):
    with pytest.raises(ArtifactError, match=told):
        LogitStatistics.from_arrays(spoil(part(1).to_arrays()))
