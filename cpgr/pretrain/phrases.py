"""What BLIP-2's pretraining says of a box, and of which other boxes the same words hold."""

from __future__ import annotations

import random

import numpy as np
import torch

from ..data.proposals.words import order_attributes, spatial_word
from ..data.scenes import captions
from ..data.scenes.parsing import parse
from ..data.scenes.programs import denote
from ..generation.templates import TemplateConfig, templates
from ..labels import Label, LabelTable
from .scenes import PIXELS, Drawn

SETTINGS = TemplateConfig(per_region=8)


class Phrases:
    """Texts of boxes from detection labels alone: phrases of the object itself or, in a share `context` of draws, the
    first cycle's templates ("left circle", "red star above the cup"), which a rule makes from the labels of all boxes."""

    def __init__(self, drawn: list[Drawn], context: float):
        self.drawn, self.context = drawn, context
        self._made: dict[int, tuple[list[list[str]], list[str]]] = {}

    def scene(self, i: int) -> tuple[list[list[str]], list[str]]:
        """(templates of every object, spatial word of every object) of scene i."""
        if i not in self._made:
            items = self.drawn[i].scene.objects
            boxes = [[float(side) for side in item.box] for item in items]
            places = spatial_word(boxes, [item.category for item in items], PIXELS, PIXELS)
            rows = LabelTable(
                Label(str(i), "", PIXELS, PIXELS, box, category=item.category, region_id=k,
                      attributes=order_attributes(item.size, item.pattern, item.colour))
                for k, (box, item) in enumerate(zip(boxes, items, strict=True))
            )  # fmt: skip
            texts: list[list[str]] = [[] for _ in items]
            if self.context:
                for row in templates(rows, SETTINGS, random.Random(i)):
                    if parse(row.expression) is not None:  # of others it could not be said whether they hold elsewhere
                        texts[row.region_id].append(row.expression)
            self._made[i] = texts, places
        return self._made[i]

    def draw(self, i: int, k: int, rng: np.random.Generator) -> str:
        """A text of object k of scene i."""
        if self.context and rng.random() < self.context:
            texts = self.scene(i)[0][k]
            if texts:
                return texts[int(rng.random() * len(texts))]
        return captions.detection_phrase(self.drawn[i].scene.objects[k], rng)

    def prefix(self, i: int, k: int, rng: np.random.Generator) -> str:
        """`[Spat] [Attr] [Cls]`, a word now and then left out as an unsure detector does."""
        item, place = self.drawn[i].scene.objects[k], self.scene(i)[1][k]
        words = [w for w in (place, *order_attributes(item.size, item.pattern, item.colour)) if w and rng.random() < 0.9]
        return " ".join([*words, item.category])

    def hold(self, picks: list[tuple[int, int]], texts: list[str]) -> torch.Tensor:
        """[R, R] bool: text j is true of region i. Regions are (scene, object); the diagonal is true."""
        rows: dict[int, list[tuple[int, int]]] = {}
        for row, (i, k) in enumerate(picks):
            rows.setdefault(i, []).append((row, k))
        holds = torch.eye(len(picks), dtype=torch.bool)
        columns: dict[str, list[int]] = {}
        for column, text in enumerate(texts):
            columns.setdefault(text, []).append(column)
        for text, where in columns.items():
            program = parse(text)
            for i, regions in rows.items():
                found = denote(self.drawn[i].scene, program)
                for row, k in regions:
                    if k in found:
                        holds[row, where] = True
        return holds
