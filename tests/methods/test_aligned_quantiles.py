"""Tables from histograms: the laws of the map, numpy's quantiles of the raw samples, and the mixtures' table."""

import numpy as np
import pytest
import torch

from calseg_cli.errors import ConfigError, DataError
from calseg_cli.methods.aligned_quantiles import Anchors, pooled_anchors, quantile_table
from calseg_cli.methods.logit_alignment import AlignmentTable, alignment_table
from calseg_cli.methods.logit_mixtures import fit_mixtures
from calseg_cli.metrics.logit_histograms import LogitHistograms, count_logits

CLASSES, PIXELS = 3, 5000


def humps(seed, *, classes=CLASSES, pixels=PIXELS):
    """Logits (C,N) and labels (N,): two humps in each cell, each elsewhere and of another width."""
    drawn = np.random.default_rng(seed)
    labels = np.repeat(np.arange(classes), pixels)
    one = drawn.normal(0, 1, (classes, len(labels)))
    other = 4 + drawn.gamma(2.0, 1.0, (classes, len(labels)))
    values = np.where(drawn.random((classes, len(labels))) < 0.5, one, other)
    scale, shift = drawn.uniform(0.5, 1.5, (2, classes, classes))
    values = values * scale[:, labels] + 8 * (shift[:, labels] - 1)
    return torch.from_numpy(values), torch.from_numpy(labels)


def counted(seed=0, **options):
    logits, labels = humps(seed, **options)
    return count_logits(logits, labels), logits.numpy(), labels.numpy()


def of_samples(positive, negative):
    """Anchors that are two samples (N,)."""
    size = min(len(positive), len(negative))
    logits = torch.from_numpy(np.stack([positive[:size], negative[:size]]))
    found = count_logits(logits, torch.zeros(size, dtype=torch.int64))
    shares = found.counts[0] / found.counts[0].sum(axis=1, keepdims=True)
    return Anchors(shares, found.edges)


def aligned(table, values, row, channel):
    logits = torch.zeros(table.offsets.shape[1], len(values), dtype=torch.float64)
    logits[channel] = torch.from_numpy(values)
    return values + table.hypotheses(logits)[row, channel].numpy()


def distance(one, other):
    both = np.sort(np.concatenate([one, other]))
    first, second = (np.searchsorted(np.sort(part), both, side="right") / len(part) for part in (one, other))
    return float(np.abs(first - second).max())


def test_aligned_logits_have_the_anchors_distribution():
    cells, logits, labels = counted()
    anchors_from, theirs, named = counted(1)
    table = quantile_table(cells, pooled_anchors(anchors_from), tail_quantile=1e-3)
    own = np.arange(CLASSES)[:, None] == named
    for row in range(CLASSES):
        for channel in range(CLASSES):
            expected = theirs[own] if row == channel else theirs[~own]
            assert distance(aligned(table, logits[channel, labels == row], row, channel), expected) <= 0.02


@pytest.mark.parametrize("tail", ["hold", "clip"])
def test_the_map_rises(tail):
    cells, *_ = counted()
    table = quantile_table(cells, pooled_anchors(counted(1)[0]), tail=tail)
    values = np.linspace(-60, 60, 20001)
    for row in range(CLASSES):
        for channel in range(CLASSES):
            steps = np.diff(aligned(table, values, row, channel))
            assert (steps > -1e-9).all()
            if tail == "hold":
                outside = (values[:-1] < -50) | (values[1:] > 50)
                assert (steps[outside] > 0).all()


@pytest.mark.parametrize("seed", [0, 1])
def test_a_cell_like_its_anchor_is_left_even_in_a_gap(seed):
    drawn = np.random.default_rng(seed)
    one = np.concatenate([drawn.normal(-9, 1, 3000), drawn.normal(9, 1, 3000)])  # nothing lies between
    other = drawn.normal(2, 3, 6000)
    logits = np.stack([np.concatenate([one, other]), np.concatenate([other, one])])
    cells = count_logits(torch.from_numpy(logits), torch.arange(2).repeat_interleave(6000))
    table = quantile_table(cells, of_samples(one, other))
    assert float(table.offsets.abs().max()) <= 1e-6


def test_a_normal_cell_is_moved_and_stretched_to_a_normal_anchor():
    levels = (np.arange(400_000) + 0.5) / 400_000
    normal = torch.special.ndtri(torch.from_numpy(levels)).numpy()
    laws = {(0, 0): (3.0, 2.0), (0, 1): (-5.0, 0.5), (1, 0): (1.0, 1.0), (1, 1): (7.0, 2.0)}
    rows = [np.stack([laws[row, channel][0] + laws[row, channel][1] * normal for channel in (0, 1)]) for row in (0, 1)]
    cells = count_logits(torch.from_numpy(np.concatenate(rows, axis=1)), torch.arange(2).repeat_interleave(len(levels)))
    table = quantile_table(cells, of_samples(6 + 1.5 * normal, -9 + 3 * normal))
    for (row, channel), (a, s) in laws.items():
        b, t = (6, 1.5) if row == channel else (-9, 3)
        values = a + s * np.linspace(-2.2, 2.2, 301)
        np.testing.assert_allclose(aligned(table, values, row, channel), b + t * (values - a) / s, atol=0.02)


