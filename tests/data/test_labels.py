"""One label, one image: kinds of files, values, and each way they can be wrong."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from calseg_cli.data.catalog import IGNORE, find_layout, make_layout
from calseg_cli.data.labels import classified, ranges, read_image, read_label
from calseg_cli.errors import ConfigError, DataError

THREE = make_layout(find_layout("folders"), classes=["road", "sky", "car"])


@pytest.mark.parametrize("kind", ["grey", "palette", "16 bits"])
def test_values_are_indices_whatever_the_file(tmp_path, save_png, kind):
    values = np.array([[0, 1, 2], [255, 2, 0]], np.uint8)
    stored = values.astype(np.uint16) if kind == "16 bits" else values
    path = save_png(tmp_path / "x.png", stored, palette=list(range(255, -1, -1)) * 3 if kind == "palette" else None)
    label = read_label(path, THREE)
    assert label.dtype == np.uint8
    np.testing.assert_array_equal(label, values)


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
def test_grey_values_are_not_stretched(tmp_path, encode_png, depth):
    """Pillow shows a 2-bit grey 1 as 85."""
    values = np.random.default_rng(depth).integers(0, min(2**depth, 3), (5, 7))
    (tmp_path / "x.png").write_bytes(encode_png(values[..., None], depth=depth))
    np.testing.assert_array_equal(read_label(tmp_path / "x.png", THREE), values)


@given(st.integers(0, 2**32 - 1), st.dictionaries(st.integers(0, 300), st.integers(0, 2), min_size=1))
@settings(max_examples=40, deadline=None)
def test_the_table_is_the_map(seed, ids):
    """Against a plain loop over pixels."""
    layout = make_layout(THREE, ids=ids, ignore=[7, 9])
    raw = np.random.default_rng(seed).integers(0, 310, (4, 9))
    classes, unknown = classified(raw, layout)
    expected_unknown = {}
    for value, found in zip(raw.ravel().tolist(), classes.ravel().tolist(), strict=True):
        known = value in ids or value in (7, 9, 255)
        assert found == ids.get(value, IGNORE)
        if not known:
            expected_unknown[value] = expected_unknown.get(value, 0) + 1
    assert unknown == expected_unknown


def test_unknown_values_are_counted_and_mended_by_the_hint(tmp_path, save_png):
    values = np.array([[0, 1, 34], [34, 255, 7]], np.uint8)
    path = save_png(tmp_path / "x.png", values)
    with pytest.raises(DataError, match=r"34 \(2 pixels\), 7 \(1 pixels\)") as caught:
        read_label(path, THREE)
    assert str(path) in caught.value.message
    assert "known values: 0-2, 255" in caught.value.hint
    assert "ignore: [7, 34]" in caught.value.hint
    mended = read_label(path, make_layout(THREE, ignore=[7, 34]))
    np.testing.assert_array_equal(mended, [[0, 1, 255], [255, 255, 255]])


def test_255_can_be_a_class(tmp_path, save_png):
    path = save_png(tmp_path / "x.png", np.array([[0, 255]], np.uint8))
    layout = make_layout(THREE, ids={0: "sky", 255: "car"})
    np.testing.assert_array_equal(read_label(path, layout), [[1, 2]])


def test_painted_labels(tmp_path, save_png):
    layout = make_layout(THREE, colors={"#804080": "road", "0,0,142": 2, (0, 0, 0): "ignore"})
    colors = np.array([[[128, 64, 128], [0, 0, 142], [0, 0, 0]]], np.uint8)
    for name in ("x.png", "alpha.png"):
        stored = colors if name == "x.png" else np.dstack([colors, np.full((1, 3), 255, np.uint8)])
        np.testing.assert_array_equal(read_label(save_png(tmp_path / name, stored), layout), [[0, 2, 255]])
    colors[0, 0] = (1, 2, 3)
    with pytest.raises(DataError, match="#010203") as caught:
        read_label(save_png(tmp_path / "y.png", colors), layout)
    assert '"#010203": ignore' in caught.value.hint


@pytest.mark.parametrize(
    ("mode", "encoding", "words"),
    [("RGB", "index", "colour image"), ("LA", "index", "colour image"), ("L", "color", "grey image")],
)
def test_the_wrong_kind_of_file(tmp_path, mode, encoding, words):
    Image.new(mode, (4, 3)).save(tmp_path / "x.png")
    layout = make_layout(THREE, colors={"#000000": 0}) if encoding == "color" else THREE
    with pytest.raises(DataError, match=words) as caught:
        read_label(tmp_path / "x.png", layout)
    assert "encoding" in caught.value.hint


def test_a_jpeg_is_no_label(tmp_path):
    Image.new("L", (4, 3)).save(tmp_path / "x.jpg")
    with pytest.raises(DataError, match="JPEG"):
        read_label(tmp_path / "x.jpg", THREE)


def test_no_classes_no_meaning(tmp_path, save_png):
    with pytest.raises(ConfigError, match="no classes"):
        read_label(save_png(tmp_path / "x.png", np.zeros((2, 2), np.uint8)), find_layout("folders"))


@pytest.mark.parametrize("read", [read_image, lambda path: read_label(path, THREE)], ids=["image", "label"])
@pytest.mark.parametrize("damage", ["missing", "empty", "text", "truncated", "header", "folder"])
def test_a_broken_file_is_one_line(tmp_path, read, damage):
    path = tmp_path / "x.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 3, (40, 40), dtype=np.uint8)).save(path)
    whole = path.read_bytes()
    path.unlink()
    contents = {"empty": b"", "text": b"hello", "truncated": whole[: len(whole) // 2], "header": whole[:40]}
    if damage in contents:
        path.write_bytes(contents[damage])
    elif damage == "folder":
        path.mkdir()
    with pytest.raises(DataError) as caught:
        read(path)
    assert str(path) in caught.value.message
    assert "\n" not in caught.value.message
    assert "0x" not in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "1", "I;16", "CMYK"])
def test_every_picture_becomes_rgb(tmp_path, mode):
    suffix = "jpg" if mode == "CMYK" else "png"
    Image.new(mode, (5, 4)).save(tmp_path / f"x.{suffix}")
    image = read_image(tmp_path / f"x.{suffix}")
    assert image.shape == (4, 5, 3)
    assert image.dtype == np.uint8


def test_16_bit_grey_keeps_its_brightness(tmp_path, save_png):
    path = save_png(tmp_path / "x.png", np.array([[0, 256 * 200]], np.uint16))
    np.testing.assert_array_equal(read_image(path)[0, :, 0], [0, 200])


def test_a_palette_with_transparency_keeps_its_colours(tmp_path):
    picture = Image.frombytes("P", (2, 1), bytes([0, 1]))
    picture.putpalette([10, 20, 30, 40, 50, 60])
    picture.save(tmp_path / "x.png", transparency=bytes([0, 128]))
    np.testing.assert_array_equal(read_image(tmp_path / "x.png")[0], [[10, 20, 30], [40, 50, 60]])


def test_the_turn_flag_is_not_applied(tmp_path):
    picture = Image.new("RGB", (6, 4))
    exif = picture.getexif()
    exif[274] = 6  # turned by a quarter
    picture.save(tmp_path / "x.jpg", exif=exif)
    assert read_image(tmp_path / "x.jpg").shape == (4, 6, 3)


@given(st.sets(st.integers(0, 300)))
def test_ranges_say_exactly_the_set(values):
    spelled = set()
    for part in filter(None, ranges(values).split(", ")):
        low, _, high = part.partition("-")
        spelled |= set(range(int(low), int(high or low) + 1))
    assert spelled == values
