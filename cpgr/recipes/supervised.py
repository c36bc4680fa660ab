"""Full supervision: the recipe's grounding network trained on true boxes. The bound that weak runs are measured against.

The only recipe that declares `SEES_TRUTH`: `run.execute` hands the training split's true boxes to its `build` and to no
other one's. Nothing that it makes is read by another recipe.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..config import RunConfig
from ..cycle import Parts
from ..data.proposals import build_detector, propose
from ..data.records import Split, Truth
from ..errors import CpgrError
from ..grounding.transvg import TransVGConfig, TransVGGrounder
from ..labels import Label, LabelTable
from ..progress import track
from .cpgr import open_grounder

__all__ = ["SEES_TRUTH", "Config", "build", "open_grounder"]

SEES_TRUTH = True


@dataclass
class Config(RunConfig):
    """A supervised run.

    Attributes:
        grounding: TransVG with CPL's multi-level cross-attention.
    """

    cycles: int = 1
    grounding: TransVGConfig = field(default_factory=TransVGConfig)


def build(config: Config, accelerator, work: Path, truth: Truth) -> Parts:
    """The parts: no texts are made, and the "refined" labels are the true boxes."""

    def proposals(split):
        return propose(build_detector(config.proposals, config.detection), split, config.detection, progress=track)

    if config.cycles != 1:
        raise CpgrError(f"cycles: {config.cycles}: full supervision has nothing to refine; set --cycles 1")
    return Parts(
        propose=proposals, generator=_NoTexts(), refiner=_TrueBoxes(truth),
        grounder=TransVGGrounder(config.grounding, accelerator, work / "grounding"),
    )  # fmt: skip


class _NoTexts:
    """`stages.Generator` that writes nothing."""

    history = None

    def fit(self, labels: LabelTable, images, work: Path) -> None:
        pass

    def generate(self, images, proposals: LabelTable) -> LabelTable:
        return LabelTable()

    def match(self, images, labels: LabelTable) -> list[float]:
        return [1.0] * len(labels)

    def judge(self, images, proposals, expressions, scores: Sequence[str]) -> dict:
        return {}

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)

    def load(self, folder: Path) -> None:
        pass


class _TrueBoxes:
    """`stages.Refiner` that gives every training expression its true box; one without a box is left out."""

    def __init__(self, truth: Truth):
        self.truth = truth

    def refine(self, basic: LabelTable, proposals: LabelTable, split: Split, generator, grounder) -> LabelTable:
        rows = []
        for e in split.expressions:
            image, box = split.images[e.image_id], self.truth.boxes.get(e.expression_id)
            if box is not None:
                rows.append(
                    Label(e.image_id, image.file_name, image.width, image.height, list(box), expression=e.text,
                          expression_id=e.expression_id, cycle=1)
                )  # fmt: skip
        return LabelTable(rows)
