"""Regions that a detector of objects does not name, from those it does: parts of persons, groups, ground and background.

Half the phrases of Flickr30k Entities name a thing worn, several objects at once or the scenery. Each of these is a
guess by geometry, with a class word of its own, so that texts are made for it and expressions can be matched with it.
"""

from __future__ import annotations

import numpy as np

from .detections import Detections

EXTRA = ("parts", "groups", "scenery")

# Part of a standing person -> left, top, right, bottom as shares of the person's box. A box hardly taller than wide
# shows a person who sits, lies or is cut off; only head and shirt are guessed then, the shirt further down.
PARTS = {"head": (0.2, 0.0, 0.8, 0.2), "shirt": (0.0, 0.15, 1.0, 0.55), "trousers": (0.05, 0.45, 0.95, 0.85), "shoes": (0.0, 0.85, 1.0, 1.0)}
SHORT_PARTS = {"head": (0.2, 0.0, 0.8, 0.4), "shirt": (0.0, 0.35, 1.0, 1.0)}
TALL = 1.6  # height over width from which on a person is taken to stand
SCENERY = {"ground": (0.0, 1 / 3, 1.0, 1.0), "background": (0.0, 0.0, 1.0, 2 / 3), "scene": (0.0, 0.0, 1.0, 1.0)}
SCENERY_SCORE = 0.05
LEAST_SCORE = 0.25  # of the detections that parts and groups are made of


def extra_regions(found: Detections, kinds: list[str], width: int, height: int) -> Detections:
    """The regions of `kinds` (parts, groups, scenery) that the detections of one image give; scores are their sources'."""
    made: list[tuple[list[float], float, str]] = []
    sure = [i for i in range(len(found)) if found.scores[i] >= LEAST_SCORE]
    if "parts" in kinds:
        for i in sure:
            if found.categories[i] == "person":
                made += [(box, found.scores[i], name) for name, box in _parts(found.boxes[i])]
    if "groups" in kinds:
        for category in dict.fromkeys(found.categories[i] for i in sure):
            members = [i for i in sure if found.categories[i] == category]
            made += [(box, score, plural(category)) for box, score in _groups(found.boxes[members], found.scores[members])]
    if "scenery" in kinds:
        made += [(_share([0, 0, width, height], shares), SCENERY_SCORE, name) for name, shares in SCENERY.items()]
    return Detections(
        np.array([box for box, _, _ in made]), np.array([score for _, score, _ in made]), [name for _, _, name in made]
    )


def plural(category: str) -> str:
    """The class word of a group."""
    if category == "person":
        return "people"
    if category.endswith(("s", "sh", "ch", "x")):
        return f"{category}es"
    return f"{category}s"


def _parts(box: np.ndarray) -> list[tuple[str, list[float]]]:
    width, height = box[2] - box[0], box[3] - box[1]
    parts = PARTS if height >= TALL * width else SHORT_PARTS
    return [(name, _share(box, shares)) for name, shares in parts.items()]


def _share(box, shares) -> list[float]:
    width, height = box[2] - box[0], box[3] - box[1]
    return [box[0] + shares[0] * width, box[1] + shares[1] * height, box[0] + shares[2] * width, box[1] + shares[3] * height]


def _groups(boxes: np.ndarray, scores: np.ndarray) -> list[tuple[list[float], float]]:
    """The box around all, and around every cluster of neighbours (gap below half the mean side) if that is another."""
    count = len(boxes)
    if count < 2:
        return []
    cluster = list(range(count))
    sides = np.sqrt(np.prod(boxes[:, 2:] - boxes[:, :2], axis=1))
    for a in range(count):
        for b in range(a):
            gap = np.maximum(np.maximum(boxes[a, :2], boxes[b, :2]) - np.minimum(boxes[a, 2:], boxes[b, 2:]), 0)
            if np.hypot(*gap) <= 0.25 * (sides[a] + sides[b]):
                old, new = cluster[a], cluster[b]
                cluster = [new if c == old else c for c in cluster]
    members = [list(range(count))] + [[i for i in range(count) if cluster[i] == c] for c in sorted(set(cluster))]
    unions = {tuple(m): None for m in members if len(m) > 1}
    return [([*boxes[list(m), :2].min(0), *boxes[list(m), 2:].max(0)], float(scores[list(m)].mean())) for m in unions]
