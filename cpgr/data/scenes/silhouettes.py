"""Silhouettes of the categories: drawn once at a large size, then cached at every size asked for."""

from dataclasses import dataclass
from functools import lru_cache
from math import cos, pi, sin

import numpy as np
from PIL import Image, ImageDraw

MASTER = 320  # side of the canvas that each silhouette is first drawn on
OUTLINE, INK = 0.36, 0.28  # brightness of the rim and of inner details, relative to the body

# A quarter turn for arrows, a mirror for those with a facing side; the others stand upright.
TURNS = {"arrow": 4, "fish": 2, "moon": 2, "cup": 2}


@dataclass(frozen=True)
class Silhouette:
    """One category at one size. alpha [h,w] float32 in 0..1; shade [h,w,1] float32 brightness of the own colour;
    mask [h,w] bool; area: pixels of the mask; points: x,y of top, right, bottom, left, centre in the window."""

    alpha: np.ndarray
    shade: np.ndarray
    mask: np.ndarray
    area: int
    points: tuple


def _scaled(points):
    return [(x * MASTER, y * MASTER) for x, y in points]


class _Pen:
    """Draws in unit coordinates on a body layer and on a layer of inner details."""

    def __init__(self):
        self.body, self.ink = Image.new("L", (MASTER, MASTER)), Image.new("L", (MASTER, MASTER))
        self._draw = {"body": ImageDraw.Draw(self.body), "ink": ImageDraw.Draw(self.ink)}

    def polygon(self, *points, on="body", fill=255):
        self._draw[on].polygon(_scaled(points), fill=fill)

    def disc(self, x, y, rx, ry=None, on="body", fill=255):
        ry = rx if ry is None else ry
        self._draw[on].ellipse(_scaled([(x - rx, y - ry), (x + rx, y + ry)]), fill=fill)

    def rectangle(self, x1, y1, x2, y2, on="body", fill=255):
        self._draw[on].rectangle(_scaled([(x1, y1), (x2, y2)]), fill=fill)


def _round(count, radius, start=-pi / 2, centre=(0.5, 0.5)):
    """`count` points evenly on a circle."""
    return [(centre[0] + radius * cos(start + 2 * pi * k / count), centre[1] + radius * sin(start + 2 * pi * k / count))
            for k in range(count)]


def _house(pen):
    pen.rectangle(0.16, 0.42, 0.84, 0.96)
    pen.polygon((0.02, 0.48), (0.5, 0.04), (0.98, 0.48))
    pen.rectangle(0.70, 0.08, 0.82, 0.36)
    pen.rectangle(0.42, 0.64, 0.60, 0.96, on="ink")


def _tree(pen):
    pen.rectangle(0.42, 0.60, 0.58, 0.98)
    for x, y, r in ((0.5, 0.26, 0.24), (0.28, 0.44, 0.23), (0.72, 0.44, 0.23), (0.5, 0.46, 0.24)):
        pen.disc(x, y, r)
    pen.rectangle(0.42, 0.69, 0.58, 0.98, on="ink")


def _fish(pen):
    pen.disc(0.40, 0.5, 0.38, 0.25)
    pen.polygon((0.66, 0.5), (0.98, 0.20), (0.90, 0.5), (0.98, 0.80))
    pen.polygon((0.34, 0.30), (0.58, 0.12), (0.60, 0.36))
    pen.disc(0.20, 0.45, 0.055, on="ink")


def _flower(pen):
    for x, y in _round(5, 0.29):
        pen.disc(x, y, 0.20)
    pen.disc(0.5, 0.5, 0.2)
    pen.disc(0.5, 0.5, 0.14, on="ink")


def _cup(pen):
    pen.disc(0.74, 0.46, 0.24, 0.24)
    pen.disc(0.74, 0.46, 0.12, 0.12, fill=0)
    pen.polygon((0.02, 0.14), (0.74, 0.14), (0.62, 0.90), (0.14, 0.90))
    pen.rectangle(0.06, 0.20, 0.70, 0.27, on="ink")


