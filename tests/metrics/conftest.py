"""Slow and obvious references, written from the definitions and not from calseg's code, and data off the bin edges."""

import math
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch


def bin_of(confidence, bins, edges):
    """The bin by comparison with every float64 edge."""
    for index in range(bins):
        low, high = index / bins, (index + 1) / bins
        inside = low < confidence <= high if edges == "right" else low <= confidence < high
        closing = (edges == "right" and index == 0 and confidence == 0) or (
            edges == "left" and index == bins - 1 and confidence == 1
        )
        if inside or closing:
            return index
    raise AssertionError(confidence)


def bin_table(confidence, correct, bins, edges="right"):
    """A list of (confidences, corrects) a bin."""
    table = [([], []) for _ in range(bins)]
    for q, t in zip(np.asarray(confidence, np.float64).tolist(), np.asarray(correct).tolist(), strict=True):
        where = table[bin_of(q, bins, edges)]
        where[0].append(q)
        where[1].append(float(t))
    return table


def ece(confidence, correct, bins, edges="right"):
    gaps = [abs(math.fsum(q) - math.fsum(t)) for q, t in bin_table(confidence, correct, bins, edges)]
    return math.fsum(gaps) / len(confidence) if len(confidence) else math.nan


def rmsce(confidence, correct, bins):
    table = bin_table(confidence, correct, bins)
    squares = [(math.fsum(q) - math.fsum(t)) ** 2 / len(q) for q, t in table if q]
    return math.sqrt(math.fsum(squares) / len(confidence))


def mce(confidence, correct, bins, min_count=1):
    table = bin_table(confidence, correct, bins)
    return max(abs(math.fsum(q) - math.fsum(t)) / len(q) for q, t in table if len(q) >= max(min_count, 1))


def softmax(logits):
    """float64 (C,N) probabilities."""
    z = np.asarray(logits, np.float64)
    e = np.exp(z - z.max(axis=0))
    return e / e.sum(axis=0)


def netcal_ece(confidence, correct, bins):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from netcal.metrics import ECE

        return float(ECE(bins).measure(confidence, correct))


def torchmetrics_error(confidence, correct, bins, norm):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torchmetrics.functional.classification.calibration_error import _ce_compute

        return float(_ce_compute(torch.from_numpy(confidence), torch.from_numpy(correct).double(), bins, norm=norm))


@pytest.fixture(scope="session")
def reference():
    """The references as one namespace."""
    return SimpleNamespace(
        bin_of=bin_of,
        bin_table=bin_table,
        ece=ece,
        rmsce=rmsce,
        mce=mce,
        softmax=softmax,
        netcal_ece=netcal_ece,
        torchmetrics_error=torchmetrics_error,
    )


@pytest.fixture(scope="session")
def make_pixels():
    """(confidence float32, correct, groups) with confidences away from 1 and from the edges of the usual bins."""

    def make(count, seed=0, lowest=0.05, classes=1):
        rng = np.random.default_rng(seed)
        q = rng.uniform(lowest, 1 - 1e-5, 2 * count).astype(np.float32)
        for bins in (10, 12, 15, 20, 25, 30):
            q = q[np.abs(q * bins - np.round(q * bins)) > 1e-5 * bins]
        q = q[:count]
        assert len(q) == count
        t = rng.random(count) < np.clip(q.astype(np.float64) ** 1.3 + 0.05 * np.sin(20 * q), 0, 1)
        groups = rng.integers(0, classes, count)
        return torch.from_numpy(q), torch.from_numpy(t), torch.from_numpy(groups)

    return make


@pytest.fixture
def cuda():
    """A CUDA device, or the test is skipped."""
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return torch.device("cuda")


@pytest.fixture(scope="session")
def make_image():
    """(logits (C,H,W) float32, labels (H,W) int64) with overconfident answers and some ignored pixels."""

    def make(seed=0, classes=5, height=12, width=17, ignore=255, void=0.1, scale=3.0):
        generator = torch.Generator().manual_seed(seed)
        logits = torch.randn(classes, height, width, generator=generator) * scale
        noisy = logits + torch.randn(classes, height, width, generator=generator) * scale
        labels = noisy.argmax(0)
        labels[torch.rand(height, width, generator=generator) < void] = ignore
        return logits, labels

    return make
