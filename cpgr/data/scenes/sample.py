"""Drawing of random scenes."""

from math import cos, pi, sin

import numpy as np

from .scene import Placement, Scene, describe, paint, rim
from .silhouettes import TURNS, silhouette
from .vocabulary import CATEGORIES, COLOURS, SIZES

SMALLEST = 64  # pixels a side
VISIBLE = 0.62  # least share of a silhouette that stays visible
COVERED = (0.06, 0.36)  # share of the neighbour that a deliberate overlap may cover
TRIES = 40

# Drawn from uniformly: a table of repeats is many times faster than a weighted choice.
_COUNTS = (4, 5, 5, 6, 6, 6, 7, 7, 7, 8, 8, 9, 9, 10)
_CATEGORIES = (1, 2, 2, 2, 3, 3, 3, 4)
_COLOURS = (2, 3, 3, 3, 4, 4, 5)
_SIZES = ("small", "small", "small", "medium", "medium", "medium", "large", "large")
_PATTERNS = ("plain", "plain", "striped", "dotted")
_WORDS = tuple(COLOURS)


def _pick(rng, options):
    return options[int(rng.random() * len(options))]


def sample_scene(rng: np.random.Generator, pixels: int = 128) -> Scene:
    """4 to 10 objects of 1 to 4 categories and 2 to 5 colours on a square image of `pixels` >= 64."""
    if pixels < SMALLEST:
        raise ValueError(f"a scene needs at least {SMALLEST} pixels a side, not {pixels}")
    while True:
        count = _pick(rng, _COUNTS)
        # At most one category for two objects, so that most objects have a distractor of their own category.
        kinds = min(_pick(rng, _CATEGORIES), count // 2)
        categories = [CATEGORIES[k] for k in rng.permutation(len(CATEGORIES))[:kinds]]
        colours = [_WORDS[k] for k in rng.permutation(len(_WORDS))[:_pick(rng, _COLOURS)]]
        placed = _place(rng, pixels, count, categories, colours)
        if placed is not None:
            return Scene(describe(*placed), pixels, pixels)


def _place(rng, pixels, count, categories, colours):
    """Labels [H,W] and object specifications, or None when fewer than four objects fit or the draw lost a colour."""
    labels = np.full((pixels, pixels), -1, np.int8)
    full, seen, specifications = [], [], []
    for index in rng.permutation(count):
        # The first ones of each list appear for certain, the rest at random.
        category = categories[index] if index < len(categories) else _pick(rng, categories)
        colour = colours[index] if index < len(colours) else _pick(rng, colours)
        size, pattern = _pick(rng, _SIZES), _pick(rng, _PATTERNS)
        low, high = SIZES[size]
        side = max(6, round((low + int(rng.random() * (high - low + 1))) * pixels / 128))
        turn = int(rng.random() * TURNS.get(category, 1))
        shape = silhouette(category, turn, side, rim(pixels))
        spot = _spot(rng, labels, shape, full, seen, specifications)
        if spot is None:
            continue
        place = Placement(*spot, side, turn, int(rng.random() * 64))
        height, width = shape.mask.shape
        below = labels[place.y:place.y + height, place.x:place.x + width][shape.mask]
        for other, lost in enumerate(np.bincount(below[below >= 0], minlength=len(seen))):
            seen[other] -= int(lost)
        paint(labels, len(full), category, place)
        full.append(shape.area)
        seen.append(shape.area)
        specifications.append((category, colour, size, pattern, place))
    if len(full) < 4 or len({item[1] for item in specifications}) < 2:
        return None
    return labels, specifications


def _spot(rng, labels, shape, full, seen, specifications):
    """x,y of a window for the silhouette, in the clear or in front of another object; None when none was found."""
    height, width = shape.mask.shape
    pixels = labels.shape[0]
    across, down = pixels - width - 1, pixels - height - 1
    overlap = bool(full) and rng.random() < 0.3
    for attempt, (u, v, w) in enumerate(rng.random((TRIES, 3)).tolist()):
        if overlap and attempt < TRIES // 2:
            place = specifications[int(w * len(full))][4]
            reach = 0.42 * (place.side + max(width, height))
            x = int(place.x + place.side / 2 - width / 2 + reach * cos(2 * pi * u))
            y = int(place.y + place.side / 2 - height / 2 + reach * sin(2 * pi * u))
            if not (1 <= x <= across and 1 <= y <= down):
                continue
            below = labels[y:y + height, x:x + width][shape.mask]
            lost = np.bincount(below[below >= 0], minlength=len(full)).tolist()
            shares = [cut / whole for cut, whole in zip(lost, full)]
            if (COVERED[0] <= max(shares) <= COVERED[1]
                    and all(have - cut >= VISIBLE * whole for have, cut, whole in zip(seen, lost, full))):
                return x, y
        else:
            x, y = 1 + int(u * across), 1 + int(v * down)
            if labels[y:y + height, x:x + width].max() < 0:
                return x, y
    return None
