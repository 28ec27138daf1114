"""The map to the anchors: its laws, its table, and the balanced prediction, each against a direct computation."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from calseg_cli.errors import ConfigError
from calseg_cli.methods.logit_alignment import (
    AlignmentTable,
    alignment_table,
    balanced_scores,
    logit_adjustment,
)
from calseg_cli.methods.logit_mixtures import Mixtures, fit_mixtures


def humps(rows: int, seed: int = 0, size: int = 2000) -> Tensor:
    """Samples (rows,N), float64, of two humps; each row elsewhere and of another width."""
    drawn = np.random.default_rng(seed)
    values = np.concatenate(
        [drawn.normal(0, 1, (rows, size // 2)), 4 + drawn.gamma(2.0, 1.0, (rows, size - size // 2))], axis=1
    )
    return torch.from_numpy(values * drawn.uniform(0.5, 2, (rows, 1)) + drawn.uniform(-9, 9, (rows, 1)))


def fitted(classes: int = 3, seed: int = 0) -> tuple[Mixtures, Mixtures, Tensor]:
    """Cells (C,C,K), anchors (2,K) and the cells' samples (C,C,N), float64."""
    samples = humps(classes * classes, seed)
    cells = fit_mixtures(samples, 5, 20).reshape(classes, classes)
    return cells, fit_mixtures(humps(2, seed + 100), 5, 20), samples.reshape(classes, classes, -1)


def normal(mean: float, deviation: float) -> Mixtures:
    """One Gaussian as a mixture (1,)."""
    one = torch.ones(1, dtype=torch.float64)
    return Mixtures(one, mean * one, deviation**2 * one)


def stacked(rows: list[Mixtures]) -> Mixtures:
    return Mixtures(*(torch.stack(parts) for parts in zip(*(row.parts() for row in rows), strict=True)))


def aligned(table: AlignmentTable, values: Tensor, row: int, channel: int) -> Tensor:
    """The z' (N,) of values (N,) of one cell."""
    logits = torch.zeros(1, table.offsets.shape[1], 1, len(values), dtype=values.dtype)
    logits[0, channel, 0] = values
    return values + table.offset(logits, torch.full((1, 1, len(values)), row))[0, channel, 0]


def distance(one: Tensor, other: Tensor) -> float:
    """Kolmogorov and Smirnov's."""
    both = torch.cat([one, other]).sort().values
    shares = [torch.searchsorted(part.sort().values, both, right=True) / len(part) for part in (one, other)]
    return float((shares[0] - shares[1]).abs().max())


@pytest.mark.parametrize("tail_quantile", [1e-4, 1e-3])
def test_aligned_logits_have_the_anchors_distribution(tail_quantile):
    cells, anchors, samples = fitted()
    table = alignment_table(cells, anchors, tail_quantile=tail_quantile)
    levels = (torch.arange(2000, dtype=torch.float64) + 0.5) / 2000
    for row in range(3):
        for channel in range(3):
            expected = anchors[0 if row == channel else 1].quantiles(levels)
            assert distance(aligned(table, samples[row, channel], row, channel), expected) < 0.03


def test_a_clipped_tail_piles_up_and_a_held_one_does_not():
    cells, anchors, samples = fitted()
    held, clipped = (alignment_table(cells, anchors, tail=tail, tail_quantile=0.05) for tail in ("hold", "clip"))
    expected = anchors[1].quantiles((torch.arange(2000, dtype=torch.float64) + 0.5) / 2000)
    found = [aligned(table, samples[0, 1], 0, 1) for table in (held, clipped)]
    assert distance(found[1], expected) == pytest.approx(0.05, abs=0.02)
    low, high = anchors[1].quantiles(torch.tensor([0.05, 0.95], dtype=torch.float64))
    assert float(found[1].min()) == pytest.approx(float(low), abs=1e-3)
    assert float(found[1].max()) == pytest.approx(float(high), abs=1e-3)
    assert float(found[0].min()) < float(low) - 0.1


