"""Owns the compiled road: logits on their own grid and a label of full size in, counts out, in one pass.

Nothing of full size with a class axis is ever in memory: a strip of a few rows is enlarged, its softmax read, and each
pixel counted. The arithmetic is that of `arithmetic` and `grid`, operation by operation, so that plain torch gives the
same bits. Importing this module needs numba, and compiles nothing yet.
"""

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import numpy as np
from numba import njit
from numpy.typing import NDArray

from calseg_cli.metrics import arithmetic
from calseg_cli.metrics.fine_histogram import FINE_BINS, ONE
from calseg_cli.metrics.grid import Grid, Taps

LARGEST_LOGIT = 65536.0  # of either sign: all of float16; the negative log-likelihood then fits fixed point
WIDEST = 2**14  # columns: a row's sum of such likelihoods fits int64
RIGHT, WRONG_PREDICTED, WRONG_TRUE = range(3)
NLL, BRIER, BRIER_TOP, LEFT_OUT, STRANGE = range(5)

_TILE_VALUES = 2**15  # float32 of one row of a tile, all classes: three such rows stay in a core's own cache
_FINE, _ONE = float(FINE_BINS), float(ONE)
_LAST_BIN = FINE_BINS - 1
_FLOOR = np.float32(arithmetic.EXP_FLOOR)
_LOG2_E = np.float32(arithmetic.LOG2_E)
_LN2_HIGH, _LN2_LOW = np.float32(arithmetic.LN2_HIGH), np.float32(arithmetic.LN2_LOW)
_E0, _E1, _E2, _E3, _E4, _E5 = (np.float32(term) for term in arithmetic.EXP_TERMS)
_ROUNDER = np.float32(arithmetic.ROUNDER)
_BITS = np.int32(arithmetic.ROUNDER_BITS - 127)
_L0, _L1, _L2, _L3, _L4, _L5, _L6, _L7, _L8, _L9, _L10, _L11 = arithmetic.LOG_TERMS
_LN2, _SQRT2 = arithmetic.LN2, arithmetic.SQRT2
_ROUNDER_64, _BITS_64 = 1.5 * 2.0**52, np.int64(0x4338000000000000)
_VOID = np.int32(-(2**31))  # no label of the types that come in
_GROUP = arithmetic.GROUP
_F0, _F1 = np.float32(0), np.float32(1)

_F32 = NDArray[np.float32]
_I32 = NDArray[np.int32]
_I64 = NDArray[np.int64]
_Sums = tuple[_F32, _F32, _F32, _F32, _F32, _F32]
_Taps = tuple[_I32, _I32, _F32, _F32]
Compiled = TypeVar("Compiled", bound=Callable[..., Any])


def _compiled(function: Compiled) -> Compiled:
    """Compile without the lock of Python, and keep the machine code where a folder for it can be written."""
    # No fastmath: it would join and reorder operations.
    try:
        return cast(Compiled, njit(cache=True, nogil=True, error_model="numpy")(function))
    except RuntimeError:  # numba found no folder for its cache
        return cast(Compiled, njit(nogil=True, error_model="numpy")(function))


@dataclass(frozen=True, eq=False)
class KernelCounts:
    """What one image holds.

    `cells` (3,C,4800,2) int64: pixels and fixed-point confidence by class and fine bin of the right pixels, of the
    wrong ones by predicted class, and of the wrong ones by true class. `confusion` (C,C) int64, rows true. `rows`
    (H,5) int64: each row's sums of NLL, Brier and top-label Brier times 2**31, its ignored pixels, and those whose
    label is neither a class nor ignored. `confidence` (H,W) float32 and `predictions` (H,W) int16 are empty unless
    asked for.
    """

    cells: NDArray[np.int64]
    confusion: NDArray[np.int64]
    rows: NDArray[np.int64]
    confidence: NDArray[np.float32]
    predictions: NDArray[np.int16]


