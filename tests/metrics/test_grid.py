"""Where a label's pixels lie on a grid of logits."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from calseg_cli.metrics.grid import bilinear_grid, enlarge

SIDES = st.integers(1, 40)


@settings(max_examples=150, deadline=None)
@given(SIDES, SIDES, st.integers(1, 90), st.integers(1, 90), st.booleans(), st.data())
def test_the_step_is_torchs_bilinear_one(h, w, height, width, corners, data):
    """Against interpolate in float64, which rounds neither positions nor weights."""
    logits = torch.randn(3, h, w, generator=torch.Generator().manual_seed(h * 41 + w))
    keep = (data.draw(st.integers(1, height)), data.draw(st.integers(1, width)))
    grid = bilinear_grid((h, w), (height, width), keep=keep, align_corners=corners)
    ours = enlarge(logits, grid)
    true = F.interpolate(logits[None].double(), size=(height, width), mode="bilinear", align_corners=corners)[0]
    assert ours.dtype == torch.float32
    assert grid.out_hw == keep
    np.testing.assert_allclose(ours, true[:, : keep[0], : keep[1]], atol=2e-6)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 40), st.integers(1, 40), st.data())
def test_rows_by_themselves_are_rows_of_the_whole(h, w, height, width, data):
    logits = torch.randn(2, h, w, generator=torch.Generator().manual_seed(h * 13 + w))
    grid = bilinear_grid((h, w), (height, width))
    first = data.draw(st.integers(0, height))
    last = data.draw(st.integers(first, height))
    assert torch.equal(enlarge(logits, grid, first, last), enlarge(logits, grid)[:, first:last])


def test_a_constant_stays_but_for_rounding_and_nothing_overshoots():
    for value in (0.1, -3.7, 1e4):
        full = enlarge(torch.full((1, 7, 9), value), bilinear_grid((7, 9), (50, 61)))
        assert (full - np.float32(value)).abs().max() <= abs(value) * 2**-22
    logits = torch.randn(4, 5, 6)
    full = enlarge(logits, bilinear_grid((5, 6), (33, 47)))
    assert full.max() <= logits.max() * (1 + 2**-22)
    assert full.min() >= logits.min() * (1 + 2**-22)


def test_a_pixel_for_every_cell_changes_nothing():
    logits = torch.randn(3, 8, 9).half()
    grid = bilinear_grid((8, 9), (8, 9))
    assert grid.plain
    assert torch.equal(enlarge(logits, grid), logits.float())
    assert not bilinear_grid((8, 9), (16, 9)).plain
    assert not bilinear_grid((2, 2), (4, 4), keep=(2, 2)).plain


def test_a_part_of_an_enlargement_is_not_taken_for_the_grid_itself():
    """As many pixels kept as there are cells, each on a cell: but two of them on the first."""
    logits = torch.tensor([[[1.0], [2.0]]])
    grid = bilinear_grid((2, 1), (6, 1), keep=(2, 1))
    assert not grid.plain
    assert enlarge(logits, grid).flatten().tolist() == [1.0, 1.0]


def test_corners_meet_where_they_are_aligned():
    logits = torch.randn(2, 5, 4)
    full = enlarge(logits, bilinear_grid((5, 4), (33, 29), align_corners=True))
    for y, x in ((0, 0), (0, -1), (-1, 0), (-1, -1)):
        assert torch.equal(full[:, y, x], logits[:, y, x])


@pytest.mark.parametrize(("cells", "pixels"), [((0, 3), (4, 4)), ((3, 3), (4, 0))])
def test_no_side_is_empty(cells, pixels):
    with pytest.raises(ValueError, match="cannot lay"):
        bilinear_grid(cells, pixels)


@pytest.mark.gpu
def test_a_gpu_gives_the_same_bits(cuda):
    logits = torch.randn(19, 64, 128)
    grid = bilinear_grid((64, 128), (510, 1022))
    assert torch.equal(enlarge(logits.to(cuda), grid).cpu(), enlarge(logits, grid))
