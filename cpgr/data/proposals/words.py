"""The words of a region for the `[Spat] [Attr] [Cls]` prefix: where it lies among its like, what it looks like.

The spatial rules are CPL's (per class, by box centre): of two regions left/right and top/bottom; of three and
more the extremes, the median "middle", the others by ordinal counted from the nearer end; depth by area. A region
alone in its class is placed in the frame instead. Other than in CPL, a word needs a margin to the next region.
"""

from __future__ import annotations

from .colours import pixel_colours
from .layout import ORDINALS, SIDES, Layout

__all__ = ["pixel_colours", "position_words", "spatial_word", "spatial_words", "order_attributes", "SIZE_WORDS"]

SIZE_WORDS = frozenset("big large huge giant small little tiny tall short long medium".split())
DEPTH_RATIO = 1.5  # of three regions and more, areas must differ by this for any depth word (CPL)
DEPTH_TIE = 1.03  # areas this close share a depth word (CPL)


def spatial_word(boxes: list[list[float]], categories: list[str], width: float, height: float) -> list[str]:
    """The one word (or two: "second left", "top left") of every region, "" where none is beyond doubt."""
    return [words[0] if words else "" for words in spatial_words(boxes, categories, width, height)]


def spatial_words(boxes: list[list[float]], categories: list[str], width: float, height: float) -> list[list[str]]:
    """All spatial words of every region, the best first.

    boxes: N lists x1,y1,x2,y2 in pixels of the image of `width` x `height`; categories: N class words. The axis
    along which the regions of a class are spread more widely comes first, then the other, then depth.
    """
    layout = Layout(boxes, width, height)
    groups: dict[str, list[int]] = {}
    for region, category in enumerate(categories):
        groups.setdefault(category, []).append(region)
    words: list[list[str]] = [[] for _ in boxes]
    for group in groups.values():
        for region, placed in position_words(layout, group).items():
            words[region] += [word for _, word in placed]
        for region, depth in depth_words(layout, group).items():
            words[region] += depth
    return words


def position_words(layout: Layout, group: list[int]) -> dict[int, list[tuple[int, str]]]:
    """Region -> [(axis, word)], best first, for the regions of `group` that a word tells from the others.

    axis is 0 (horizontal), 1 (vertical) or 2 (both: "top left", where neither axis alone will do).
    """
    placed: dict[int, list[tuple[int, str]]] = {region: [] for region in group}
    if len(group) == 1:
        placed[group[0]] = _frame_words(layout, group[0])
        return placed
    spreads = [layout.spread(group, axis) for axis in (0, 1)]
    main = int(spreads[1] > spreads[0])
    for axis in (main, 1 - main):
        for region, rank in layout.ranks(group, axis).items():
            word = _rank_word(rank, len(group), SIDES[axis])
            # The median of the lesser axis may be another region: "middle" is said of the main axis alone.
            if word and not (word == "middle" and (axis != main or _other_median(layout, group, region, 1 - axis, spreads))):
                placed[region].append((axis, word))
    for region, found in placed.items():
        if not found:
            placed[region] = _corner(layout, group, region)
    return placed


def depth_words(layout: Layout, group: list[int]) -> dict[int, list[str]]:
    """Region -> words of relative size, a bigger region taken to be nearer (CPL's depth by area)."""
    if len(group) < 2:
        return {}
    areas = {region: layout.areas[region] for region in group}
    most, least = max(areas.values()), min(areas.values())
    if len(group) == 2:
        words, ratio = (["bigger", "front"], ["smaller", "behind"]), layout.area_ratio
    else:
        words, ratio = (["biggest", "front"], ["smallest", "behind"]), DEPTH_RATIO
    if most < ratio * least or most == 0:
        return {}
    near = {region: words[0] for region, area in areas.items() if area * DEPTH_TIE >= most}
    return near | {region: words[1] for region, area in areas.items() if area <= DEPTH_TIE * least}


def order_attributes(size: str, pattern: str, colour: str) -> list[str]:
    """Attributes in the order English wants: "large striped red"; an empty or plain one is left out."""
    return [word for word in (size, pattern if pattern != "plain" else "", colour) if word]


def _rank_word(rank: int, count: int, sides: tuple[str, str]) -> str:
    from_end = count - 1 - rank
    if rank == from_end:
        return "middle"
    near, side = (rank, sides[0]) if rank < from_end else (from_end, sides[1])
    if near == 0:
        return side
    return f"{ORDINALS[near]} {side}" if near < len(ORDINALS) else ""


def _other_median(layout: Layout, group: list[int], region: int, axis: int, spreads: list[float]) -> bool:
    """Whether another region is as much the middle one, along an axis that counts nearly as much."""
    if spreads[axis] < 0.5 * spreads[1 - axis]:
        return False
    return sorted(group, key=layout.centres[axis].__getitem__)[len(group) // 2] != region


def _frame_words(layout: Layout, region: int) -> list[tuple[int, str]]:
    """Words for a region alone in its group: the side of the frame it is in, the outermost axis first."""
    off = [layout.centres[axis][region] / layout.side(axis) - 0.5 for axis in (0, 1)]
    if max(map(abs, off)) < 0.15:
        return [(0, "middle")]
    words = [(axis, word) for axis in (0, 1) for word in SIDES[axis] if layout.in_part(region, axis, word)]
    return sorted(words, key=lambda pair: -abs(off[pair[0]]))


def _corner(layout: Layout, group: list[int], region: int) -> list[tuple[int, str]]:
    for across in SIDES[0]:
        for down in SIDES[1]:
            if layout.in_part(region, 0, across) and layout.in_part(region, 1, down):
                others = (o for o in group if o != region)
                if not any(layout.in_part(o, 0, across, False) and layout.in_part(o, 1, down, False) for o in others):
                    return [(2, f"{down} {across}")]
    return []
