"""Answers that are one of the detector's regions, chosen without the grounding network: the baselines of a run."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from ..data.records import Expression, Split
from ..errors import CpgrError
from ..labels import LabelTable
from ..refinement.pairing import JUDGES, PairConfig, posterior
from ..stages import Attention, Generator, Grounded, Grounder, Images, Query

CHOICES = ("random", "score", "largest", "judges")


class ChoosingGrounder:
    """`stages.Grounder` that trains and attends as `inner` does but answers with a proposal: a random one, the
    detector's best, the largest, or the one the generator judges best (before its first fit: the detector's best)."""

    def __init__(
        self, inner: Grounder, choose: str, propose: Callable[[Split], LabelTable], generator: Generator, pairing: PairConfig, seed: int
    ):
        if choose not in CHOICES:
            raise CpgrError(f"answer: {choose!r} is none of grounding, {', '.join(CHOICES)}")
        self.inner, self.choose, self.propose, self.generator, self.pairing, self.seed = inner, choose, propose, generator, pairing, seed

    def fit(self, labels: LabelTable, images: Images, work: Path, validate=None, length: float = 1.0) -> None:
        self.inner.fit(labels, images, work, validate, length)

    def attend(self, queries: Sequence[Query]) -> Attention:
        return self.inner.attend(queries)

    def save(self, folder: Path) -> None:
        self.inner.save(folder)

    def load(self, folder: Path) -> None:
        self.inner.load(folder)

    @property
    def history(self):
        return self.inner.history

    @history.setter
    def history(self, value):
        self.inner.history = value

    def ground(self, queries: Sequence[Query]) -> Grounded:
        images = {q.image.image_id: q.image for q in queries}
        expressions = [Expression(str(i), q.image.image_id, q.text) for i, q in enumerate(queries)]
        proposals = self.propose(Split("queries", images, expressions))
        regions = proposals.by_image()
        judged: dict = {}
        if self.choose == "judges":
            asked = [name for name in JUDGES if getattr(self.pairing, name).weight]
            judged = self.generator.judge(images, proposals, expressions, asked)
        boxes, scores = [], []
        for e in expressions:
            rows = list(regions[e.image_id])
            best, score = self._best(e, rows, {name: found[e.expression_id][None] for name, found in judged.items()})
            boxes.append(rows[best].box)
            scores.append(score)
        return Grounded(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4), torch.tensor(scores))

    def _best(self, e: Expression, rows, judged: dict) -> tuple[int, float]:
        if judged:
            chances = posterior(judged, self.pairing)[0]
            return int(chances.argmax()), float(chances.max())
        if self.choose == "random":
            return random.Random(f"{self.seed} {e.image_id} {e.text}").randrange(len(rows)), 1 / len(rows)
        if self.choose == "largest":
            areas = [(r.box[2] - r.box[0]) * (r.box[3] - r.box[1]) for r in rows]
            return areas.index(max(areas)), max(areas) / (rows[0].width * rows[0].height)
        found = [r.scores.get("detector", r.scores.get("score", 0.0)) for r in rows]
        return found.index(max(found)), max(found)
