"""Texts that refer to no object in particular: captions of whole images and bare phrases of single objects.

They stand for what detectors and captioners were pretrained on. A caption lists objects from left to right and never
says which object it means, so it gives no pair of an expression and its region.
"""

import numpy as np

from .programs import Noun, relates
from .scene import Scene, SceneObject
from .wording import RELATIVE, noun_phrase, pick

CAPTION_RELATIONS = ("left", "above", "below", "near")  # the list runs left to right: "right of" cannot come up


def detection_phrase(item: SceneObject, rng: np.random.Generator | None = None) -> str:
    """`large striped red circle`: all that is worth saying of one object, in fixed words, a plain pattern unsaid; with
    an rng, a random part of it in varied words."""
    if rng is None:
        words = (item.size, item.pattern if item.pattern != "plain" else None, item.colour, item.category)
        return " ".join(word for word in words if word)
    return noun_phrase(_part(item, rng, 0.85, 0.8, 0.5), rng)


def _part(item, rng, colour, pattern, size):
    """Noun with each attribute kept at its rate; "plain" is seldom worth a word."""
    draws = rng.random(3)
    return Noun(item.category, item.colour if draws[0] < colour else None,
                item.pattern if draws[1] < (pattern if item.pattern != "plain" else 0.15) else None,
                item.size if draws[2] < size else None)


def caption(scene: Scene, rng: np.random.Generator, limit: int | None = None) -> str:
    """`a large red circle left of a dotted blue star , ...`: the objects, or `limit` of them, from left to right.

    Neighbours in the list are joined by a relation that clearly holds between them, or else by a comma.
    """
    order = sorted(range(len(scene.objects)), key=lambda index: scene.centres[index])
    if limit is not None and limit < len(order):
        order = [order[k] for k in sorted(rng.permutation(len(order))[:limit].tolist())]
    parts, joined = [], False
    for at, index in enumerate(order):
        phrase = noun_phrase(_part(scene.objects[index], rng, 0.95, 0.9, 0.5), rng, plain=True)
        parts.append(("an " if phrase[0] in "ao" else "a ") + phrase)
        if at + 1 == len(order):
            break
        following = order[at + 1]
        holding = [name for name in CAPTION_RELATIONS if relates(scene, index, name, following) == 2]
        # Never two in a row: "a left of b above c" leaves open what is above c.
        joined = not joined and bool(holding) and rng.random() < 0.6
        parts.append(pick(rng, RELATIVE[pick(rng, holding)]) if joined else ",")
    return " ".join(parts)