@pytest.mark.parametrize("tail", ["hold", "clip"])
def test_the_map_rises(tail):
    cells, anchors, _ = fitted()
    table = alignment_table(cells, anchors, tail=tail)
    values = torch.linspace(-60, 60, 20001, dtype=torch.float64)
    for row, channel in ((0, 0), (0, 1), (2, 1)):
        found = aligned(table, values, row, channel).diff()
        assert bool((found > 0).all()) if tail == "hold" else bool((found > -1e-9).all())


def test_a_cell_like_its_anchor_is_left():
    _, anchors, _ = fitted()
    cells = stacked([stacked([anchors[0], anchors[1]]), stacked([anchors[1], anchors[0]])])
    table = alignment_table(cells, anchors)
    assert float(table.offsets.abs().max()) < 1e-3
    logits = 10 * torch.randn(2, 2, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for tau in (0.5, 1.0):
        torch.testing.assert_close(balanced_scores(logits, table, tau)[1], logits.softmax(1), atol=1e-3, rtol=0)


def test_a_normal_cell_is_moved_and_stretched_to_a_normal_anchor():
    cells = stacked([stacked([normal(3, 2), normal(-5, 0.5)]), stacked([normal(1, 1), normal(8, 4)])])
    table = alignment_table(cells, stacked([normal(6, 1.5), normal(-9, 3)]))
    for row, channel, (a, s), (b, t) in (
        (0, 0, (3, 2), (6, 1.5)),
        (0, 1, (-5, 0.5), (-9, 3)),
        (1, 0, (1, 1), (-9, 3)),
        (1, 1, (8, 4), (6, 1.5)),
    ):
        values = a + s * torch.linspace(-2.3, 2.3, 501, dtype=torch.float64)
        torch.testing.assert_close(
            aligned(table, values, row, channel), b + t * (values - a) / s, atol=1e-3 * max(1, t), rtol=0
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_table_is_the_map_within_a_hundredth_of_a_logit(dtype):
    cells, anchors, samples = fitted()
    low, high = 0.01, 0.99
    device = torch.device("cpu")
    table = alignment_table(cells.to(device, dtype), anchors.to(device, dtype))
    for row, channel in ((0, 0), (1, 0), (2, 1)):
        values = samples[row, channel]
        shares = cells[row, channel].cdf(values)
        inside = (shares > low) & (shares < high)
        exact = anchors[0 if row == channel else 1].quantiles(shares[inside])
        found = aligned(table, values[inside].to(dtype), row, channel).double()
        assert float((found - exact).abs().max()) < 0.01
        assert float((found - exact).abs().mean()) < 1e-3


def test_mixtures_and_sorted_samples_agree():
    cells, _, samples = fitted()
    anchor_samples = humps(2, 100)
    table = alignment_table(cells, fit_mixtures(anchor_samples, 5, 20))
    ordered = samples[0, 1].sort().values[40:-40]
    empirical = anchor_samples[1].sort().values[40:-40]
    assert float((aligned(table, ordered, 0, 1) - empirical).abs().mean()) < 0.1


def test_moving_both_anchors_moves_every_offset_and_no_prediction():
    cells, anchors, _ = fitted()
    moved = Mixtures(anchors.weights, anchors.means + 7, anchors.variances)
    one, other = alignment_table(cells, anchors), alignment_table(cells, moved)
    torch.testing.assert_close(other.offsets, one.offsets + 7, atol=1e-6, rtol=0)
    logits = 6 * torch.randn(2, 3, 30, 30, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    mine, theirs = (balanced_scores(logits, table, 0.7)[0] for table in (one, other))
    torch.testing.assert_close(mine, theirs, atol=1e-6, rtol=0)
    labels = mine.argmax(1)
    losses = [
        torch.nn.functional.cross_entropy(logits - 0.7 * table.offset(logits, labels), labels) for table in (one, other)
    ]
    torch.testing.assert_close(*losses, atol=1e-6, rtol=0)


def test_unseen_rows_and_pixels_without_a_row_have_offset_zero():
    cells, anchors, _ = fitted()
    table = alignment_table(cells, anchors, torch.tensor([True, False, True]))
    logits = 6 * torch.randn(2, 3, 9, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    rows = torch.randint(-1, 3, (2, 9, 9), generator=torch.Generator().manual_seed(1))
    found = table.offset(logits, rows).movedim(1, -1)
    nothing = (rows < 0) | (rows == 1)
    assert bool((found[nothing] == 0).all())
    assert bool((found[~nothing] != 0).all())


def test_two_domains_in_one_table_are_each_its_own():
    one, other = (alignment_table(*fitted(seed=seed)[:2]) for seed in (0, 1))
    logits = 6 * torch.randn(1, 3, 9, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    rows = torch.randint(0, 3, (1, 9, 9), generator=torch.Generator().manual_seed(1))
    assert torch.equal((one + other).offset(logits, rows), one.offset(logits, rows))
    assert torch.equal((one + other).offset(logits, rows + 3), other.offset(logits, rows))


@pytest.mark.parametrize("channels_last", [False, True])
def test_chunks_images_and_layout_do_not_matter(monkeypatch, channels_last):
    cells, anchors, _ = fitted()
    table = alignment_table(cells, anchors)
    logits = 6 * torch.randn(2, 3, 17, 13, generator=torch.Generator().manual_seed(0))
    rows = torch.randint(-1, 3, (2, 17, 13), generator=torch.Generator().manual_seed(1))
    whole, scores = table.offset(logits, rows), balanced_scores(logits, table, 0.5)
    monkeypatch.setattr("calseg_cli.methods.logit_alignment._CHUNK", 10)
    given = logits.contiguous(memory_format=torch.channels_last) if channels_last else logits
    assert torch.equal(table.offset(given, rows), whole)
    for mine, theirs in zip(balanced_scores(given, table, 0.5), scores, strict=True):
        torch.testing.assert_close(mine, theirs)
    mixed = torch.randperm(17 * 13, generator=torch.Generator().manual_seed(2))
    shuffled = table.offset(logits.flatten(2)[..., mixed][:, :, None], rows.flatten(1)[:, None, mixed])
    assert torch.equal(shuffled[:, :, 0], whole.flatten(2)[..., mixed])


@pytest.mark.parametrize("tau", [0.0, 0.1, 1.0])
def test_balanced_scores_are_the_softmax_of_every_hypothesis(tau):
    cells, anchors, _ = fitted()
    table = alignment_table(cells, anchors)
    logits = 6 * torch.randn(2, 3, 5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    scores, probabilities = balanced_scores(logits, table, tau)
    for label in range(3):
        moved = logits + tau * table.offset(logits, torch.full((2, 5, 7), label))
        torch.testing.assert_close(scores[:, label].exp(), moved.softmax(1)[:, label])
    torch.testing.assert_close(probabilities, scores.exp() / scores.exp().sum(1, keepdim=True))
    if not tau:
        torch.testing.assert_close(probabilities, logits.softmax(1))
        assert torch.equal(scores.argmax(1), logits.argmax(1))


def test_renaming_classes_renames_the_prediction():
    cells, anchors, _ = fitted()
    order = torch.tensor([2, 0, 1])
    logits = 6 * torch.randn(1, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    plain = balanced_scores(logits, alignment_table(cells, anchors), 0.8)[1]
    renamed = balanced_scores(logits[:, order], alignment_table(cells[order][:, order], anchors), 0.8)[1]
    torch.testing.assert_close(renamed, plain[:, order])


@pytest.mark.parametrize("value", [0.0, -3.0])
def test_a_constant_cell_is_moved_to_the_anchors_median_and_not_stretched(value):
    _, anchors, _ = fitted()
    cells = fit_mixtures(torch.full((4, 50), value, dtype=torch.float64), 5, 5).reshape(2, 2)
    table = alignment_table(cells, anchors)
    median = anchors.quantiles(torch.tensor([0.5], dtype=torch.float64))[:, 0]
    torch.testing.assert_close(table.offsets[0, 0], (median[0] - value).expand(256), atol=1e-6, rtol=0)
    torch.testing.assert_close(table.offsets[0, 1], (median[1] - value).expand(256), atol=1e-6, rtol=0)


def test_logits_that_are_no_numbers_spoil_their_own_pixel_alone():
    cells, anchors, _ = fitted()
    table = alignment_table(cells, anchors)
    logits = 6 * torch.randn(1, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    broken = logits.clone()
    broken[0, :, 1, 2] = torch.tensor([math.nan, math.inf, -math.inf])
    rows = torch.zeros(1, 4, 4, dtype=torch.int64)
    found = table.offset(broken, rows)
    assert bool(found.isfinite().all())
    same = torch.ones(4, 4, dtype=torch.bool)
    same[1, 2] = False
    assert torch.equal(found[0, :, same], table.offset(logits, rows)[0, :, same])
    assert bool(balanced_scores(broken, table, 1.0)[1][0, :, same].isfinite().all())


def test_no_gradient_reaches_the_offsets():
    cells, anchors, _ = fitted()
    logits = torch.randn(1, 3, 2, 2, dtype=torch.float64, requires_grad=True)
    assert not alignment_table(cells, anchors).offset(logits, torch.zeros(1, 2, 2, dtype=torch.int64)).requires_grad


def world(tau: float, *, oracle: bool) -> tuple[float, float, float]:
    """Greatest absolute bias, spread of class accuracies and their mean, of six classes some of which shout.

    Logits are independent Gaussians; a channel's level differs, and a label's cells are those of its pixels (`oracle`)
    or of the pixels that argmax gives it.
    """
    drawn = np.random.default_rng(0)
    classes, pixels = 6, 3000
    levels = np.linspace(-1.0, 1.0, classes)
    labels = torch.arange(classes).repeat_interleave(pixels)
    values = drawn.normal(0, 1, (classes * pixels, classes)) * 1.2 + levels
    logits = torch.from_numpy(values)
    logits[torch.arange(len(labels)), labels] += 3.0
    named = labels if oracle else logits.argmax(1)
    cells = stacked([fit_mixtures(logits[named == one].t().contiguous(), 2, 10) for one in range(classes)])
    own = torch.nn.functional.one_hot(labels, classes).bool()
    anchors = stacked([fit_mixtures(logits[part][None, ::5], 2, 10)[0] for part in (own, ~own)])
    table = alignment_table(cells, anchors, tail_quantile=0.001)
    scores, _ = balanced_scores(logits.t()[None, :, None], table, tau)
    confusion = torch.zeros(classes, classes).index_put_(
        (labels, scores.argmax(1).flatten()), torch.ones(len(labels)), accumulate=True
    )
    confusion /= confusion.sum(1, keepdim=True)
    accuracies = confusion.diagonal()
    return float((confusion.mean(0) - 1 / classes).abs().max()), float(accuracies.std()), float(accuracies.mean())


def test_the_balanced_prediction_balances_and_less_so_with_pseudo_labels():
    raw, balanced = world(0.0, oracle=True), world(1.0, oracle=True)
    assert balanced[0] < raw[0] / 10
    assert balanced[1] < raw[1] / 10
    assert raw[2] < world(0.3, oracle=True)[2] < balanced[2] + 1e-3
    pseudo = world(1.0, oracle=False)
    assert balanced[1] < pseudo[1] < 0.8 * raw[1]
    assert pseudo[0] < 0.8 * raw[0]
    assert 0.25 < (pseudo[2] - raw[2]) / (balanced[2] - raw[2]) < 0.9


def test_logit_adjustment_takes_the_prior_away():
    logits = torch.randn(2, 3, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    prior = torch.tensor([0.7, 0.3, 0.0], dtype=torch.float64)
    found = logit_adjustment(logits, prior.log(), 0.5)
    torch.testing.assert_close(found[:, 0], logits[:, 0] - 0.5 * math.log(0.7))
    torch.testing.assert_close(found[:, 1], logits[:, 1] - 0.5 * math.log(0.3))
    assert torch.equal(found[:, 2], logits[:, 2])
    uniform = torch.full((3,), math.log(1 / 3), dtype=torch.float64)
    torch.testing.assert_close(logit_adjustment(logits, uniform, 1.0).softmax(1), logits.softmax(1))


@pytest.mark.parametrize(("nodes", "tail_quantile"), [(1, 0.01), (100, 0.0), (100, 0.5)])
def test_no_table_of_too_few_nodes_or_without_a_middle(nodes, tail_quantile):
    cells, anchors, _ = fitted()
    with pytest.raises(ConfigError, match="nodes"):
        alignment_table(cells, anchors, nodes=nodes, tail_quantile=tail_quantile)
