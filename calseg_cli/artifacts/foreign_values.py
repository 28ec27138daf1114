"""Owns what another tool's array means: which axis holds the classes, what its values are, where its grid lies."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calseg_cli.artifacts.foreign import ArrayFile
from calseg_cli.artifacts.geometry import Geometry, Size
from calseg_cli.artifacts.kinds import LARGEST_SIDE, MOST_CLASSES
from calseg_cli.errors import DataError

Array = NDArray[Any]
AXES = ("chw", "hwc")
VALUES = ("logits", "probabilities", "log-probabilities")
DTYPES = ("float16", "float32")
SMALLEST = 1e-12  # of a probability: its logarithm, -27.6, is a number in float16 too
_TOLERANCE = {2: 1e-2, 4: 1e-3, 8: 1e-3}  # by bytes a value: how far probabilities may be from a sum of 1
_ROUNDING = 1e-6  # a probability may be that far below 0
_PLACES = ("in_hw", "out_hw", "pad", "stride", "align_corners")
EXTRAS = frozenset({*_PLACES, "image_digest", "confidence"})
"""Arrays of an .npz that are not the logits or labels of another image."""


def grid_size(shape: Sequence[int], axes: str, classes: int, where: str) -> Size:
    """Height and width of a grid of logits (C,h,w), or (h,w,C) with axes "hwc"; a leading axis of 1 is passed over.

    Raises DataError where the class axis has not `classes` entries, naming the other order if that fits.
    """
    sides = tuple(shape[1:]) if len(shape) == 4 and shape[0] == 1 else tuple(shape)
    text = "x".join(map(str, shape)) or "one value"
    if len(sides) != 3:
        raise DataError(
            f"{where} is {text}; logits have three axes",
            "an array an image: (classes, height, width); for label maps give --kind pseudo-labels",
        )
    (first, *inner), last = sides, sides[-1]
    found, other = (first, last) if axes == "chw" else (last, first)
    if found != classes:
        turned = "hwc" if axes == "chw" else "chw"
        hint = (
            f"give --axes {turned}"
            if other == classes
            else "--classes names the classes that it was made for, in their order"
        )
        raise DataError(f"{where} is {text}: its axis of classes has {found} entries, not {classes}", hint)
    height, width = inner if axes == "chw" else sides[:2]
    if classes > MOST_CLASSES or not 1 <= height <= LARGEST_SIDE or not 1 <= width <= LARGEST_SIDE:
        raise DataError(
            f"{where} is {text}; an artifact holds {MOST_CLASSES} classes and {LARGEST_SIDE} rows and columns at most",
            "save a smaller grid",
        )
    return height, width


def stored_type(dtype: np.dtype[Any]) -> str:
    """The type in which values of that type are kept without a loss that matters: float64 becomes float32."""
    return "float16" if dtype.itemsize == 2 else "float32"


def as_logits(array: Array, *, axes: str, values: str, dtype: str | None, where: str) -> Array:
    """Logits (C,h,w) as an artifact stores them: float16 or float32, the array's own type (float32 for float64) where
    `dtype` is None. Probabilities become their logarithm, of SMALLEST where they are less.

    Raises DataError for values that are not finite, or not what `values` says, and for what `dtype` cannot hold.
    """
    if array.dtype.kind != "f":
        raise DataError(f"{where} holds {array.dtype}, which are no {values}", "save float16 or float32")
    grid = array[0] if array.ndim == 4 else array
    grid = np.moveaxis(grid, -1, 0) if axes == "hwc" else grid
    _check_finite(grid, values, where)
    target = np.dtype(dtype or stored_type(array.dtype))
    if values == "probabilities":
        _check_probabilities(grid, array.dtype.itemsize, where)
        wide = grid.astype(np.float32) if array.dtype.itemsize == 2 else grid
        grid = np.log(np.maximum(wide, SMALLEST))
    elif values == "log-probabilities":
        with np.errstate(over="ignore"):
            probs = np.exp(grid.astype(np.float32))
        _check_probabilities(probs, array.dtype.itemsize, f"the exponential of {where}")
    with np.errstate(over="ignore"):
        stored = np.ascontiguousarray(grid, dtype=target)
    if not np.isfinite(stored).all():
        largest, most = float(np.abs(grid).max()), np.finfo(target).max
        raise DataError(
            f"{where} holds values up to {largest:.6g}, which {target} cannot hold (at most {most:.6g})",
            "give --dtype float32" if target == np.float16 else "are they logits?",
        )
    return stored


def as_label_map(array: Array, where: str) -> Array:
    """Whole numbers (H,W), whatever they mean; a leading axis of 1 is passed over. Raises DataError."""
    grid = array[0] if array.ndim == 3 and array.shape[0] == 1 else array
    if array.dtype.kind not in "iu" or grid.ndim != 2 or not grid.size or max(grid.shape) > LARGEST_SIDE:
        shape = "x".join(map(str, array.shape)) or "one value"
        raise DataError(
            f"{where} is {shape} {array.dtype}; a label map is whole numbers (height, width)",
            f"save class indices as uint8, at most {LARGEST_SIDE} rows and columns; for logits give --kind logits",
        )
    return grid


def as_confidence(array: Array, size: Size, where: str) -> Array:
    """Confidence (H,W) as an artifact stores it: uint8 as it is, floats in [0,1] as float16. Raises DataError."""
    if array.shape != size:
        raise DataError(f"{where} is {array.shape}, and its label {size}", "both have the label's full size")
    if array.dtype == np.uint8:
        return array
    if array.dtype.kind != "f" or not bool(((array >= 0) & (array <= 1)).all()):
        raise DataError(f"{where} is no confidence: floats within 0 and 1, or uint8 of 255ths", "mend or leave it out")
    return array.astype(np.float16)


@dataclass(frozen=True)
class Place:
    """What is known of where a grid lies on its image, None where nobody has said it; sizes are (height, width)."""

    in_hw: Size | None = None
    out_hw: Size | None = None
    pad: Size | None = None
    stride: int | None = None
    align_corners: bool | None = None
    image_digest: str = ""

    def over(self, other: "Place") -> "Place":
        """What this one says, and of the rest what the other says."""
        own = {name: value for name in (*_PLACES, "image_digest") if (value := getattr(self, name)) not in (None, "")}
        return replace(other, **own)

    def geometry(self, grid: Size, where: str) -> Geometry:
        """Where a grid of that size lies. Raises DataError where the numbers contradict each other.

        Without any size the network's input is grid times stride, less the padding. Without a stride it is the smallest
        that fits. A grid fits where it is the padded input divided by the stride, rounded up: this is also what
        networks with aligned corners answer, (513 - 1) / 8 + 1 = 65.
        """
        pad, corners = self.pad or (0, 0), bool(self.align_corners)
        in_hw, out_hw = self.in_hw or self.out_hw, self.out_hw or self.in_hw
        if in_hw is None or out_hw is None:
            stride = self.stride or 1
            in_hw = out_hw = (grid[0] * stride - pad[0], grid[1] * stride - pad[1])
        padded = (in_hw[0] + pad[0], in_hw[1] + pad[1])
        stride = self.stride or max(-(-padded[0] // grid[0]), -(-padded[1] // grid[1]))
        _check_sides([*in_hw, *out_hw, stride], pad, where)
        expected = (-(-padded[0] // stride), -(-padded[1] // stride))
        if expected != grid:
            raise DataError(_contradiction(grid, in_hw, pad, self.stride, expected, where), _SIZES)
        return Geometry(in_hw=in_hw, out_hw=out_hw, pad=pad, stride=stride, align_corners=corners)


_SIZES = (
    "--input-size HxW is what the network saw before padding, --pad BOTTOM,RIGHT what was added, --stride N its step, "
    "--out-size HxW the label's full size"
)


def stored_place(file: ArrayFile) -> Place:
    """What an .npz says itself of where its grid lies, under the names that calseg exports. Raises DataError."""
    given = {name: file.read(name) for name in (*_PLACES, "image_digest") if name in file.names}

    def whole(name: str) -> list[int] | None:
        if name not in given:
            return None
        values, wanted = given[name], 2 if name in ("in_hw", "out_hw", "pad") else 1
        if values.dtype.kind not in "iub" or values.size != wanted:
            raise DataError(f"{file.where(name)} is no {'pair of whole numbers' if wanted == 2 else 'whole number'}",
                            "leave it out, or write it as calseg artifact export does")  # fmt: skip
        return [int(value) for value in values.ravel()]

    pairs = {name: (value[0], value[1]) for name in ("in_hw", "out_hw", "pad") if (value := whole(name))}
    stride, corners = whole("stride"), whole("align_corners")
    return Place(
        **pairs,
        stride=stride[0] if stride else None,
        align_corners=bool(corners[0]) if corners else None,
        image_digest=checked_digest(str(given["image_digest"]), file.where("image_digest"))
        if "image_digest" in given
        else "",
    )


def checked_digest(text: str, where: str) -> str:
    """The digest of an image's file, or nothing. Raises DataError for any other text."""
    body = text.removeprefix("sha256:")
    if text and (body == text or len(body) != 64 or set(body) - set("0123456789abcdef")):
        raise DataError(f"{where} is no digest", "leave it empty, or write sha256: and 64 hexadecimal digits")
    return text


