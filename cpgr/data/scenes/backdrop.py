"""What surrounds the objects: ground, clutter, lighting and noise. Everything is cached and cut at random."""

from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

GROUNDS, CLUTTERS, LIGHTS = 24, 24, 16


def _smooth(rng, cells, pixels):
    """[pixels,pixels] float32 in about -1..1 that changes over pixels / cells."""
    coarse = Image.fromarray(rng.standard_normal((cells, cells)).astype(np.float32))
    return np.clip(np.asarray(coarse.resize((pixels, pixels), Image.Resampling.BICUBIC)) / 2, -1, 1)


@lru_cache(maxsize=8)
def grounds(pixels: int) -> np.ndarray:
    """[GROUNDS,pixels,pixels,3] float32: dull tones, so that no object's colour can be taken for the ground."""
    rng = np.random.default_rng(11)
    out = []
    for _ in range(GROUNDS):
        tone = rng.uniform(92, 142) + rng.uniform(-11, 11, 3)
        field = 11 * _smooth(rng, 4, pixels) + 6 * _smooth(rng, int(rng.integers(9, 22)), pixels)
        tint = _smooth(rng, 3, pixels)[..., None] * rng.uniform(-6, 6, 3)
        out.append(tone + field[..., None] + tint)
    return np.asarray(out, np.float32)


@lru_cache(maxsize=8)
def clutters(pixels: int) -> np.ndarray:
    """[CLUTTERS,pixels,pixels,1] float32 in grey levels: thin lines and specks, too faint and thin for an object."""
    rng = np.random.default_rng(12)
    scale, out = pixels / 128, []
    for _ in range(CLUTTERS):
        layer = np.zeros((pixels, pixels), np.float32)
        for sign in (-1, 1):
            image = Image.new("L", (pixels * 2, pixels * 2))
            draw = ImageDraw.Draw(image)
            for _ in range(int(rng.integers(1, 4))):
                ends = rng.uniform(-0.1, 1.1, 4) * pixels * 2
                bend = (ends[:2] + ends[2:]) / 2 + rng.uniform(-30, 30, 2) * scale
                draw.line([tuple(ends[:2]), tuple(bend), tuple(ends[2:])], fill=int(rng.integers(90, 200)),
                          width=max(1, round(2 * scale)))
            for _ in range(int(rng.integers(3, 10))):
                x, y = rng.uniform(0, 2 * pixels, 2)
                radius = rng.uniform(0.8, 2.2) * scale
                draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=int(rng.integers(110, 255)))
            image = image.filter(ImageFilter.BoxBlur(0.5)).reduce(2)
            layer += sign * np.asarray(image, np.float32) / 255
        out.append(34 * layer[..., None])
    return np.asarray(out, np.float32)


@lru_cache(maxsize=8)
def lights(pixels: int) -> np.ndarray:
    """[LIGHTS,pixels,pixels,1] float32: brightness ramps in all directions, about 0.76 to 1.14."""
    y, x = (np.mgrid[:pixels, :pixels] + 0.5) / pixels - 0.5
    angles = np.arange(LIGHTS) * 2 * np.pi / LIGHTS
    strength = 0.10 + 0.09 * (np.arange(LIGHTS) * 7 % LIGHTS) / LIGHTS
    ramps = np.cos(angles)[:, None, None] * x + np.sin(angles)[:, None, None] * y
    return (0.95 + 2 * strength[:, None, None] * ramps * 0.7)[..., None].astype(np.float32)


@lru_cache(maxsize=8)
def noise(pixels: int) -> np.ndarray:
    """[2*pixels,2*pixels,3] float32 of unit deviation, to be cropped at random."""
    return np.random.default_rng(13).standard_normal((2 * pixels, 2 * pixels, 3)).astype(np.float32)


@lru_cache(maxsize=16)
def textures(pixels: int, fine: bool) -> dict:
    """{pattern: [k,64*s,64*s,1] float32 brightness}; stripes in four directions, dots in two grids. fine: for small
    objects, of which a thin arm could otherwise fall between the dots."""
    scale = pixels / 128
    side = round(64 * scale)
    y, x = (np.mgrid[:side * 4, :side * 4] + 0.5) / (4 * scale)
    slant, across = (x + y) * 0.7071, (x - y) * 0.7071
    period, width = (4.2, 1.8) if fine else (5.2, 2.2)
    stripes = [along % period < width for along in (y, x, slant, across)]
    pitch, radius = (4.0, 1.35) if fine else (5.4, 1.75)
    dots = [(u % pitch - pitch / 2) ** 2 + (v % pitch - pitch / 2) ** 2 < radius ** 2
            for u, v in ((x, y), (slant, across))]

    def shade(layers):
        layers = np.asarray(layers, np.float32).reshape(len(layers), side, 4, side, 4).mean((2, 4))
        return (1 - 0.7 * layers)[..., None]

    return {"striped": shade(stripes), "dotted": shade(dots)}
