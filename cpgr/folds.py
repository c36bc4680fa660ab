"""Cross-fitting: the images are split in folds, and each fold is labelled by models that were trained on the others.

A model that labels its own training images repeats the mistakes it was taught. The parts keep their contracts, so the
loop knows nothing of it.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from .data.records import Expression, Split
from .labels import Label, LabelTable
from .stages import Attention, Generator, Grounded, Grounder, Images, Query
from .training import seed_everything


def fold_of(image_id: str, folds: int) -> int:
    """The image's fold: the same in every cycle and every run."""
    return zlib.crc32(image_id.encode()) % folds


class _Folded:
    def __init__(self, make: Callable[[int], Generator | Grounder], folds: int):
        self.folds = folds
        self.parts = [make(i) for i in range(folds)]
        self.history = None

    def _fold(self, image_id: str) -> int:
        return fold_of(image_id, self.folds)

    def _fit(self, labels: LabelTable, images: Images, work: Path) -> None:
        seed = torch.initial_seed()
        for i, part in enumerate(self.parts):
            seed_everything(seed, i)
            part.fit(labels.where(lambda row, i=i: self._fold(row.image_id) != i), images, work / f"fold-{i}")

    def save(self, folder: Path) -> None:
        for i, part in enumerate(self.parts):
            part.save(folder / f"fold-{i}")
            if getattr(part, "history", None):
                part.history.save(folder / f"fold-{i}" / "history.json")
                part.history = None

    def load(self, folder: Path) -> None:
        for i, part in enumerate(self.parts):
            part.load(folder / f"fold-{i}")


class CrossFittedGenerator(_Folded):
    """`stages.Generator`: every image's texts and scores come from a model that was not trained on it."""

    def fit(self, labels: LabelTable, images: Images, work: Path) -> None:
        self._fit(labels, images, work)
        trained = [part.history for part in self.parts if getattr(part, "history", None)]
        self.history = trained[0] if trained else None

    def generate(self, split: Split, proposals: LabelTable) -> LabelTable:
        made: list[Label] = []
        for i, part in enumerate(self.parts):
            mine = {image_id: image for image_id, image in split.images.items() if self._fold(image_id) == i}
            if mine:
                own = Split(split.name, mine, [e for e in split.expressions if e.image_id in mine])
                made += part.generate(own, proposals.where(lambda row, i=i: self._fold(row.image_id) == i)).rows
        order = {image_id: k for k, image_id in enumerate(split.images)}
        return LabelTable(sorted(made, key=lambda row: (order[row.image_id], row.region_id)))

    def match(self, images: Images, labels: LabelTable) -> list[float]:
        found: list[float] = [0.0] * len(labels)
        for i, part in enumerate(self.parts):
            where = [k for k, row in enumerate(labels) if self._fold(row.image_id) == i]
            for k, chance in zip(where, part.match(images, LabelTable(labels[k] for k in where)), strict=True):
                found[k] = chance
        return found

    def judge(
        self, images: Images, proposals: LabelTable, expressions: Sequence[Expression], scores: Sequence[str]
    ) -> dict[str, dict[str, torch.Tensor]]:
        found: dict[str, dict[str, torch.Tensor]] = {}
        for i, part in enumerate(self.parts):
            mine = [e for e in expressions if self._fold(e.image_id) == i]
            theirs = proposals.where(lambda row, i=i: self._fold(row.image_id) == i)
            for name, values in part.judge(images, theirs, mine, scores).items():
                found.setdefault(name, {}).update(values)
        return found


class CrossFittedGrounder(_Folded):
    """`stages.Grounder`: `attend` asks the model that was not trained on the image, `ground` one that was trained on all."""

    def __init__(self, make: Callable[[int], Grounder], folds: int):
        super().__init__(make, folds)
        self.whole = make(folds)

    def fit(self, labels: LabelTable, images: Images, work: Path, validate=None, length: float = 1.0) -> None:
        self.whole.fit(labels, images, work / "whole", validate, length)
        self.history, self.whole.history = self.whole.history, None
        self._fit(labels, images, work)

    def ground(self, queries: Sequence[Query]) -> Grounded:
        return self.whole.ground(queries)

    def attend(self, queries: Sequence[Query]) -> Attention:
        places: list[list[int]] = [[] for _ in self.parts]
        for k, query in enumerate(queries):
            places[self._fold(query.image.image_id)].append(k)
        found, maps = None, None
        for part, where in zip(self.parts, places, strict=True):
            answer = part.attend([queries[k] for k in where])
            if maps is None:
                found, maps = answer, answer.maps.new_zeros(len(queries), answer.maps.shape[1])
            maps[where] = answer.maps
        return Attention(maps, found.grid, found.size, found.mode)

    def save(self, folder: Path) -> None:
        self.whole.save(folder)
        super().save(folder)

    def load(self, folder: Path) -> None:
        self.whole.load(folder)
        super().load(folder)