def test_it_is_numpys_quantiles_of_the_raw_samples_within_a_bin():
    cells, logits, labels = counted()
    anchors_from, theirs, named = counted(1)
    table = quantile_table(cells, pooled_anchors(anchors_from), nodes=2048)
    own = np.arange(CLASSES)[:, None] == named
    levels = np.linspace(0.02, 0.98, 200)
    bins = 2.0**cells.exponent + 2.0**anchors_from.exponent
    for row in range(CLASSES):
        for channel in range(CLASSES):
            values = np.quantile(logits[channel, labels == row], levels)
            pool = theirs[own] if row == channel else theirs[~own]
            # A bin of the cell is as wide as what its share of the anchor spans.
            slack = 2.0**cells.exponent * 4
            near = [np.quantile(pool, np.interp(values + d, values, levels)) for d in (-slack, slack)]
            found = aligned(table, values, row, channel)
            inside = slice(5, -5)
            assert (found[inside] >= near[0][inside] - bins).all()
            assert (found[inside] <= near[1][inside] + bins).all()


def test_it_agrees_with_the_mixtures():
    cells, logits, labels = counted()
    theirs, named = humps(1)
    rows = [torch.from_numpy(logits[:, labels == row]) for row in range(CLASSES)]
    mixtures = fit_mixtures(torch.cat(rows), 5, 30).reshape(CLASSES, CLASSES)
    own = torch.nn.functional.one_hot(named, CLASSES).bool().T
    pools = torch.stack([theirs[own], theirs[~own][:: CLASSES - 1]])
    table = quantile_table(cells, pooled_anchors(count_logits(theirs, named)))
    smooth = alignment_table(mixtures, fit_mixtures(pools, 5, 30))
    for row, channel in ((0, 0), (1, 0), (2, 1)):
        values = np.quantile(logits[channel, labels == row], np.linspace(0.03, 0.97, 300))
        apart = aligned(table, values, row, channel) - aligned(smooth, values, row, channel)
        assert np.abs(apart).mean() < 0.15


def test_moving_both_anchors_moves_every_offset():
    cells, *_ = counted()
    anchors = pooled_anchors(counted(1)[0])
    moved = quantile_table(cells, Anchors(anchors.shares, anchors.edges + 200))  # clear of every gap
    further = quantile_table(cells, Anchors(anchors.shares, anchors.edges + 207))
    torch.testing.assert_close(further.offsets, moved.offsets + 7, atol=1e-9, rtol=0)


def test_labels_without_pixels_or_with_few_have_offset_zero():
    cells, *_ = counted()
    emptied = cells.counts.copy()
    emptied[0] = 0
    table = quantile_table(
        LogitHistograms(emptied, cells.exponent), pooled_anchors(counted(1)[0]), np.array([True, False, True])
    )
    assert bool((table.offsets[:2] == 0).all())
    assert bool((table.offsets[2].abs().amax(dim=1) > 0).all())


@pytest.mark.parametrize("value", [0.0, -3.0, 8.125])
def test_a_constant_cell_is_moved_to_the_anchors_median_and_not_stretched(value):
    drawn = np.random.default_rng(0)
    anchor = drawn.normal(5, 2, 4001)
    logits = torch.full((2, 50), value, dtype=torch.float64)
    cells = count_logits(logits, torch.zeros(50, dtype=torch.int64))
    table = quantile_table(cells, of_samples(anchor, anchor))
    assert float(table.offsets[0].std()) < 1e-9
    width = 2.0**cells.exponent
    assert float(table.offsets[0].mean()) == pytest.approx(np.median(anchor) - value, abs=width + 0.05)


def test_anchors_pool_by_pixels_or_by_classes():
    counts = np.zeros((2, 2, 1024), np.int64)
    counts[0, 0, 600], counts[0, 1, 400] = 90, 90
    counts[1, 0, 410], counts[1, 1, 610] = 10, 10
    cells = LogitHistograms(counts, -3)
    assert pooled_anchors(cells).shares[:, [600, 610, 400, 410]].tolist() == [[0.9, 0.1, 0, 0], [0, 0, 0.9, 0.1]]
    alike = pooled_anchors(cells, "classes").shares[:, [600, 610, 400, 410]]
    assert alike.tolist() == [[0.5, 0.5, 0, 0], [0, 0, 0.5, 0.5]]


def test_no_anchors_without_pixels_or_a_second_class():
    for empty in (LogitHistograms.zeros(3), count_logits(torch.zeros(1, 5), torch.zeros(5, dtype=torch.int64))):
        with pytest.raises(DataError, match="no anchors"):
            pooled_anchors(empty)


@pytest.mark.parametrize(("nodes", "tail_quantile"), [(1, 0.01), (100, 0.0), (100, 0.5)])
def test_no_table_of_too_few_nodes_or_without_a_middle(nodes, tail_quantile):
    cells, *_ = counted(pixels=50)
    with pytest.raises(ConfigError, match="nodes"):
        quantile_table(cells, pooled_anchors(cells), nodes=nodes, tail_quantile=tail_quantile)


def test_all_hypotheses_at_once_are_each_row_in_turn():
    cells, *_ = counted()
    table = quantile_table(cells, pooled_anchors(counted(1)[0]))
    assert isinstance(table, AlignmentTable)
    logits = 6 * torch.randn(1, CLASSES, 5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = table.hypotheses(logits[0].flatten(1))
    for row in range(CLASSES):
        one = table.offset(logits, torch.full((1, 5, 7), row))
        assert torch.equal(found[row], one[0].flatten(1))
