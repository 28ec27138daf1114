"""16-bit PNGs: every bit of every sample, by both roads, against an encoder written from the specification."""

import io

import numpy as np
import pytest
from PIL import Image

from calseg_cli.data import png16
from calseg_cli.data.png16 import read_png16
from calseg_cli.errors import DataError


def samples(hw, channels, seed=0):
    # Small values in the first channel as in label files, full range in the rest.
    values = np.random.default_rng(seed).integers(0, 65536, (*hw, channels))
    values[..., 0] %= 23
    return values.astype(np.uint16)


@pytest.mark.parametrize("road", ["pillow", "numpy"])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("hw", [(1, 1), (7, 5), (10, 13)])
@pytest.mark.parametrize("filters", [[0], [1], [2], [3], [4], [4, 3, 2, 1, 0]], ids=str)
def test_reads_every_sample(tmp_path, monkeypatch, encode_png, road, channels, hw, filters):
    if road == "numpy":
        monkeypatch.setattr(png16, "_through_pillow", lambda path: None)
    expected = samples(hw, channels)
    (tmp_path / "x.png").write_bytes(encode_png(expected, filters=filters))
    found = read_png16(tmp_path / "x.png")
    assert found.dtype == np.uint16
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("channels", [3, 4])
def test_the_quick_road_is_taken(tmp_path, encode_png, channels):
    """Fails when Pillow changes its raw modes: labels would still be right, but slow."""
    expected = samples((4, 6), channels)
    (tmp_path / "x.png").write_bytes(encode_png(expected))
    np.testing.assert_array_equal(png16._through_pillow(tmp_path / "x.png"), expected)


def test_pillow_alone_would_lose_the_class(tmp_path, encode_png):
    (tmp_path / "x.png").write_bytes(encode_png(samples((4, 6), 3)))
    with Image.open(tmp_path / "x.png") as image:
        assert np.asarray(image)[..., 0].max() == 0


def broken(whole):
    eight = io.BytesIO()
    Image.new("RGB", (3, 2)).save(eight, "png")
    return {
        "missing": (None, "cannot be read"),
        "no png": (b"GIF89a", "is not a PNG"),
        "header only": (whole[:20], "is not a PNG"),
        "8 bits": (eight.getvalue(), "8 bits"),
        "truncated": (whole[:-60], "is broken"),
        "garbled": (whole[:60] + b"\x00" * 40 + whole[100:], "is broken"),
    }


@pytest.mark.parametrize("road", ["pillow", "numpy"])
@pytest.mark.parametrize("case", ["missing", "no png", "header only", "8 bits", "truncated", "garbled"])
def test_a_broken_file_is_one_line(tmp_path, monkeypatch, encode_png, road, case):
    if road == "numpy":
        monkeypatch.setattr(png16, "_through_pillow", lambda path: None)
    content, words = broken(encode_png(samples((12, 20), 3)))[case]
    if content is not None:
        (tmp_path / "x.png").write_bytes(content)
    with pytest.raises(DataError, match=words) as caught:
        read_png16(tmp_path / "x.png")
    assert "x.png" in caught.value.message
    assert "\n" not in caught.value.message
    assert caught.value.hint


def test_interlaced_is_refused(tmp_path, encode_png):
    (tmp_path / "x.png").write_bytes(encode_png(samples((4, 6), 3), interlace=1))
    with pytest.raises(DataError, match="interlaced"):
        read_png16(tmp_path / "x.png")