def _check_finite(grid: Array, values: str, where: str) -> None:
    finite = np.isfinite(grid)
    if finite.all():
        return
    missing = int(np.isnan(grid).sum())
    infinite = int(finite.size - finite.sum()) - missing
    hint = "NaN means that the network is broken; infinite values that float16 was too small for it"
    if values == "log-probabilities":
        hint = f"take the logarithm of probabilities not below {SMALLEST:g}, or give --values probabilities"
    raise DataError(f"{where} holds {missing} NaN and {infinite} infinite values", hint)


def _check_probabilities(grid: Array, itemsize: int, where: str) -> None:
    """(C,h,w) must be distributions over the classes."""
    lowest, sums = float(grid.min()), grid.sum(axis=0, dtype=np.float64)
    far = float(np.abs(sums - 1).max())
    if lowest < -_ROUNDING or far > _TOLERANCE[itemsize]:
        worst = float(sums.ravel()[int(np.abs(sums - 1).argmax())])
        raise DataError(
            f"{where} is no softmax over the classes: the smallest value is {lowest:.6g}, a sum {worst:.6g}",
            "without --values, or with --values logits, any values are taken as logits; is --axes right?",
        )


def _check_sides(sides: list[int], pad: Size, where: str) -> None:
    if not all(1 <= side <= LARGEST_SIDE for side in sides) or not all(0 <= side <= LARGEST_SIDE for side in pad):
        raise DataError(
            f"{where}: sizes and stride {sides[:2]}, {sides[2:4]}, {sides[4]} with padding {list(pad)} cannot be; "
            f"they are 1 to {LARGEST_SIDE}, padding may be 0",
            _SIZES,
        )


def _contradiction(grid: Size, in_hw: Size, pad: Size, stride: int | None, expected: Size, where: str) -> str:
    saw = f"{in_hw[0]}x{in_hw[1]}"
    padded = f" padded by {pad[0]},{pad[1]}" if pad != (0, 0) else ""
    if stride is None:
        return f"{where}: a grid of {grid[0]}x{grid[1]} is no even part of {saw}{padded}, at any stride"
    return (
        f"{where}: stride {stride} over {saw}{padded} gives a grid of {expected[0]}x{expected[1]}, "
        f"and it is {grid[0]}x{grid[1]}"
    )
