"""Full supervision: the recipe's grounding network trained on true boxes. The bound that weak runs are measured against.

It says by `sees_truth` that it is fully supervised: `execution.execute` then hands the training split's true boxes to its `build`.
Nothing that it makes is read by another recipe.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from ..config import RunConfig
from ..cycle import Parts
from ..data.label_files import held_labels
from ..data.proposals import build_detector, propose
from ..data.records import Truth
from ..errors import CpgrError
from ..generation.expressions import DatasetExpressions
from ..grounding.transvg import TransVGConfig, TransVGGrounder
from ..progress import track
from ..refinement.given import GivenLabels
from .cpgr import open_grounder

__all__ = ["Config", "build", "open_grounder", "sees_truth"]


def sees_truth(config: Config) -> bool:
    """Always."""
    return True


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
        propose=proposals, generator=DatasetExpressions(), refiner=GivenLabels(lambda split: held_labels(split, truth)),
        grounder=TransVGGrounder(config.grounding, accelerator, work / "grounding"),
    )  # fmt: skip
