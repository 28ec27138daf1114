"""Owns the colours that classes are drawn in where a dataset brings none."""

from functools import cache

import numpy as np

Color = tuple[int, int, int]
_LEVELS = (30, 65, 100, 135, 170, 205, 240)
_DARKEST = 200  # sum of the three: further down a colour looks like the black of what is ignored
_FIRST = (65, 100, 170)
_EYE = np.array([2.0, 4.0, 3.0])  # how much a difference in red, green and blue is seen


def default_palette(count: int) -> tuple[Color, ...]:
    """`count` distinct colours, the same for every call; a shorter palette is the beginning of a longer one.

    >>> default_palette(3)
    ((65, 100, 170), (240, 240, 30), (240, 30, 30))
    """
    return _palette()[:count]


@cache
def _palette() -> tuple[Color, ...]:
    """All colours of a lattice, each the farthest from those before it."""
    lattice = np.stack(np.meshgrid(_LEVELS, _LEVELS, _LEVELS, indexing="ij"), axis=-1).reshape(-1, 3)
    lattice = lattice[lattice.sum(axis=1) >= _DARKEST]
    chosen = [np.array(_FIRST)]
    distance = np.full(len(lattice), np.inf)
    for _ in range(len(lattice) - 1):
        distance = np.minimum(distance, ((lattice - chosen[-1]) ** 2 * _EYE).sum(axis=1))
        chosen.append(lattice[int(distance.argmax())])
    return tuple((int(red), int(green), int(blue)) for red, green, blue in chosen)
