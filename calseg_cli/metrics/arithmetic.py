"""Owns exp and log made of single additions and multiplications: the same bits on every processor and device.

A library's exp differs from another's in the last digit, and so would the counts of a pixel at the edge of a bin. These
use nothing that IEEE 754 leaves open, in one order, so the compiled road, plain torch and a GPU agree to the last bit.
"""

import torch
from torch import Tensor

GROUP = 16
"""How many values are added one after the other before their sum joins the total: fewer roundings in a row."""

EXP_FLOOR = -43.0
"""exp of less counts as exp of this, 2e-19: nothing beside the largest logit's 1, and its square is no denormal."""

LOG2_E = 1.4426950408889634
LN2_HIGH, LN2_LOW = 0.693359375, -2.12194440e-4  # ln 2 in two parts: the first has so few bits that n * it is exact
EXP_TERMS = (  # minimax of (exp(r) - 1 - r) / r**2 on |r| <= ln 2 / 2, as in Cephes' expf (Moshier, public domain)
    1.9875691500e-4,
    1.3981999507e-3,
    8.3334519073e-3,
    4.1665795894e-2,
    1.6666665459e-1,
    5.0000001201e-1,
)
ROUNDER = 12582912.0  # 1.5 * 2**23: adding it rounds a float32 to a whole number, which its low bits then hold
ROUNDER_BITS = 0x4B400000
LN2 = 0.6931471805599453
SQRT2 = 1.4142135623730951
LOG_TERMS = tuple(1.0 / odd for odd in range(23, 0, -2))  # of 2 * artanh(f) / f in f**2, |f| <= 0.172


def exp_of_negative(x: Tensor) -> Tensor:
    """Exp of float32 x <= 0, to within 2 units in the last place; exactly 1 at 0, and NaN for NaN.

    >>> exp_of_negative(torch.tensor([0.0, -1.0])).tolist()
    [1.0, 0.3678794503211975]
    """
    held = x.clamp(min=EXP_FLOOR)
    shifted = (held * _float32(LOG2_E)).add_(ROUNDER)
    whole = shifted - ROUNDER
    rest = held.sub_(whole * _float32(LN2_HIGH)).sub_(whole.mul_(_float32(LN2_LOW)))
    power = (rest * _float32(EXP_TERMS[0])).add_(_float32(EXP_TERMS[1]))
    for term in EXP_TERMS[2:]:
        power.mul_(rest).add_(_float32(term))
    power.mul_(rest * rest).add_(rest).add_(1.0)
    scale = shifted.view(torch.int32).sub_(ROUNDER_BITS - 127).bitwise_left_shift_(23)
    return power.mul_(scale.view(torch.float32))


def log_from_one(x: Tensor) -> Tensor:
    """The natural logarithm, in float64, of float32 x >= 1, to within 4e-16 of its own size; exactly 0 at 1.

    >>> log_from_one(torch.tensor([1.0, 2.0, 4.0])).tolist()
    [0.0, 0.6931471805599453, 1.3862943611198906]
    """
    bits = x.view(torch.int32)
    exponent = (bits >> 23) - 127
    mantissa = ((bits & 0x7FFFFF) | 0x3F800000).view(torch.float32).double()
    above = mantissa > SQRT2
    mantissa = torch.where(above, mantissa * 0.5, mantissa)
    f = (mantissa - 1.0) / (mantissa + 1.0)
    square = f * f
    series = square * LOG_TERMS[0] + LOG_TERMS[1]
    for term in LOG_TERMS[2:]:
        series = series * square + term
    return (exponent + above).double() * LN2 + f * 2.0 * series


def sum_in_order(values: Tensor) -> Tensor:
    """The sum (n,) of (C,n) values: groups of 16 classes, each one after the other, then the groups.

    `Tensor.sum` adds in an order that each device chooses.
    """
    total = torch.zeros_like(values[0])
    for first in range(0, len(values), GROUP):
        part = torch.zeros_like(total)
        for row in values[first : first + GROUP]:
            part += row
        total += part
    return total


def _float32(value: float) -> float:
    """The float32 nearest to a constant, so that no device multiplies by a longer one."""
    return float(torch.tensor(value, dtype=torch.float32))