def suits(native: NDArray[np.float32], grid: Grid) -> bool:
    """Whether the compiled road takes these logits (C,h,w): finite, of no absurd size, not too wide."""
    if not native.size or native.shape[0] > 256 or grid.out_hw[1] > WIDEST:
        return False
    low, high = float(native.min()), float(native.max())  # NaN fails both comparisons
    return low >= -LARGEST_LOGIT and high <= LARGEST_LOGIT


def count(
    native: NDArray[np.float32],
    labels: NDArray[np.uint8] | NDArray[np.int16],
    ignore: int,
    grid: Grid,
    *,
    left_closed: bool = False,
    keep_pixels: bool = False,
    threads: int = 1,
) -> KernelCounts:
    """The counts of logits (C,h,w) that `suits` accepts, read at labels (H,W).

    The number of threads changes no bit: each takes a strip of rows, and only whole numbers are added.
    """
    classes, (height, width) = native.shape[0], grid.out_hw
    rows = np.zeros((height, 5), np.int64)
    size = (height, width) if keep_pixels else (0, 0)
    confidence, predictions = np.zeros(size, np.float32), np.zeros(size, np.int16)
    strips = max(1, min(threads, height))
    cuts = [height * part // strips for part in range(strips + 1)]
    cells = np.zeros((strips, 3, classes, FINE_BINS, 2), np.int64)
    confusion = np.zeros((strips, classes, classes), np.int64)
    tiles = -(-width // max(64, _TILE_VALUES // classes))
    tile = -(-width // tiles)

    def strip(part: int) -> None:
        lines = (cuts[part], cuts[part + 1])
        for left in range(0, width, tile):
            across = _tuple(grid.columns, slice(left, left + tile))
            _count_tile(
                native,
                (labels, ignore),
                left,
                lines,
                _tuple(grid.rows, slice(None)),
                across,
                left_closed,
                (cells[part], confusion[part], rows, confidence, predictions),
            )

    if strips == 1:
        strip(0)
    else:
        with ThreadPoolExecutor(strips) as pool:  # made anew, so that a fork never inherits a pool without its threads
            list(pool.map(strip, range(strips)))
    for part in range(1, strips):
        cells[0] += cells[part]
        confusion[0] += confusion[part]
    return KernelCounts(cells[0], confusion[0], rows, confidence, predictions)


def _tuple(taps: Taps, part: slice) -> _Taps:
    return taps.low[part], taps.high[part], taps.weight_low[part], taps.weight_high[part]


@_compiled
def _between(row: _F32, taps: _Taps, out: _F32) -> None:
    """One row of cells at the columns of a tile."""
    low, high, weight_low, weight_high = taps
    for x in range(out.size):
        out[x] = row[low[x]] * weight_low[x] + row[high[x]] * weight_high[x]


@_compiled
def _row_of(native: _F32, y: Any, taps: _Taps, out: _F32) -> None:
    for c in range(native.shape[0]):
        _between(native[c, y], taps, out[c])


@_compiled
def _largest(
    top: _F32, bottom: _F32, weight_top: Any, weight_bottom: Any, logits: _F32, largest: _F32, predicted: _I32
) -> None:
    """One row of pixels (C,n) between two rows of columns; the largest logit, and the lowest class that has it."""
    for c in range(logits.shape[0]):
        above, below, mine = top[c], bottom[c], logits[c]
        if c == 0:
            for x in range(mine.size):
                value = above[x] * weight_top + below[x] * weight_bottom
                mine[x] = value
                largest[x] = value
                predicted[x] = 0
        else:
            for x in range(mine.size):
                value = above[x] * weight_top + below[x] * weight_bottom
                mine[x] = value
                larger = value > largest[x]
                largest[x] = value if larger else largest[x]
                predicted[x] = c if larger else predicted[x]


@_compiled
def _exp_of_negative(value: Any) -> Any:
    held = max(value, _FLOOR)
    rounded = held * _LOG2_E + _ROUNDER
    whole = rounded - _ROUNDER
    rest = held - whole * _LN2_HIGH
    rest = rest - whole * _LN2_LOW
    power = rest * _E0 + _E1
    power = power * rest + _E2
    power = power * rest + _E3
    power = power * rest + _E4
    power = power * rest + _E5
    power = power * (rest * rest) + rest
    power = power + _F1
    scale = np.int32((np.float32(rounded).view(np.int32) - _BITS) << np.int32(23))
    return power * np.int32(scale).view(np.float32)


@_compiled
def _softmax_sums(logits: _F32, largest: _F32, truth: _I32, sums: _Sums) -> None:
    """Of a row of pixels: four sums (n,), and two partial ones.

    They are: exp(logit - largest); its square, the true class left out; the true class's logit - largest; its exp.
    Each is an array of its own: as rows of one, they would not be vectorised.
    """
    total, squares, picked, picked_exp, part, square_part = sums
    for x in range(total.size):
        total[x] = _F0
        squares[x] = _F0
        picked[x] = _F0
        picked_exp[x] = _F0
    for group in range(0, logits.shape[0], _GROUP):
        for x in range(total.size):
            part[x] = _F0
            square_part[x] = _F0
        for c in range(group, min(group + _GROUP, logits.shape[0])):
            mine = logits[c]
            for x in range(total.size):
                shifted = mine[x] - largest[x]
                value = _exp_of_negative(shifted)
                part[x] += value
                true = truth[x] == c
                picked[x] = shifted if true else picked[x]
                picked_exp[x] = value if true else picked_exp[x]
                square_part[x] += _F0 if true else value * value
        for x in range(total.size):
            total[x] += part[x]
            squares[x] += square_part[x]


@_compiled
def _log_from_one(value: Any) -> Any:
    bits = np.float32(value).view(np.int32)
    exponent = np.int32((bits >> np.int32(23)) - np.int32(127))
    mantissa = np.float64(np.int32((bits & np.int32(0x7FFFFF)) | np.int32(0x3F800000)).view(np.float32))
    above = mantissa > _SQRT2
    mantissa = mantissa * 0.5 if above else mantissa
    exponent = np.int32(exponent + np.int32(1)) if above else exponent
    f = (mantissa - 1.0) / (mantissa + 1.0)
    square = f * f
    series = square * _L0 + _L1
    series = series * square + _L2
    series = series * square + _L3
    series = series * square + _L4
    series = series * square + _L5
    series = series * square + _L6
    series = series * square + _L7
    series = series * square + _L8
    series = series * square + _L9
    series = series * square + _L10
    series = series * square + _L11
    return np.float64(exponent) * _LN2 + f * 2.0 * series


@_compiled
def _steps(value: Any) -> Any:
    """A float64 in steps of 2**-31, rounded half to even: as bits, because no instruction converts several at once."""
    return np.float64(value * _ONE + _ROUNDER_64).view(np.int64) - _BITS_64


@_compiled
def _sum_scores(truth: _I32, predicted: _I32, classes: Any, sums: _Sums, row: _I64) -> None:
    """Add the proper scores of a row of pixels; a `truth` outside [0,C) adds nothing."""
    total, squares, picked, picked_exp, share, _ = sums
    nll = brier = brier_top = np.int64(0)
    for x in range(total.size):
        q = np.float64(share[x])
        missing = 1.0 - np.float64(picked_exp[x]) * q
        residual = q - 1.0 if truth[x] == predicted[x] else q
        counts = truth[x] >= 0 and truth[x] < classes
        one = _steps(_log_from_one(total[x]) - np.float64(picked[x]))
        two = _steps(np.float64(squares[x]) * (q * q) + missing * missing)
        three = _steps(residual * residual)
        nll += one if counts else 0
        brier += two if counts else 0
        brier_top += three if counts else 0
    row[NLL] += nll
    row[BRIER] += brier
    row[BRIER_TOP] += brier_top


@_compiled
def _places(share: _F32, left_closed: Any, place: _I32, fixed: _I64) -> None:
    """The fine bin of each confidence, and the confidence in steps."""
    if left_closed:
        for x in range(share.size):
            place[x] = min(np.int32(math.floor(np.float64(share[x]) * _FINE)), np.int32(_LAST_BIN))
    else:
        for x in range(share.size):
            place[x] = max(np.int32(math.ceil(np.float64(share[x]) * _FINE)) - np.int32(1), np.int32(0))
    for x in range(share.size):
        fixed[x] = _steps(np.float64(share[x]))


@_compiled
def _count_cells(
    truth: _I32, predicted: _I32, place: _I32, fixed: _I64, cells: _I64, confusion: _I64, row: _I64
) -> None:
    for x in range(truth.size):
        true, guess, bin_, steps = truth[x], predicted[x], place[x], fixed[x]
        if true < 0 or true >= confusion.shape[0]:
            row[LEFT_OUT if true == _VOID else STRANGE] += 1
            continue
        confusion[true, guess] += 1
        if true == guess:
            cells[RIGHT, true, bin_, 0] += 1
            cells[RIGHT, true, bin_, 1] += steps
        else:
            cells[WRONG_PREDICTED, guess, bin_, 0] += 1
            cells[WRONG_PREDICTED, guess, bin_, 1] += steps
            cells[WRONG_TRUE, true, bin_, 0] += 1
            cells[WRONG_TRUE, true, bin_, 1] += steps


@_compiled
def _count_tile(
    native: _F32, labelled: Any, left: Any, lines: Any, rows: _Taps, columns: _Taps, left_closed: Any, into: Any
) -> None:
    """Add the rows `lines` of the tile that begins at column `left` to the counts."""
    labels, ignore = labelled
    row_low, row_high, row_weight_low, row_weight_high = rows
    cells, confusion, sums_of_rows, confidence, predictions = into
    classes, width = native.shape[0], columns[0].size
    keep = confidence.shape[0] > 0
    top, bottom = np.empty((classes, width), np.float32), np.empty((classes, width), np.float32)
    logits = np.empty((classes, width), np.float32)
    largest, predicted, truth = np.empty(width, np.float32), np.empty(width, np.int32), np.empty(width, np.int32)
    total, squares, picked = np.empty(width, np.float32), np.empty(width, np.float32), np.empty(width, np.float32)
    picked_exp, part, square_part = (
        np.empty(width, np.float32),
        np.empty(width, np.float32),
        np.empty(width, np.float32),
    )
    share, place, fixed = np.empty(width, np.float32), np.empty(width, np.int32), np.empty(width, np.int64)
    at_top = at_bottom = -1
    for y in range(lines[0], lines[1]):
        if row_low[y] == at_bottom:
            top, bottom = bottom, top
            at_top, at_bottom = at_bottom, at_top
        if row_low[y] != at_top:
            at_top = row_low[y]
            _row_of(native, at_top, columns, top)
        if row_high[y] != at_bottom:
            at_bottom = row_high[y]
            _row_of(native, at_bottom, columns, bottom)
        for x in range(width):
            label = np.int32(labels[y, left + x])
            truth[x] = _VOID if label == ignore else label
        _largest(top, bottom, row_weight_low[y], row_weight_high[y], logits, largest, predicted)
        _softmax_sums(logits, largest, truth, (total, squares, picked, picked_exp, part, square_part))
        for x in range(width):
            share[x] = _F1 / total[x]
        if keep:
            for x in range(width):
                confidence[y, left + x] = share[x]
                predictions[y, left + x] = predicted[x]
        row = sums_of_rows[y]
        _sum_scores(truth, predicted, classes, (total, squares, picked, picked_exp, share, part), row)
        _places(share, left_closed, place, fixed)
        _count_cells(truth, predicted, place, fixed, cells, confusion, row)
