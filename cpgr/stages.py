"""The three contracts of the cycle. A recipe gives one part for each; `cycle.run` knows nothing else.

No contract has a way to hand over ground truth: labels are made from images, expressions and proposals alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

import torch

from .data.records import Expression, Image, Split
from .labels import LabelTable

Images = Mapping[str, Image]


class Query(NamedTuple):
    """An image and an expression to find in it."""

    image: Image
    text: str


@dataclass
class Grounded:
    """The answers to Q queries: boxes [Q, 4] x1, y1, x2, y2 in original pixels, scores [Q] in 0..1."""

    boxes: torch.Tensor
    scores: torch.Tensor


@dataclass
class Attention:
    """Attention maps [Q, grid * grid] over image cells, row-major in a frame of `size` pixels; rows sum to 1."""

    maps: torch.Tensor
    grid: int
    size: int
    mode: str = "letterbox"


class Generator(Protocol):
    """Writes expressions for regions, and judges how well an expression fits each region."""

    def fit(self, labels: LabelTable, images: Images, work: Path) -> None: ...

    def generate(self, split: Split, proposals: LabelTable) -> LabelTable: ...

    def match(self, images: Images, labels: LabelTable) -> list[float]:
        """Probability that each label's text fits the crop of its box (ITM)."""
        ...

    def judge(
        self, images: Images, proposals: LabelTable, expressions: Sequence[Expression], scores: Sequence[str]
    ) -> dict[str, dict[str, torch.Tensor]]:
        """By score name (of those asked for) and expression id: log-scores [R] over the image's R proposals, in their order."""
        ...

    def save(self, folder: Path) -> None: ...

    def load(self, folder: Path) -> None: ...


class Refiner(Protocol):
    """Keeps and pairs the basic labels; `grounder` is None in the first cycle."""

    def refine(
        self, basic: LabelTable, proposals: LabelTable, split: Split, generator: Generator, grounder: Grounder | None
    ) -> LabelTable: ...


@runtime_checkable
class TrainedRefiner(Refiner, Protocol):
    """A Refiner with weights of its own. The loop trains it before it refines, and keeps it as it keeps the other parts."""

    def fit(
        self, basic: LabelTable, proposals: LabelTable, split: Split, work: Path, grounder: Grounder | None, validate=None
    ) -> None: ...

    def save(self, folder: Path) -> None: ...

    def load(self, folder: Path) -> None: ...


class Grounder(Protocol):
    """Finds the region an expression names; its attention feeds the next Refinement."""

    def fit(self, labels: LabelTable, images: Images, work: Path, validate=None, length: float = 1.0) -> None:
        """Train on the kept labels, `length` times as long as configured."""
        ...

    def ground(self, queries: Sequence[Query]) -> Grounded: ...

    def attend(self, queries: Sequence[Query]) -> Attention: ...

    def save(self, folder: Path) -> None: ...

    def load(self, folder: Path) -> None: ...
