"""Texts for regions from the detector's words alone: the first cycle's basic labels, before any model is trained.

The forms follow CPL's heuristic texts and Pseudo-Q's templates (class, attributes, position, "with ..."), with
comparisons and relations beside them. A text is made together with its meaning, the set of regions it may be
true of, so that with `unique` only texts stay that, by the detections, name exactly one region of the image.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from itertools import combinations

from ..data.proposals.layout import Layout
from ..data.proposals.words import SIZE_WORDS, position_words
from ..labels import Label, LabelTable

RELATION_PHRASES = {
    "left": ("left of the", "to the left of the"),
    "right": ("right of the", "to the right of the"),
    "above": ("above the",),
    "below": ("below the",),
    "beside": ("next to the",),
    "with": ("with the",),
}
PLACE_PHRASES = {"left": "on the left", "right": "on the right", "top": "at the top", "bottom": "at the bottom", "middle": "in the middle"}
KINDS = ("class", "attribute", "position", "comparison", "ordinal", "depth", "relation")
MAX_ATTRIBUTES = 3  # of one region, in combinations; a detector may list a dozen


@dataclass
class TemplateConfig:
    """Which texts are made for a region.

    per_region: at most so many texts of one region, every kind given the same chance.
    attributes: texts with the detector's attributes ("striped red circle").
    position: texts with a position among their like or in the frame ("left dog", "dog at the top").
    comparison: "bigger dog" of two, "biggest" and "smallest dog" of more.
    relation: "dog left of the red car", the other region named so that it is the only one.
    ordinal: "second dog from the left".
    depth: "front dog" and "dog behind" for the bigger and the smaller (CPL's depth by area); right for
        photographs, wrong for flat scenes.
    unique: keep only texts that by the detections are true of exactly one region.
    margin: the least distance between centres, as a share of the image's side, for a position or relation.
    area_ratio: the least ratio of areas for a comparison.
    """

    per_region: int = 4
    attributes: bool = True
    position: bool = True
    comparison: bool = True
    relation: bool = True
    ordinal: bool = False
    depth: bool = False
    unique: bool = True
    margin: float = 6 / 128
    area_ratio: float = 1.2


def templates(proposals: LabelTable, config: TemplateConfig, rng: random.Random) -> list[Label]:
    """Labels of kind "template" for the proposals of one image, in the order of the proposals.

    Each is its proposal (box, words, scores, region_id) with an expression. A proposal without a class gets
    none, nor does one that no text tells from the others when `unique` is set.
    """
    made = _Texts(proposals.rows, config)
    labels = []
    for region, proposal in enumerate(proposals):
        texts = _fair_cut(made.of(region), config.per_region, rng)
        labels += [replace(proposal, expression=text, kind="template") for text in texts]
    return labels


def _fair_cut(by_kind: dict[str, list[str]], count: int, rng: random.Random) -> list[str]:
    """Up to `count` distinct texts, one kind after the other in a random order."""
    pools = [rng.sample(texts, min(count, len(texts))) for texts in by_kind.values() if texts]
    rng.shuffle(pools)
    chosen: dict[str, None] = {}
    while pools and len(chosen) < count:
        for pool in pools:
            if len(chosen) < count:
                chosen.setdefault(pool.pop())
        pools = [pool for pool in pools if pool]
    return list(chosen)


class _Texts:
    """The texts of one image's regions. A set of regions is a bit mask: bit i stands for region i."""

    def __init__(self, rows: list[Label], config: TemplateConfig):
        self.config = config
        self.layout = Layout([row.box for row in rows], rows[0].width, rows[0].height, config.margin, config.area_ratio) if rows else None
        self.names = [_names(row, config.attributes) for row in rows]
        self.extension = self._extensions(rows)
        self.places: dict[int, dict[int, list[tuple[int, str]]]] = {}
        self.sure, self.maybe = self.layout.relations() if rows and config.relation else ({}, {})
        self.landmark = [self._landmark_names(region) for region in range(len(rows))]

    def of(self, region: int) -> dict[str, list[str]]:
        """The texts of a region by kind."""
        made: dict[str, list[str]] = {kind: [] for kind in KINDS}
        for name in self.names[region]:
            text, group = " ".join(name), self.extension[name]
            if self._fits(region, group):
                made["attribute" if len(name) > 1 else "class"].append(text)
            if self.config.position or self.config.ordinal:
                self._place(region, text, group, made)
            if not SIZE_WORDS.intersection(name[:-1]):
                self._compare(region, text, group, made)
            if self.config.relation:
                made["relation"] += self._relate(region, text, group)
        return made

    def _extensions(self, rows: list[Label]) -> dict[tuple[str, ...], int]:
        """Name -> the regions that have its class and all its attributes."""
        words = [{row.category, *row.attributes} for row in rows]
        found = {}
        for name in {name for names in self.names for name in names}:
            members = (1 << i for i, row in enumerate(rows) if row.category == name[-1] and words[i].issuperset(name))
            found[name] = sum(members)
        return found

    def _fits(self, region: int, mask: int) -> bool:
        return mask == 1 << region or not self.config.unique

    def _landmark_names(self, region: int) -> list[str]:
        """The shortest names that are the region's alone."""
        alone = [name for name in self.names[region] if self.extension[name] == 1 << region]
        return [" ".join(name) for name in alone if len(name) == len(alone[0])]

    def _place(self, region: int, text: str, group: int, made: dict[str, list[str]]) -> None:
        if group not in self.places:
            self.places[group] = position_words(self.layout, _members(group))
        for axis, word in self.places[group][region]:
            ordinal, _, side = word.partition(" ")
            if axis == 2:
                forms, kind = [f"{word} {text}", f"{text} at the {word}"], "position"
            elif side:
                forms, kind = [f"{ordinal} {text} from the {side}"], "ordinal"
            elif word == "middle" and self.layout.nearest_middle(_members(group)) != region:
                continue  # the median, but another is as near to the image's middle: either could be meant
            else:
                forms, kind = [f"{word} {text}"], "position"
                if self._lies_there(region, axis, word, group):
                    forms.append(f"{text} {PLACE_PHRASES[word]}")
            if getattr(self.config, kind):
                made[kind] += forms

    def _lies_there(self, region: int, axis: int, word: str, group: int) -> bool:
        """Whether "on the left" holds in the frame as well, where it would otherwise be read."""
        others = (other for other in _members(group) if other != region)
        here = self.layout.in_part(region, axis, word)
        return here and not any(self.layout.in_part(other, axis, word, strict=False) for other in others)

    def _compare(self, region: int, text: str, group: int, made: dict[str, list[str]]) -> None:
        if group == 1 << region or not (self.config.comparison or self.config.depth):
            return
        biggest, smallest = self.layout.extreme_areas(_members(group))
        if region not in (biggest, smallest):
            return
        if self.config.comparison:
            two = group.bit_count() == 2
            words = ("bigger", "smaller") if two else ("biggest", "smallest")
            made["comparison"].append(f"{words[region != biggest]} {text}")
        if self.config.depth:
            made["depth"].append(f"front {text}" if region == biggest else f"{text} behind")

    def _relate(self, region: int, text: str, group: int) -> list[str]:
        bit, texts = 1 << region, []
        for relation, phrases in RELATION_PHRASES.items():
            sure, maybe = self.sure[relation], self.maybe[relation]
            for other, names in enumerate(self.landmark):
                if names and sure[other] & bit and self._fits(region, maybe[other] & group):
                    texts += [f"{text} {phrase} {name}" for phrase in phrases for name in names]
        return texts


def _names(row: Label, attributes: bool) -> list[tuple[str, ...]]:
    """The class with every subset of its attributes, in their order, the shortest first; none without a class."""
    if not row.category:
        return []
    words = list(dict.fromkeys(word for word in row.attributes if word != row.category))[:MAX_ATTRIBUTES] if attributes else []
    return [(*chosen, row.category) for size in range(len(words) + 1) for chosen in combinations(words, size)]


def _members(mask: int) -> list[int]:
    return [i for i in range(mask.bit_length()) if mask >> i & 1]
