"""What a reader gives: images and expressions on one side, the held ground truth on the other.

Training code is handed a `Split`, whose records have no region field at all. The regions of the same
records live in a `Truth`, which only evaluation and analysis are given: this is the weak-supervision boundary.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import DataError


@dataclass(frozen=True)
class Image:
    """An image file; `width` and `height` are those of the decoded picture."""

    image_id: str
    file_name: str
    path: Path
    width: int
    height: int


@dataclass(frozen=True)
class Expression:
    """An expression of an image. Nothing here says which region it names."""

    expression_id: str
    image_id: str
    text: str


@dataclass
class Split:
    """Images and their expressions, in file order."""

    name: str
    images: dict[str, Image] = field(default_factory=dict)
    expressions: list[Expression] = field(default_factory=list)

    def by_image(self) -> dict[str, list[Expression]]:
        groups: dict[str, list[Expression]] = {image_id: [] for image_id in self.images}
        for expression in self.expressions:
            groups[expression.image_id].append(expression)
        return groups


@dataclass
class Truth:
    """Held ground truth, by expression id: for `evaluate` and analysis only, never for training.

    boxes: x1, y1, x2, y2 in original pixels; masks: COCO RLE dict or polygons; `objects`: the labelled
    objects of an image by image id (COCO annotation dicts with `bbox` xywh), where the data set has them.
    """

    boxes: dict[str, list[float]] = field(default_factory=dict)
    masks: dict[str, object] = field(default_factory=dict)
    object_ids: dict[str, int] = field(default_factory=dict)  # expression id -> index in objects[image]
    objects: dict[str, list[dict]] = field(default_factory=dict)


@dataclass
class Problems:
    """What to do with a bad record (`on_bad`: error | skip), and what was skipped, for the run's summary."""

    on_bad: str = "error"
    skipped: list[DataError] = field(default_factory=list)

    def bad(self, file, record, problem: str, mend: str = "mend the record, or skip such records with --data.on_bad skip") -> None:
        """Raise the error, or count it and let the reader go on with the next record."""
        error = DataError(file, record, problem, mend)
        if self.on_bad != "skip":
            raise error
        self.skipped.append(error)

    def summary(self) -> dict[str, int]:
        return dict(Counter(error.problem for error in self.skipped))
