"""Expressions of a scene: true of exactly one object, and the judgement of any text against a scene."""

from dataclasses import dataclass
from functools import lru_cache
from itertools import product

import numpy as np

from .parsing import parse
from .programs import DIRECTIONS, KINDS, POSITIONS, RELATIONS, Noun, Program, denote, members, relates
from .scene import Scene
from .wording import pick, word

# Shares that the kinds are drawn with; the shares that come out differ where a kind has nothing to say.
WEIGHTS = {"attr": 0.285, "abs": 0.285, "rel": 0.195, "sup": 0.195, "ord": 0.045}
TRIES = 8
LONGEST = 9  # words


@dataclass(frozen=True)
class Referring:
    """One expression of the object `index`."""

    index: int
    text: str
    program: Program


# How likely a noun is to carry each word: people say colours first, and rarely that something is plain or medium.
_APPEAL = {"plain": 0.08, "medium": 0.22, "small": 0.4, "large": 0.4, "striped": 0.45, "dotted": 0.45}
_COLOUR, _OPEN = 0.6, 0.07  # any colour; a category left open


@lru_cache(maxsize=8192)
def _nouns(category, colour, pattern, size):
    """(noun, weight) of every noun true of such an object; at least one word."""
    nouns = [Noun(*chosen) for chosen in product(*((None, value) for value in (category, colour, pattern, size)))]
    return tuple((noun, (1.0 if noun.category else _OPEN) * (_COLOUR if noun.colour else 1.0)
                  * _APPEAL.get(noun.pattern, 1.0) * _APPEAL.get(noun.size, 1.0)) for noun in nouns if noun.words())


def _draw(scene, index, rng, fits):
    """A noun true of the object whose number of members `fits`; None when there is none."""
    item = scene.objects[index]
    nouns = [(noun, weight) for noun, weight in _nouns(item.category, item.colour, item.pattern, item.size)
             if fits(len(members(scene, noun)))]
    point = rng.random() * sum(weight for _, weight in nouns)
    for noun, weight in nouns:
        point -= weight
        if point < 0:
            return noun
    return nouns[-1][0] if nouns else None


def _attribute(scene, index, rng):
    noun = _draw(scene, index, rng, lambda count: count == 1)
    return noun and Program("attr", noun)


def _absolute(scene, index, rng):
    least = 1 if rng.random() < 0.1 else 2
    noun = _draw(scene, index, rng, lambda count: count >= least)
    return noun and Program("abs", noun, pick(rng, POSITIONS))


def _superlative(scene, index, rng):
    noun = _draw(scene, index, rng, lambda count: count >= 2)
    if noun is None or noun.size:  # "the biggest small heart" is nothing that one says
        return None
    comparative = len(members(scene, noun)) == 2 and rng.random() < 0.5
    return Program("sup", noun, pick(rng, ("bigger", "smaller") if comparative else ("biggest", "smallest")))


def _ordinal(scene, index, rng):
    noun = _draw(scene, index, rng, lambda count: count >= 3)
    return noun and Program("ord", noun, pick(rng, DIRECTIONS), 2 if rng.random() < 0.75 else 3)


def _relation(scene, index, rng):
    other = int(rng.random() * (len(scene.objects) - 1))
    other += other >= index
    relations = [name for name in RELATIONS if relates(scene, index, name, other) == 2]
    least = 1 if rng.random() < 0.15 else 2
    noun = relations and _draw(scene, index, rng, lambda count: count >= least)
    landmark = noun and _draw(scene, other, rng, lambda count: count == 1)
    if not landmark or not landmark.category:
        return None
    # Nearness is rarer than the directions, so it is preferred where it holds.
    name = "near" if "near" in relations and rng.random() < 0.5 else pick(rng, relations)
    return Program("rel", noun, name, landmark=landmark)


_MAKERS = {"attr": _attribute, "abs": _absolute, "rel": _relation, "sup": _superlative, "ord": _ordinal}


def _kind(rng, left):
    point = rng.random() * sum(WEIGHTS[kind] for kind in left)
    for kind in left:
        point -= WEIGHTS[kind]
        if point < 0:
            return kind
    return left[-1]


def express(scene: Scene, index: int, rng: np.random.Generator, kind: str | None = None):
    """(text, Program) that denotes exactly the object `index`, or None when nothing was found. Without `kind` the kind
    is drawn first and retried within itself, and another is drawn only when it has nothing to say."""
    left = [kind] if kind else list(KINDS)
    while left:
        chosen = _kind(rng, left)
        for _ in range(TRIES):
            program = _MAKERS[chosen](scene, index, rng)
            if program and denote(scene, program) == [index]:
                text = word(program, rng)
                if text.count(" ") < LONGEST:
                    return text, program
        left.remove(chosen)
    return None


def expressions(scene: Scene, rng: np.random.Generator, *, referents: int | tuple = (1, 3), per_referent: int = 3,
                among=None) -> list[Referring]:
    """Up to `per_referent` expressions, all with different texts, of each of some objects.

    referents: how many objects, or the least and the most of a random number; among: the indices to choose from
    (default: all). An object that nothing tells apart is passed over, so the list may be shorter, or empty.
    """
    order = rng.permutation(len(scene.objects)).tolist()
    low, high = (referents, referents) if isinstance(referents, int) else referents
    wanted = low + int(rng.random() * (high - low + 1))
    found = []
    for index in order:
        if wanted == 0:
            break
        if among is not None and index not in among:
            continue
        texts = {}
        for _ in range(3 * per_referent):
            made = express(scene, index, rng)
            if made is not None:
                texts.setdefault(*made)
            if made is None or len(texts) == per_referent:
                break
        found += [Referring(index, text, program) for text, program in texts.items()]
        wanted -= bool(texts)
    return found


def judge(scene: Scene, text: str, index: int):
    """(true of object `index`, true of it alone); None when the text does not parse."""
    program = parse(text)
    if program is None:
        return None
    found = denote(scene, program)
    return index in found, found == [index]
