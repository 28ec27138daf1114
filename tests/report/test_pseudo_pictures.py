"""Pictures of labels that ignore pixels: exact colours where there is a label, and no colour of a class elsewhere."""

import numpy as np
import pytest

from calseg_cli.report.pictures import colorize, overlay
from calseg_cli.report.pseudo_pictures import STRIPE, believed_overlay, striped_labels

PALETTE = [(10, 20, 30), (0, 0, 0), (255, 255, 255)]
LABELS = np.random.default_rng(0).choice(np.array([0, 1, 2, 255], np.uint8), (24, 31))
IGNORED = LABELS == 255


def test_believed_pixels_have_their_exact_colour() -> None:
    striped = striped_labels(LABELS, PALETTE, 255)
    assert striped.dtype == np.uint8
    np.testing.assert_array_equal(striped[~IGNORED], colorize(LABELS, PALETTE, 255)[~IGNORED])


def test_ignored_pixels_are_striped_whatever_the_palette() -> None:
    """A white or black class has a flat patch; an ignored patch of its size has both tones of the stripes."""
    patch = striped_labels(np.full((8, 8), 255, np.uint8), PALETTE, 255)
    assert {tuple(color) for color in patch.reshape(-1, 3).tolist()} == set(STRIPE)


def test_the_overlay_is_grey_where_ignored_and_coloured_elsewhere() -> None:
    image = np.random.default_rng(1).integers(0, 256, (*LABELS.shape, 3), dtype=np.uint8)
    shown = believed_overlay(image, LABELS, PALETTE, 255)
    expected = overlay(image, colorize(LABELS, PALETTE, 255))
    np.testing.assert_array_equal(shown[~IGNORED], expected[~IGNORED])
    grey = shown[IGNORED]
    assert (grey == grey[:, :1]).all()
    darkest, lightest = image[IGNORED].min(axis=1), image[IGNORED].max(axis=1)
    assert ((grey[:, 0] >= darkest) & (grey[:, 0] <= lightest)).all()


def test_an_image_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match="differ in shape"):
        believed_overlay(np.zeros((2, 2, 3), np.uint8), np.zeros((2, 3), np.uint8), PALETTE, 255)
