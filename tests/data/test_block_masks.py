"""Block masks: whole blocks, as many as asked, and what a draw depends on."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from calseg_cli.data.block_masks import block_masks
from calseg_cli.errors import ConfigError


def seeded(seed):
    return torch.Generator().manual_seed(seed)


@given(
    seed=st.integers(0, 2**32 - 1),
    shape=st.tuples(st.integers(1, 3), st.integers(1, 40), st.integers(1, 40)),
    block=st.integers(1, 50),
    ratio=st.floats(0, 1),
)
@settings(max_examples=100, deadline=None)
def test_blocks_are_whole(seed, shape, block, ratio):
    masks = block_masks(shape, block, ratio, seeded(seed))
    assert masks.shape == (shape[0], 1, *shape[1:])
    assert masks.dtype == torch.bool
    assert masks.is_contiguous()
    for top in range(0, shape[1], block):
        for left in range(0, shape[2], block):
            square = masks[:, 0, top : top + block, left : left + block].flatten(1)
            assert (square == square[:, :1]).all()


@pytest.mark.parametrize("ratio", [0.0, 0.3, 0.7, 1.0])
def test_as_many_as_asked(ratio):
    blocks = block_masks((4, 40, 50), 1, ratio, seeded(0)).double()
    assert abs(float(1 - blocks.mean()) - ratio) <= 4 * math.sqrt(ratio * (1 - ratio) / 8000)


def test_draws():
    state = torch.get_rng_state()
    masks = block_masks((3, 20, 30), 4, 0.5, seeded(1))
    assert torch.equal(masks, block_masks((3, 20, 30), 4, 0.5, seeded(1)))
    assert torch.equal(masks[:2], block_masks((2, 20, 30), 4, 0.5, seeded(1)))
    assert not torch.equal(masks[0], masks[1])
    assert not torch.equal(masks, block_masks((3, 20, 30), 4, 0.5, seeded(2)))
    assert torch.equal(torch.get_rng_state(), state)


def test_removing_more_keeps_a_part_of_what_was_kept():
    less, more = (block_masks((2, 30, 30), 3, ratio, seeded(4)) for ratio in (0.4, 0.7))
    assert (less | ~more).all()
    assert (less & ~more).any()


@pytest.mark.parametrize(("block", "ratio"), [(0, 0.5), (4, 1.5), (4, -0.1), (4, float("nan"))])
def test_mistakes(block, ratio):
    with pytest.raises(ConfigError) as caught:
        block_masks((1, 4, 4), block, ratio, seeded(0))
    assert "ratio" in caught.value.hint
