"""Which pixel a cell stands for: by whole numbers, in every geometry, and the same as those that prototypes count."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calseg_cli.artifacts.geometry import Geometry
from calseg_cli.stages.cells import cell_labels
from calseg_cli.stages.prototype_input import image_cells


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.sampled_from([1, 2, 4, 8]), st.booleans(), st.data())
def test_a_cell_has_the_label_of_the_pixel_at_its_centre(h, w, stride, corners, data):
    pad = data.draw(st.tuples(st.integers(0, stride * h - 1), st.integers(0, stride * w - 1)))
    in_hw = (stride * h - pad[0], stride * w - pad[1])
    out_hw = data.draw(st.one_of(st.just(in_hw), st.tuples(st.integers(1, 40), st.integers(1, 40))))
    geometry = Geometry(in_hw, out_hw, pad, stride, corners)
    label = np.random.default_rng(h * 10 + w).integers(0, 200, out_hw, dtype=np.uint8)
    found = cell_labels(label, geometry, (h, w)).numpy()
    counted = image_cells(geometry, (h, w))
    np.testing.assert_array_equal(found != 255, np.ones((h, w), bool) if counted is None else counted.numpy())
    if corners:
        return
    for i in range(h):
        for j in range(w):
            # Twice the centre in pixels of the network's input is a whole number: no rounding anywhere.
            y, x = ((2 * place + 1) * stride for place in (i, j))
            expected = 255
            if y < 2 * in_hw[0] and x < 2 * in_hw[1]:
                expected = label[y * out_hw[0] // (2 * in_hw[0]), x * out_hw[1] // (2 * in_hw[1])]
            assert found[i, j] == expected


def test_a_label_of_another_size_is_a_mistake():
    with pytest.raises(ValueError, match="label"):
        cell_labels(np.zeros((4, 5), np.uint8), Geometry((4, 4), (4, 4), stride=2), (2, 2))
