"""How well an expression's words fit what is known of a region: its class, colours, place, size and the detector's score.

The text match compares a true expression with texts about a region; this compares it with the region itself. "guy in
the far back" is no template's sentence, yet it says: a person, small and high up in the picture.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..data.proposals.names import PERSON, Reading, groups, read_names
from ..data.proposals.regions import PARTS, plural
from ..labels import Label
from .text_match import TextMatch

PEOPLE = [PERSON, plural(PERSON), *PARTS]


@dataclass
class WordConfig:
    """What each kind of word counts, in nats of the score `words` (chosen on the validation photographs of docs/results.md).

    Attributes:
        name: The thing named is of the region's class; half as much where it is a part of it or worn by it.
        other: Another word of the expression names the region's class, as a share of `name`.
        vectors: A word of no list is as good as its likeness (by the text match) to the class's words, as a share of `name`.
        nobody: Lost by persons and their parts where the thing named is none.
        colour: The region has the colour named.
        place: Distance from the place named, in the frame's sides.
        depth: "front" and "back": how low in the frame the region ends, and how big it is.
        size: Logarithm of the region's share of the image for "big", its negative for "small".
        near: Distance from the nearest region that another word names ("guy with a frisbee"), in the frame's sides.
        ordinal: The region has that rank in its class from the side named.
        plural: Several are meant and the region is a group, or one is and it is none.
        detector: Logarithm of the detector's score.
        area: Logarithm of the region's share of the image: people speak of what is big.
    """

    name: float = 5.0
    other: float = 0.3
    vectors: float = 0.25
    nobody: float = 1.0
    colour: float = 1.0
    place: float = 4.0
    depth: float = 1.5
    size: float = 0.3
    near: float = 1.0
    ordinal: float = 2.0
    plural: float = 2.0
    detector: float = 0.5
    area: float = 0.3


class WordFit:
    """Scores of the expressions and regions of one image; a text encoder or word vectors know words of no list."""

    def __init__(self, config: WordConfig, text_match: TextMatch):
        self.config, self.text_match = config, text_match
        self.names = read_names()
        self._likeness: dict[tuple[str, str], float] = {}

    def scores(self, expressions: list[str], regions: list[Label]) -> torch.Tensor:
        """[E, N], in nats; regions with boxes in pixels of their image."""
        config, facts = self.config, _Facts(regions)
        rows = []
        for text in expressions:
            said = self.names.read(text)
            named = torch.tensor(self._named(said, facts))
            score = config.name * named + config.detector * facts.detector + config.area * facts.area
            if said.head and not any(self.names.fits(said.head, PEOPLE)):
                score -= config.nobody * facts.people
            score += config.plural * (facts.many == said.plural)
            if said.colours:
                score += config.colour * facts.coloured(said.colours)
            for axis, at in said.places:
                score -= config.place * (facts.centre[:, axis] - at).abs()
            score += config.depth * said.depth * (facts.boxes[:, 3] + facts.area / 4) + config.size * said.size * facts.area
            for word in said.others:
                score -= config.near * facts.away([fit == 1 for fit in self.names.fits(word, facts.categories)])
            if said.ordinal >= 0:
                score += config.ordinal * facts.ranked(said, named)
            rows.append(score)
        return torch.stack(rows)

    def _named(self, said: Reading, facts: _Facts) -> list[float]:
        """How surely the expression names each region's class, 0..1."""
        own = self.names.fits(said.head, facts.categories)
        if said.head and not self.names.knows(said.head) and self.config.vectors:
            own = [max(fit, self.config.vectors * self._alike(said.head, one)) for fit, one in zip(own, facts.members, strict=True)]
        others = [self.names.fits(word, facts.categories) for word in said.others]
        return [max(fit, self.config.other * max(more, default=0.0)) for fit, *more in zip(own, *others, strict=True)]

    def _alike(self, word: str, category: str) -> float:
        """Likeness to the class's words: the greatest cosine, counted from 0.5 on, 0..1."""
        if (word, category) not in self._likeness:
            own = [w for w, classes in self.names.classes.items() if category in classes] or [category]
            vectors = self.text_match.embed([word, *own])
            best = max(float(vectors[word] @ vectors[w]) for w in own)
            self._likeness[word, category] = max(0.0, 2 * best - 1)
        return self._likeness[word, category]


class _Facts:
    """What the regions of one image are, as tensors over the N of them; geometry in shares of the frame's sides."""

    def __init__(self, regions: list[Label]):
        first = regions[0]
        self.regions, self.categories = regions, [row.category for row in regions]
        one = groups(self.categories)
        self.members = [one.get(name, name) for name in self.categories]
        self.boxes = torch.tensor([row.box for row in regions], dtype=torch.float32) / torch.tensor([first.width, first.height] * 2)
        self.centre = (self.boxes[:, :2] + self.boxes[:, 2:]) / 2
        self.area = (self.boxes[:, 2:] - self.boxes[:, :2]).prod(1).clamp(min=1e-4).log()
        self.detector = torch.tensor([row.scores.get("detector", 1.0) for row in regions]).clamp(min=1e-3).log()
        self.people = torch.tensor([float(row.category in PEOPLE) for row in regions])
        self.many = torch.tensor([name in one for name in self.categories])

    def coloured(self, colours: tuple[str, ...]) -> torch.Tensor:
        return torch.tensor([float(bool({*colours} & {*row.attributes})) for row in self.regions])

    def away(self, there: list[bool]) -> torch.Tensor:
        """Distance [N] of centres from the nearest other region that is `there`, 0 where there is none."""
        where = [i for i, yes in enumerate(there) if yes]
        if not where:
            return torch.zeros(len(there))
        distance = torch.cdist(self.centre, self.centre[where])
        distance[where, range(len(where))] = torch.inf
        nearest = distance.amin(1)
        return torch.where(nearest.isinf(), 0.0, nearest)

    def ranked(self, said: Reading, named: torch.Tensor) -> torch.Tensor:
        """1 for the region of the rank said, from the side said or else from the left."""
        axis, at = said.places[0] if said.places else (0, 0.0)
        like = sorted((i for i in range(len(named)) if named[i] >= 0.5), key=lambda i: float(self.centre[i, axis]), reverse=at > 0.5)
        found = torch.zeros(len(named))
        if said.ordinal < len(like):
            found[like[said.ordinal]] = 1.0
        return found
