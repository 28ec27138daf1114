"""Owns the colours that classes are drawn in where a dataset brings none."""

import colorsys

Color = tuple[int, int, int]
_GOLDEN = 0.6180339887498949  # successive multiples, modulo 1, keep far from all before them
_SHADES = ((0.75, 0.95), (0.95, 0.65), (0.45, 0.85), (0.65, 0.45), (0.9, 0.8))


def default_palette(count: int) -> tuple[Color, ...]:
    """`count` distinct colours, the same for every call; a shorter palette is the beginning of a longer one.

    >>> default_palette(2)
    ((242, 61, 61), (8, 48, 166))
    """
    colors: list[Color] = []
    number = 0
    while len(colors) < count:
        color = _color(number)
        number += 1
        if color not in colors:
            colors.append(color)
    return tuple(colors)


def _color(number: int) -> Color:
    saturation, value = _SHADES[number % len(_SHADES)]
    red, green, blue = colorsys.hsv_to_rgb(number * _GOLDEN % 1.0, saturation, value)
    return round(red * 255), round(green * 255), round(blue * 255)
