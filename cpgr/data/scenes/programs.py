"""What an expression means: programs and the objects of a scene that they denote.

Truth never hangs on a pixel. Ranks that lie closer than MARGIN denote nothing, and an object that stands in a
relation only just counts as a second reading, so that no expression is unique by a hair.
"""

from dataclasses import dataclass
from math import hypot

from .scene import Scene

KINDS = ("attr", "abs", "rel", "sup", "ord")
DIRECTIONS = ("left", "right", "top", "bottom")
POSITIONS = DIRECTIONS + ("middle",)
RELATIONS = ("left", "right", "above", "below", "near")
DEGREES = ("biggest", "smallest", "bigger", "smaller")

# All lengths are shares of the image width.
MARGIN = 6 / 128  # between neighbouring ranks
LARGER = 1.2  # ratio of the squared extents between neighbouring sizes
CLEAR, FAINT = (10 / 128, 0.8), (4 / 128, 1.4)  # relation: least distance, most sidestep per distance
NEAR, NEARISH = 6 / 128, 14 / 128  # gap between boxes
HALF = 0.05  # a lone object is "on the left" when its centre is this far left of the middle
MIDDLE = 0.24  # radius around the image centre


@dataclass(frozen=True)
class Noun:
    """A class of objects; None leaves an attribute open (a category left open reads "thing")."""

    category: str | None = None
    colour: str | None = None
    pattern: str | None = None
    size: str | None = None

    def words(self):
        return [word for word in (self.category, self.colour, self.pattern, self.size) if word]


@dataclass(frozen=True)
class Program:
    """The meaning of an expression.

    kind  attr: the noun alone; abs: `word` in POSITIONS; rel: `word` in RELATIONS to `landmark`;
          sup: `word` in DEGREES; ord: the `rank`-th (2 or 3) of the class counted from `word` in DIRECTIONS.
    """

    kind: str
    noun: Noun
    word: str = ""
    rank: int = 0
    landmark: Noun | None = None


def members(scene: Scene, noun: Noun) -> list[int]:
    """Indices of the objects that have every attribute of the noun."""
    found = scene.memo.get(noun)
    if found is None:
        bits = (1 << len(scene.objects)) - 1
        for word in noun.words():
            bits &= scene.having.get(word, 0)
        found = scene.memo[noun] = [index for index in range(len(scene.objects)) if bits >> index & 1]
    return found


def denote(scene: Scene, program: Program) -> list[int]:
    """Indices of the objects that the program is true of, in the scene's order.

    Positions compare the centres of the visible boxes, sizes the extents of the full silhouettes. "The biggest" needs
    a class of two or more, "the bigger" a class of exactly two; of several possible landmarks any one serves.
    """
    group = members(scene, program.noun)
    if not group or program.kind == "attr":
        return list(group)
    return _RULES[program.kind](scene, group, program)


def _depths(scene, group, direction):
    """(distance from the image's `direction` edge along that axis, index), nearest first."""
    axis, sign = (0 if direction in ("left", "right") else 1), (1 if direction in ("left", "top") else -1)
    return sorted((sign * scene.centres[index][axis], index) for index in group)


def _absolute(scene, group, program):
    if program.word == "middle":
        return _middle(scene, group)
    ranked = _depths(scene, group, program.word)
    if len(ranked) > 1:
        return [ranked[0][1]] if ranked[1][0] - ranked[0][0] >= MARGIN * scene.width else []
    x, y = scene.centres[group[0]]
    share = x / scene.width if program.word in ("left", "right") else y / scene.height
    beyond = 0.5 - share if program.word in ("left", "top") else share - 0.5
    return list(group) if beyond >= HALF else []


def _middle(scene, group):
    """The object nearest to the image centre, unless it is the outermost of its class along both axes."""
    ranked = sorted((hypot(scene.centres[i][0] - scene.width / 2, scene.centres[i][1] - scene.height / 2), i)
                    for i in group)
    distance, index = ranked[0]
    if distance > MIDDLE * scene.width or (len(ranked) > 1 and ranked[1][0] - distance < MARGIN * scene.width):
        return []
    if len(group) > 2:
        outermost = [index in (ends[0][1], ends[-1][1])
                     for ends in (_depths(scene, group, "left"), _depths(scene, group, "top"))]
        if all(outermost):
            return []
    return [index]


def _ordinal(scene, group, program):
    ranked = _depths(scene, group, program.word)
    if len(ranked) < max(3, program.rank):
        return []
    upto = ranked[:program.rank + 1]
    if any(after[0] - before[0] < MARGIN * scene.width for before, after in zip(upto, upto[1:])):
        return []
    return [ranked[program.rank - 1][1]]


def _superlative(scene, group, program):
    if len(group) < 2 or (program.word in ("bigger", "smaller") and len(group) != 2):
        return []
    ranked = sorted((scene.objects[index].extent ** 2, index) for index in group)
    first, second = (ranked[-1], ranked[-2]) if program.word in ("biggest", "bigger") else (ranked[0], ranked[1])
    return [first[1]] if max(first[0], second[0]) >= LARGER * min(first[0], second[0]) else []


def relates(scene: Scene, index: int, relation: str, landmark: int) -> int:
    """2 when `index` clearly stands in the relation to `landmark`, 1 when one could say so, else 0."""
    if relation == "near":
        a, b = scene.objects[index].box, scene.objects[landmark].box
        gap = hypot(max(a[0] - b[2], b[0] - a[2], 0), max(a[1] - b[3], b[1] - a[3], 0)) / scene.width
        return 2 if gap <= NEAR else 1 if gap <= NEARISH else 0
    (x, y), (u, v) = scene.centres[index], scene.centres[landmark]
    if relation in ("left", "right"):
        ahead, aside = (u - x if relation == "left" else x - u), abs(v - y)
    else:
        ahead, aside = (v - y if relation == "above" else y - v), abs(u - x)
    for grade, (least, sidestep) in ((2, CLEAR), (1, FAINT)):
        if ahead >= least * scene.width and aside <= sidestep * ahead:
            return grade
    return 0


def _relation(scene, group, program):
    landmarks = members(scene, program.landmark)
    grades = [max((relates(scene, index, program.word, other) for other in landmarks if other != index), default=0)
              for index in group]
    if 2 not in grades:
        return []
    return [index for index, grade in zip(group, grades) if grade]


_RULES = {"abs": _absolute, "rel": _relation, "sup": _superlative, "ord": _ordinal}