def _heart(pen):
    curve = []
    for k in range(120):
        t = 2 * pi * k / 120
        curve.append((0.5 + 0.48 * sin(t) ** 3,
                      0.46 - (13 * cos(t) - 5 * cos(2 * t) - 2 * cos(3 * t) - cos(4 * t)) / 34))
    pen.polygon(*curve)


def _moon(pen):
    pen.disc(0.5, 0.5, 0.48)
    pen.disc(0.76, 0.42, 0.40, fill=0)


def _circle(pen):
    pen.disc(0.5, 0.5, 0.48)


def _square(pen):
    pen.rectangle(0.04, 0.04, 0.96, 0.96)


def _triangle(pen):
    pen.polygon((0.5, 0.04), (0.98, 0.92), (0.02, 0.92))


def _star(pen):
    outer, inner = _round(5, 0.48), _round(5, 0.21, -pi / 2 + pi / 5)
    pen.polygon(*(point for pair in zip(outer, inner) for point in pair))


def _cross(pen):
    pen.rectangle(0.33, 0.03, 0.67, 0.97)
    pen.rectangle(0.03, 0.33, 0.97, 0.67)


def _ring(pen):
    pen.disc(0.5, 0.5, 0.48)
    pen.disc(0.5, 0.5, 0.22, fill=0)


def _arrow(pen):
    pen.polygon((0.02, 0.36), (0.52, 0.36), (0.52, 0.12), (0.98, 0.5), (0.52, 0.88), (0.52, 0.64), (0.02, 0.64))


@lru_cache(maxsize=None)
def _master(category: str, turn: int):
    """Body and ink layers, cropped to the body's tight box and turned."""
    pen = _Pen()
    globals()[f"_{category}"](pen)
    box = pen.body.getbbox()
    layers = [pen.body.crop(box), pen.ink.crop(box)]
    if category == "arrow":
        return [layer.rotate(90 * turn, expand=True) for layer in layers]
    if turn:
        return [layer.transpose(Image.Transpose.FLIP_LEFT_RIGHT) for layer in layers]
    return layers


def _eroded(alpha):
    """Minimum over each 3x3 neighbourhood; outside counts as empty."""
    padded = np.pad(alpha, 1)
    rows = np.minimum(np.minimum(padded[:-2], padded[1:-1]), padded[2:])
    return np.minimum(np.minimum(rows[:, :-2], rows[:, 1:-1]), rows[:, 2:])


def _points(mask):
    """Extreme points (the middle of each outermost row or column) and the centre of the tight box."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    top, bottom, left, right = (int(v) for v in (rows[0], rows[-1], columns[0], columns[-1]))

    def middle(line):
        spots = np.flatnonzero(line)
        return int(spots[len(spots) // 2])

    return ((middle(mask[top]), top), (right, middle(mask[:, right])), (middle(mask[bottom]), bottom),
            (left, middle(mask[:, left])), ((left + right) // 2, (top + bottom) // 2))


@lru_cache(maxsize=8192)
def silhouette(category: str, turn: int, side: int, line: int = 1) -> Silhouette:
    """The category with its longest side `side` pixels and a rim of `line` pixels."""
    body, ink = _master(category, turn)
    scale = side / max(body.size)
    size = (max(1, round(body.width * scale)), max(1, round(body.height * scale)))
    alpha, detail = (np.asarray(layer.resize(size, Image.Resampling.BOX), np.float32) / 255 for layer in (body, ink))
    inside = alpha
    for _ in range(line):
        inside = _eroded(inside)
    shade = np.minimum(1 - (1 - OUTLINE) * np.clip(alpha - inside, 0, 1), 1 - (1 - INK) * detail)
    mask = alpha >= 0.5
    return Silhouette(alpha[..., None], shade[..., None], mask, int(mask.sum()), _points(mask))
