"""Owns the drawn streets of the sample data: a random scene in perspective, as colours, labels and distances."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

ROAD, MARKING, SIDEWALK, BUILDING, VEGETATION, SKY, POLE, SIGN, CAR, PERSON = range(10)
HEIGHT, WIDTH = 96, 160
FAR = 250.0  # metres: the end of the street; the sky counts as this far

_OVERSAMPLING = 2  # drawn finer than stored, so that edges are soft in the image and crisp in the label; see _reduced
_NEAR = 1.2
# Strength of the fine and of the coarse texture laid over each class, in grey levels.
_TEXTURE = np.array([(5, 7), (3, 3), (7, 6), (4, 6), (17, 15), (1, 6), (3, 2), (2, 2), (3, 4), (6, 6)], np.float32)

Color = tuple[float, float, float]
Point = tuple[float, float]


@dataclass(frozen=True)
class Street:
    """One scene: colours (H,W,3) float32 in 0..255 as under plain daylight, labels (H,W), metres (H,W) to the lens."""

    colors: NDArray[np.float32]
    labels: NDArray[np.uint8]
    metres: NDArray[np.float32]


@dataclass(frozen=True)
class _Camera:
    """A pinhole camera above the road: x to the right, y up, z ahead, in metres; pixels of the fine canvas."""

    focal: float
    center: float
    horizon: float
    height: float
    offset: float

    def project(self, x: float, y: float, z: float) -> Point:
        return (
            self.center + self.focal * (x - self.offset) / z,
            self.horizon + self.focal * (self.height - y) / z,
        )


class _Canvas:
    """Colours, labels and distances painted together, far things first."""

    def __init__(self, rng: np.random.Generator, camera: _Camera) -> None:
        self.rng, self.camera = rng, camera
        self.size = (WIDTH * _OVERSAMPLING, HEIGHT * _OVERSAMPLING)
        self.planes = [Image.new("RGB", self.size), Image.new("L", self.size, SKY), Image.new("F", self.size, FAR)]
        self._pens = [ImageDraw.Draw(plane) for plane in self.planes]

    def _inks(self, color: Color, label: int, z: float) -> list[tuple[ImageDraw.ImageDraw, tuple[int, ...] | float]]:
        colors, labels, metres = self._pens
        return [(colors, _whole(color)), (labels, label), (metres, float(z))]

    def polygon(self, points: Sequence[Point], color: Color, label: int, z: float) -> None:
        across, down = zip(*points, strict=True)
        if max(across) < 0 or min(across) > self.size[0] or max(across) - min(across) < 0.7 or max(down) < 0:
            return  # nothing of it would be seen
        for pen, fill in self._inks(color, label, z):
            pen.polygon(points, fill=fill)

    def ellipse(self, x: float, y: float, z: float, radii: Point, color: Color, label: int) -> None:
        u, v = self.camera.project(x, y, z)
        a, b = (radius * self.camera.focal / z for radius in radii)
        for pen, fill in self._inks(color, label, z):
            pen.ellipse((u - a, v - b, u + a, v + b), fill=fill)

    def upright(self, x: Point, y: Point, z: float, color: Color, label: int, *, least: float = 0.0) -> None:
        """A rectangle facing the camera; `least` pixels wide at least, so that thin things stay visible."""
        left, bottom = self.camera.project(x[0], y[0], z)
        right, top = self.camera.project(x[1], y[1], z)
        grow = max(0.0, (least - (right - left)) / 2)
        left, right = left - grow, right + grow
        self.polygon([(left, bottom), (right, bottom), (right, top), (left, top)], color, label, z)

    def wall(self, x: float, y: Point, z: Point, color: Color, label: int) -> None:
        """A rectangle along the street, at distance x from its middle."""
        corners = [(y[0], z[0]), (y[0], z[1]), (y[1], z[1]), (y[1], z[0])]
        self.polygon([self.camera.project(x, *corner) for corner in corners], color, label, sum(z) / 2)

    def ground(self, x: Point, z: Point, color: Color, label: int) -> None:
        """A rectangle lying on the ground."""
        corners = [(x[0], z[0]), (x[1], z[0]), (x[1], z[1]), (x[0], z[1])]
        points = [self.camera.project(a, 0.0, max(b, _NEAR)) for a, b in corners]
        self.polygon(points, color, label, sum(z) / 2)


def draw_street(rng: np.random.Generator) -> Street:
    """A scene of HEIGHT x WIDTH pixels; everything in it is drawn from `rng`."""
    camera = _Camera(
        focal=WIDTH * _OVERSAMPLING * rng.uniform(0.62, 0.85),
        center=WIDTH * _OVERSAMPLING * rng.uniform(0.36, 0.64),
        horizon=HEIGHT * _OVERSAMPLING * rng.uniform(0.38, 0.52),
        height=rng.uniform(1.3, 1.9),
        offset=rng.uniform(-1.5, 1.5),
    )
    canvas = _Canvas(rng, camera)
    road, walk = rng.uniform(3.4, 5.2), rng.uniform(1.6, 3.0)
    _sky(canvas)
    _skyline(canvas)
    _ground(canvas, road, walk)
    for side in (-1, 1):
        _blocks(canvas, side, side * (road + walk + rng.choice([0.0, 0.5, 3.0])))
    _markings(canvas, road)
    _things(canvas, road, walk)
    return _finished(canvas)


def _sky(canvas: _Canvas) -> None:
    width, height = canvas.size
    zenith, horizon = _near(canvas.rng, (118, 160, 214), 22), _near(canvas.rng, (205, 216, 226), 16)
    shades = np.linspace(0, 1, height, dtype=np.float32)[:, None, None]
    sky = np.array(zenith, np.float32) * (1 - shades) + np.array(horizon, np.float32) * shades
    clouds = _smooth_noise(canvas.rng, (height, width), (4, 6)).clip(0, None) * np.float32(canvas.rng.uniform(0, 35))
    canvas.planes[0].paste(Image.fromarray(np.minimum(sky + clouds[..., None], 255).astype(np.uint8)))


def _skyline(canvas: _Canvas) -> None:
    """What closes the street at its end: distant houses and trees."""
    rng, x = canvas.rng, -160.0
    while x < 160:
        width = rng.uniform(8, 30)
        green = rng.random() < 0.4
        color = _near(rng, (92, 116, 78) if green else _house_color(rng), 12)
        top = rng.uniform(3, 9) if green else rng.uniform(5, 22)
        canvas.upright((x, x + width), (0, top), FAR * 0.6, color, VEGETATION if green else BUILDING)
        x += width


def _ground(canvas: _Canvas, road: float, walk: float) -> None:
    rng = canvas.rng
    grass = rng.random() < 0.5
    verge = _near(rng, (98, 124, 70) if grass else (150, 142, 132), 14)
    canvas.ground((-400, 400), (_NEAR, FAR), verge, VEGETATION if grass else SIDEWALK)
    stone = _near(rng, (156, 148, 140), 16)
    canvas.ground((-road - walk, road + walk), (_NEAR, FAR), stone, SIDEWALK)
    for side in (-1, 1):  # the kerb: the only edge between two greys
        canvas.ground((side * road, side * (road + 0.2)), (_NEAR, FAR), _near(rng, (182, 178, 172), 8), SIDEWALK)
    canvas.ground((-road, road), (_NEAR, FAR), _near(rng, (104, 104, 108), 14), ROAD)
    for _ in range(rng.integers(0, 4)):  # patches and shadows that are still road
        x, z = rng.uniform(-road, road - 1), rng.uniform(3, 40)
        shade = _near(rng, (88, 88, 92), 10)
        canvas.ground((x, min(road, x + rng.uniform(0.8, 3))), (z, z + rng.uniform(1, 8)), shade, ROAD)


def _markings(canvas: _Canvas, road: float) -> None:
    rng = canvas.rng
    white = _near(rng, (214, 212, 204), 12)
    lanes = [0.0] if road < 4.4 else [-road / 3, road / 3]
    gap = rng.uniform(4, 8)
    for x in lanes:
        for z in np.arange(rng.uniform(1.2, 5), 60, gap + 3):
            canvas.ground((x - 0.11, x + 0.11), (z, z + 3), white, MARKING)
    if rng.random() < 0.6:
        for side in (-1, 1):
            canvas.ground((side * (road - 0.45), side * (road - 0.25)), (_NEAR, 80), white, MARKING)
    if rng.random() < 0.3:
        z = rng.uniform(8, 22)
        for x in np.arange(-road + 0.6, road - 0.9, 1.1):
            canvas.ground((x, x + 0.55), (z, z + 2.6), white, MARKING)


def _blocks(canvas: _Canvas, side: int, x: float) -> None:
    """Houses, hedges and gaps along one side, the far ones first."""
    rng, z, blocks = canvas.rng, 1.3, []
    while z < 150:
        length = rng.uniform(7, 22)
        blocks.append((z, z + length))
        z += length
    for near, far in reversed(blocks):
        kind = rng.random()
        if kind < 0.68:
            _house(canvas, x, near, far)
        elif kind < 0.86:
            canvas.wall(x, (0, rng.uniform(1.2, 4.5)), (near, far), _near(rng, (84, 112, 62), 16), VEGETATION)


def _house(canvas: _Canvas, x: float, near: float, far: float) -> None:
    rng = canvas.rng
    color = _house_color(rng)
    floors, depth = int(rng.integers(1, 6)), rng.uniform(6, 12)
    top = floors * 3.1 + rng.uniform(0.3, 2.0)
    shade = tuple(0.82 * part for part in color)
    outer = x + np.sign(x) * depth
    canvas.upright((min(x, outer), max(x, outer)), (0, top), near, (shade[0], shade[1], shade[2]), BUILDING)
    columns = max(2, round((far - near) / 3))
    pane = _near(rng, (70, 82, 98), 20)
    for edge in np.linspace(near, far, columns + 1)[:-1][::-1]:
        width = (far - near) / columns
        canvas.wall(x, (0, top), (edge, edge + width), color, BUILDING)
        for floor in range(floors):
            low = floor * 3.1 + 0.9
            canvas.wall(x, (low, low + 1.5), (edge + 0.25 * width, edge + 0.75 * width), pane, BUILDING)


def _things(canvas: _Canvas, road: float, walk: float) -> None:
    """Everything that stands on the street, sorted from far to near so that near things hide far ones."""
    rng = canvas.rng
    kinds = ((_tree, 5), (_pole, 6), (_sign, 3), (_car, 5), (_person, 4))
    placed = []
    for draw, most in kinds:
        for _ in range(rng.integers(0, most + 1)):
            placed.append((float(5.0 + 45.0 * rng.random() ** 1.7), int(rng.choice([-1, 1])), draw))
    for z, side, draw in sorted(placed, key=lambda thing: -thing[0]):
        near_middle, near_wall = rng.uniform(0.25, 0.75) * road, road + rng.uniform(0.15, 0.95) * walk
        draw(canvas, side * (near_middle if draw is _car else near_wall), z)


def _tree(canvas: _Canvas, x: float, z: float) -> None:
    rng = canvas.rng
    height, green = rng.uniform(3.5, 7), _near(rng, (78, 110, 58), 20)
    canvas.upright((x - 0.14, x + 0.14), (0, height), z, _near(rng, (92, 76, 60), 10), VEGETATION, least=2)
    for _ in range(6):
        shift, radius = rng.uniform(-0.9, 0.9), rng.uniform(0.7, 1.5)
        canvas.ellipse(x + shift, height + rng.uniform(-1, 1), z, (radius, radius), _near(rng, green, 12), VEGETATION)


def _pole(canvas: _Canvas, x: float, z: float) -> None:
    rng = canvas.rng
    height, grey = rng.uniform(4.5, 8), _near(rng, (112, 112, 112), 26)
    canvas.upright((x - 0.12, x + 0.12), (0, height), z, grey, POLE, least=5)
    if rng.random() < 0.5:
        reach = -np.sign(x) * rng.uniform(1, 2.2)
        canvas.upright((min(x, x + reach), max(x, x + reach)), (height - 0.2, height), z, grey, POLE)


def _sign(canvas: _Canvas, x: float, z: float) -> None:
    rng = canvas.rng
    height, size = rng.uniform(2.3, 3.3), rng.uniform(0.4, 0.7)
    canvas.upright((x - 0.07, x + 0.07), (0, height), z, _near(rng, (126, 126, 126), 14), POLE, least=3)
    colors = ((196, 40, 44), (38, 84, 176), (222, 182, 48))
    color = _near(rng, colors[rng.integers(3)], 14)
    if rng.random() < 0.5:
        canvas.ellipse(x, height, z, (size, size), color, SIGN)
        canvas.ellipse(x, height, z, (size * 0.55, size * 0.55), (230, 230, 226), SIGN)
    else:
        canvas.upright((x - size, x + size), (height - size, height + size), z, color, SIGN)


def _car(canvas: _Canvas, x: float, z: float) -> None:
    rng = canvas.rng
    paints = ((168, 34, 34), (40, 66, 128), (58, 60, 64), (206, 206, 208), (132, 134, 138), (30, 92, 74))
    paint = _near(rng, paints[rng.integers(len(paints))], 14)
    half, roof = rng.uniform(0.82, 0.95), rng.uniform(1.4, 1.85)
    canvas.upright((x - half * 0.95, x + half * 0.95), (0, 0.35), z, (34, 34, 36), CAR)  # tyres and the shade below
    canvas.upright((x - half, x + half), (0.25, roof * 0.62), z, paint, CAR)
    canvas.upright((x - half * 0.8, x + half * 0.8), (roof * 0.6, roof), z, paint, CAR)
    canvas.upright((x - half * 0.68, x + half * 0.68), (roof * 0.64, roof * 0.93), z, (52, 62, 74), CAR)
    lamp = (226, 220, 190) if x < 0 else (196, 44, 40)
    for side in (-1, 1):
        canvas.ellipse(x + side * half * 0.75, 0.7, z, (0.13, 0.1), lamp, CAR)


def _person(canvas: _Canvas, x: float, z: float) -> None:
    rng = canvas.rng
    tall = rng.uniform(1.6, 2.0)
    coat, legs = _near(rng, (120, 84, 96), 60), _near(rng, (54, 56, 72), 24)
    for side in (-1, 1):
        canvas.upright((x + side * 0.12 - 0.09, x + side * 0.12 + 0.09), (0, tall * 0.48), z, legs, PERSON, least=2)
    canvas.ellipse(x, tall * 0.66, z, (0.27, tall * 0.22), coat, PERSON)
    canvas.ellipse(x, tall * 0.93, z, (0.14, 0.16), _near(rng, (188, 146, 120), 30), PERSON)


def _finished(canvas: _Canvas) -> Street:
    """The fine canvas with its texture, reduced to the stored size."""
    rng, camera = canvas.rng, canvas.camera
    colors, labels, metres = (np.asarray(plane) for plane in canvas.planes)
    strength = _TEXTURE[labels]  # (h,w,2)
    fine = rng.standard_normal(labels.shape, dtype=np.float32)
    coarse = _smooth_noise(rng, labels.shape, (24, 40))
    texture = strength[..., 0] * fine + strength[..., 1] * coarse
    rows = np.arange(labels.shape[0], dtype=np.float32) - camera.horizon
    flat = camera.focal * camera.height / rows.clip(1e-3, None)
    on_ground = (labels <= SIDEWALK) & (rows > 0)[:, None]  # road, marking, sidewalk
    metres = np.where(on_ground, np.minimum(flat, FAR)[:, None], metres).astype(np.float32)
    step = _OVERSAMPLING
    reduced = _reduced(colors.astype(np.float32)) + _reduced(texture[..., None])
    return Street(reduced.clip(0, 255), labels[::step, ::step].copy(), metres[::step, ::step].copy())


def _reduced(fine: NDArray[np.float32]) -> NDArray[np.float32]:
    """The mean of each 2x2 block of (h,w,channels)."""
    rows = fine[0::2] + fine[1::2]
    quarter: NDArray[np.float32] = (rows[:, 0::2] + rows[:, 1::2]) * np.float32(0.25)
    return quarter


def _smooth_noise(rng: np.random.Generator, shape: tuple[int, ...], cells: tuple[int, int]) -> NDArray[np.float32]:
    """Noise of unit strength that changes over about `cells` patches of the image."""
    grid = Image.fromarray(rng.standard_normal(cells, dtype=np.float32))
    return np.asarray(grid.resize((shape[1], shape[0]), Image.Resampling.BICUBIC))


def _house_color(rng: np.random.Generator) -> Color:
    colors = ((164, 112, 92), (188, 172, 146), (150, 148, 148), (124, 108, 98), (200, 190, 180))
    return _near(rng, colors[rng.integers(len(colors))], 16)


def _near(rng: np.random.Generator, color: Color, spread: float) -> Color:
    """A colour near `color`: mostly lighter or darker, a little tinted."""
    red, green, blue = np.asarray(color) + rng.uniform(-spread, spread) + rng.uniform(-spread / 3, spread / 3, 3)
    return float(red), float(green), float(blue)


def _whole(color: Color) -> tuple[int, int, int]:
    red, green, blue = (int(min(255, max(0, part))) for part in color)
    return red, green, blue
