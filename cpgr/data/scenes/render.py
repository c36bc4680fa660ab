"""Painting of a scene into an image."""

import numpy as np

from . import backdrop
from .scene import Scene, paint, resized, rim
from .silhouettes import silhouette
from .vocabulary import COLOURS

_COLOURS = {name: np.asarray(value, np.float32) for name, value in COLOURS.items()}


def render(scene: Scene, rng, pixels: int | None = None):
    """(image [H,W,3] uint8 RGB, visible masks [n,H,W] bool). `rng` is a numpy Generator or a seed: it draws ground,
    clutter, light and noise. `pixels` other than the scene's width paints `resized(scene, pixels)`."""
    rng = np.random.default_rng(rng)
    if pixels is not None and pixels != scene.width:
        scene = resized(scene, pixels)
    size = scene.width
    draws = rng.random(10).tolist()
    image = backdrop.grounds(size)[int(draws[0] * backdrop.GROUNDS)]
    clutter = backdrop.clutters(size)[int(draws[1] * backdrop.CLUTTERS)]
    image = image[::(1, -1)[draws[2] < 0.5], ::(1, -1)[draws[3] < 0.5]] + clutter[::(1, -1)[draws[4] < 0.5],
                                                                                 ::(1, -1)[draws[5] < 0.5]]
    labels = np.full((size, size), -1, np.int8)
    for index, item in enumerate(scene.objects):
        place = item.placement
        if place is None:
            raise ValueError("a scene read from annotations holds no silhouettes to draw; sample a scene instead")
        paint(labels, index, item.category, place)
        shape = silhouette(item.category, place.turn, place.side, rim(size))
        height, width = shape.mask.shape
        window = image[place.y:place.y + height, place.x:place.x + width]
        shade = shape.shade
        if item.pattern != "plain":
            tiles = backdrop.textures(size, item.size == "small")[item.pattern]
            shift = place.texture // 8
            shade = np.minimum(shade, tiles[place.texture % len(tiles), shift:shift + height, shift:shift + width])
        if item.colour == "white":
            shade = shade * shade  # a grey rim or stripe would vanish in the grey ground
        window += shape.alpha * (shade * _COLOURS[item.colour] - window)
    image *= backdrop.lights(size)[int(draws[6] * backdrop.LIGHTS)]
    x, y = int(draws[7] * size), int(draws[8] * size)
    image += (2 + 4 * np.float32(draws[9])) * backdrop.noise(size)[y:y + size, x:x + size]
    np.clip(image, 0, 255, out=image)
    return image.astype(np.uint8), labels == np.arange(len(scene.objects), dtype=np.int8)[:, None, None]
