"""Where the regions of one image lie: ranks along an axis, areas and pairwise relations, with margins.

Words and templates share it. A fact is stated only where a margin puts it beyond doubt, so that a box a few
pixels off does not turn a true text into a false one. Axis 0 is horizontal, axis 1 vertical.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

SIDES = (("left", "right"), ("top", "bottom"))
ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth")
RELATIONS = ("left", "right", "above", "below", "beside", "with")

INSIDE = 0.75  # a box this much inside another belongs to it (CPL's rule for "with")
NEAR, NEARISH = 6 / 128, 15 / 128  # gap between neighbours, surely and perhaps, as a share of the longer side
CLEAR = 5 / 3  # margins between two centres for one to be surely left of (above) the other
ASIDE = 0.8  # the most that it may lie aside, as a share of that distance


@dataclass
class Layout:
    """Boxes x1,y1,x2,y2 in pixels of an image of `width` x `height`.

    margin: the least distance of two centres, as a share of the image's side, for one to be left of the other;
    area_ratio: the least ratio of two areas for one to be bigger.
    """

    boxes: list[list[float]]
    width: float
    height: float
    margin: float = 6 / 128
    area_ratio: float = 1.2
    centres: tuple[list[float], list[float]] = field(init=False)
    areas: list[float] = field(init=False)

    def __post_init__(self):
        self.centres = ([(b[0] + b[2]) / 2 for b in self.boxes], [(b[1] + b[3]) / 2 for b in self.boxes])
        self.areas = [max(b[2] - b[0], 0.0) * max(b[3] - b[1], 0.0) for b in self.boxes]

    def side(self, axis: int) -> float:
        return self.height if axis else self.width

    def spread(self, group: list[int], axis: int) -> float:
        """Distance in pixels of the outermost centres of `group` along `axis`."""
        values = [self.centres[axis][i] for i in group]
        return max(values) - min(values)

    def ranks(self, group: list[int], axis: int) -> dict[int, int]:
        """Region -> rank from the left (top), only for regions a margin away from both their neighbours."""
        centre, margin = self.centres[axis], self.margin * self.side(axis)
        order = sorted(group, key=centre.__getitem__)
        clear = [True, *(centre[b] - centre[a] >= margin for a, b in zip(order, order[1:])), True]
        return {region: i for i, region in enumerate(order) if clear[i] and clear[i + 1]}

    def extreme_areas(self, group: list[int]) -> tuple[int | None, int | None]:
        """The biggest and the smallest of two or more regions, each None where the next is nearly its size."""
        if len(group) < 2:
            return None, None
        order = sorted(group, key=self.areas.__getitem__)
        areas = [self.areas[i] for i in order]
        return (
            order[-1] if areas[-1] >= self.area_ratio * areas[-2] else None,
            order[0] if areas[1] >= self.area_ratio * areas[0] else None,
        )

    def nearest_middle(self, group: list[int]) -> int | None:
        """The region nearest to the image's centre, None where the next is nearly as near."""
        shares = ((self.centres[0][i] / self.width - 0.5, self.centres[1][i] / self.height - 0.5, i) for i in group)
        order = sorted((math.hypot(x, y), i) for x, y, i in shares)
        return order[0][1] if len(order) == 1 or order[1][0] - order[0][0] >= self.margin else None

    def in_part(self, region: int, axis: int, word: str, strict: bool = True) -> bool:
        """Whether the centre lies in the part of the frame that `word` names.

        `strict` asks for the outer 40 % (the middle 30 %); otherwise the half (the middle half) will do,
        which is how a region is shown to be surely elsewhere.
        """
        at = self.centres[axis][region] / self.side(axis)
        if word == "middle":
            return abs(at - 0.5) < (0.15 if strict else 0.25)
        at = at if word == SIDES[axis][0] else 1 - at
        return at < (0.4 if strict else 0.5)

    def relations(self) -> tuple[dict[str, list[int]], dict[str, list[int]]]:
        """For every relation and region y, the bit masks of regions r with `r relation y`.

        The first dict holds what is surely true, the second what might be: a text is safe where it surely
        holds of its region and of no other may hold.
        """
        count = len(self.boxes)
        sure = {name: [0] * count for name in RELATIONS}
        maybe = {name: [0] * count for name in RELATIONS}
        for y in range(count):
            for r in range(count):
                if r != y:
                    self._relate(r, y, 1 << r, sure, maybe)
        return sure, maybe

    def _relate(self, r: int, y: int, bit: int, sure: dict, maybe: dict) -> None:
        a, b = self.boxes[r], self.boxes[y]
        (xs, ys), areas = self.centres, self.areas
        wide, high = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
        shared = wide * high if wide > 0 and high > 0 else 0.0
        apart = shared < 0.5 * min(areas[r], areas[y])
        dx, dy = xs[y] - xs[r], ys[y] - ys[r]
        least = CLEAR * self.margin
        for name, ahead, aside, side in (
            ("left" if dx > 0 else "right", abs(dx), abs(dy), self.width),
            ("above" if dy > 0 else "below", abs(dy), abs(dx), self.height),
        ):
            if ahead:
                maybe[name][y] |= bit
                if apart and ahead >= least * side and aside <= ASIDE * ahead:
                    sure[name][y] |= bit
        gap = math.hypot(min(wide, 0.0), min(high, 0.0)) / max(self.width, self.height)
        if gap <= NEARISH:
            maybe["beside"][y] |= bit
            if apart and gap <= NEAR:
                sure["beside"][y] |= bit
        if shared > 0.3 * areas[y]:
            maybe["with"][y] |= bit
            if shared >= INSIDE * areas[y] and areas[r] >= self.area_ratio * areas[y]:
                sure["with"][y] |= bit
