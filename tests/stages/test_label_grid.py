"""Which grid a label reads: against the network's own way of enlarging, in every geometry."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from calseg_cli.artifacts.geometry import Geometry
from calseg_cli.engine.forward import upsample_logits
from calseg_cli.metrics.grid import enlarge
from calseg_cli.stages.label_grid import label_grid


@settings(max_examples=80, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.sampled_from([1, 2, 4, 8]), st.booleans(), st.data())
def test_any_geometry_is_enlarged_as_the_network_was_trained(h, w, stride, corners, data):
    pad = data.draw(st.tuples(st.integers(0, stride * h - 1), st.integers(0, stride * w - 1)))
    in_hw = (stride * h - pad[0], stride * w - pad[1])
    out_hw = data.draw(st.one_of(st.just(in_hw), st.tuples(st.integers(1, 60), st.integers(1, 60))))
    geometry = Geometry(in_hw, out_hw, pad, stride, corners)
    logits = torch.randn(3, h, w, generator=torch.Generator().manual_seed(h * 10 + w))
    ours = enlarge(*label_grid(logits, geometry))
    np.testing.assert_allclose(ours, upsample_logits(logits, geometry), atol=2e-5)


@pytest.mark.parametrize(
    ("geometry", "stored"),
    [
        (Geometry((30, 30), (60, 60), (2, 2), 4), False),  # padded and of another size: two steps
        (Geometry((30, 30), (30, 30), (2, 2), 4), True),
        (Geometry((32, 32), (64, 60), (0, 0), 4), True),
    ],
)
def test_full_size_is_held_only_where_two_steps_are_needed(geometry, stored):
    logits = torch.randn(2, 8, 8)
    held, grid = label_grid(logits, geometry)
    assert (held is logits) == stored
    assert grid.out_hw == geometry.out_hw
