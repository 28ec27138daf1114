"""Pictures: exact colours, fixed scales, whole files."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from calseg_cli.report import pictures

PALETTE = [(10, 20, 30), (40, 50, 60), (70, 80, 90)]


def test_colorize_gives_exact_colours_and_black_where_ignored() -> None:
    colors = pictures.colorize(np.array([[0, 2], [1, 255]], dtype=np.uint8), PALETTE, 255)
    assert colors.dtype == np.uint8
    assert colors.tolist() == [[[10, 20, 30], [70, 80, 90]], [[40, 50, 60], [0, 0, 0]]]


@pytest.mark.parametrize("index", [3, 200, -1])
def test_colorize_refuses_a_class_without_a_colour(index: int) -> None:
    with pytest.raises(ValueError, match=f"class {index} has no colour"):
        pictures.colorize(np.array([[0, index]]), PALETTE, 255)


def test_overlay_mixes_and_keeps_its_ends() -> None:
    image, colors = np.full((2, 3, 3), 10, np.uint8), np.full((2, 3, 3), 250, np.uint8)
    assert (pictures.overlay(image, colors, 0) == image).all()
    assert (pictures.overlay(image, colors, 1) == colors).all()
    assert (pictures.overlay(image, colors, 0.5) == 130).all()
    with pytest.raises(ValueError, match="differ in shape"):
        pictures.overlay(image, colors[:1])


def test_confidence_map_has_a_fixed_scale() -> None:
    alone = pictures.confidence_map(np.array([[0.5]]))
    beside = pictures.confidence_map(np.array([[0.5, 0.9, 0.1]]))
    assert (alone[0, 0] == beside[0, 0]).all()
    assert (pictures.confidence_map(np.array([[0.25]]), lowest=0.25) == pictures.confidence_map(np.zeros((1, 1)))).all()


def test_confidence_map_brightens_with_confidence() -> None:
    ramp = pictures.confidence_map(np.linspace(0, 1, 101)[None]).astype(float)
    brightness = (ramp @ [0.2126, 0.7152, 0.0722])[0]
    assert (np.diff(brightness) >= 0).all()
    assert brightness[-1] - brightness[0] > 150


def test_confidence_map_shows_missing_numbers_in_grey() -> None:
    assert len(set(pictures.confidence_map(np.array([[np.nan]]))[0, 0].tolist())) == 1


def test_error_map_is_loudest_where_wrong_and_sure() -> None:
    wrong, ignored = np.array([[True, True, False, False, True]]), np.array([[False, False, False, False, True]])
    colors = pictures.error_map(wrong, np.array([[1.0, 0.0, 1.0, 0.0, 1.0]]), ignored).astype(int)[0]
    assert colors.tolist()[0] == list(pictures.WRONG_SURE)
    assert colors.tolist()[4] == list(pictures.UNLABELLED)
    loudness = np.abs(colors - colors[2]).sum(axis=1)
    assert loudness[0] > loudness[1] > loudness[3] > 0


def test_png_files_hold_the_picture_and_the_same_bytes(tmp_path: Path) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    for name in ("a.png", "b.png"):
        pictures.write_png(tmp_path / "new" / name, picture)
    with Image.open(tmp_path / "new" / "a.png") as image:
        assert (np.asarray(image) == picture).all()
    assert (tmp_path / "new" / "a.png").read_bytes() == (tmp_path / "new" / "b.png").read_bytes()
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["a.png", "b.png"]


def test_label_png_keeps_indices_and_shows_colours(tmp_path: Path) -> None:
    labels = np.array([[0, 1, 2], [255, 2, 0]], dtype=np.uint8)
    pictures.write_label_png(tmp_path / "label.png", labels, PALETTE)
    with Image.open(tmp_path / "label.png") as image:
        assert image.mode == "P"
        assert (np.asarray(image) == labels).all()
        assert (np.asarray(image.convert("RGB")) == pictures.colorize(labels, PALETTE, 255)).all()


def test_label_png_refuses_wide_indices(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="uint8"):
        pictures.write_label_png(tmp_path / "label.png", np.zeros((2, 2), np.int64), PALETTE)  # type: ignore[arg-type]


@pytest.mark.parametrize("count", [0, 1, 34])
def test_legend_shows_every_colour(count: int) -> None:
    palette = [(5 * i + 1, 200, 7) for i in range(count)]
    drawn = pictures.legend([f"a rather long class name {i}" for i in range(count)], palette, width=500)
    assert drawn.shape[1:] == (500, 3)
    seen = {tuple(color) for color in drawn.reshape(-1, 3).tolist()}
    assert set(palette) <= seen


def test_contact_sheet_holds_every_picture() -> None:
    tiles = [[np.full((10, 20, 3), 10 * (3 * row + column) + 5, np.uint8) for column in range(3)] for row in range(2)]
    sheet = pictures.contact_sheet(tiles, headers=["a", "b", "c"], captions=["one", "two"], width=40)
    seen = {int(color[0]) for color in sheet.reshape(-1, 3) if len(set(color.tolist())) == 1}
    assert {5, 15, 25, 35, 45, 55} <= seen
    assert pictures.contact_sheet([]).ndim == 3


def test_scaling_labels_makes_no_new_colours() -> None:
    picture = np.random.default_rng(0).choice(np.array([0, 90, 255], np.uint8), (30, 41, 1)).repeat(3, axis=2)
    scaled = pictures.scale_to(picture, 17, smooth=False)
    assert scaled.shape == (12, 17, 3)
    assert set(np.unique(scaled)) <= {0, 90, 255}


def test_confidence_error_is_confidence_minus_outcome() -> None:
    rng = np.random.default_rng(0)
    wrong, ignored = rng.random((2, 9, 11)) < 0.3
    confidence = rng.random((9, 11)).astype(np.float32)
    confidence[0, 0] = np.nan
    found = pictures.confidence_error(wrong, confidence, ignored)
    for row, column in np.ndindex(9, 11):
        outcome = 0.0 if wrong[row, column] else 1.0
        expected = np.nan if ignored[row, column] else confidence[row, column] - outcome
        assert found[row, column] == pytest.approx(expected, nan_ok=True)


def test_shrinking_takes_the_mean_of_what_is_known() -> None:
    values = np.array([[0.5, -0.5, 0.8, np.nan], [0.1, 0.3, np.nan, np.nan]], np.float32)
    np.testing.assert_allclose(pictures.shrink(values, 2), [[0.1, np.nan]], atol=1e-6)
    values[1, 3] = -0.4
    np.testing.assert_allclose(pictures.shrink(values, 2), [[0.1, 0.2]], atol=1e-6)
    np.testing.assert_allclose(pictures.shrink(values, 4), values, atol=1e-6)
    assert np.isnan(pictures.shrink(np.full((3, 7), np.nan, np.float32), 2)).all()


def test_confidence_error_map_has_two_sides_and_a_fixed_scale() -> None:
    drawn = pictures.confidence_error_map(np.array([[-1.0, -0.5, 0.0, 0.5, 1.0, np.nan]]))[0].tolist()
    assert drawn[0] == list(pictures.TOO_UNSURE)
    assert drawn[2] == list(pictures.HONEST)
    assert drawn[4] == list(pictures.TOO_SURE)
    assert drawn[5] == list(pictures.UNLABELLED)
    red, green, blue = drawn[3]
    assert red > max(green, blue)
    assert drawn[1][0] < min(drawn[1][1:])
    assert pictures.confidence_error_map(np.array([[0.5]])).tolist() == [[drawn[3]]]
    steps = pictures.confidence_error_map(np.linspace(-1, 1, 101)[None])[0].astype(int)
    away = np.abs(steps - np.array(pictures.HONEST)).sum(axis=1)
    assert (np.diff(away[:51]) <= 0).all()
    assert (np.diff(away[50:]) >= 0).all()
