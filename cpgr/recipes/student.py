"""A grounding network on its own: RealGIN, SimREC, TransVG or MAttNet, trained on the labels of a file or on the true boxes.

What it may see: with `labels` a file, the images of the training split and that file. With `labels: truth` it is FULLY SUPERVISED, says
so by `sees_truth`, and is trained on the true boxes of the training split: it is what weak runs are compared with.
Boxes of the validation split choose the best weights where the network's `training.validate_every` is set.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from ..config import RunConfig
from ..cycle import Parts
from ..data.label_files import held_labels, label_file, read_labels
from ..data.proposals import build_detector, propose
from ..data.records import Split, Truth
from ..generation.expressions import DatasetExpressions
from ..grounding.students import StudentConfig, build_student, open_student
from ..labels import LabelTable
from ..progress import track
from ..refinement.given import GivenLabels

TRUTH = "truth"


@dataclass
class Config(RunConfig):
    """The training of one network.

    Attributes:
        cycles: Trainings; a second one starts from the first one's weights where the network's `warm_start` is set.
        labels: A label file (.parquet of a run, or any that `cpgr labels export` writes, by its name), or `truth`: full supervision.
        proposals: Regions for the report: none, builtin, transformers:NAME_OR_FOLDER, onnx:FILE or file:FILE. MAttNet's own are those of
            `grounding.mattnet`.
        grounding: The network.
    """

    shipped: ClassVar[tuple[str, ...]] = ("students",)

    cycles: int = 1
    labels: str = TRUTH
    proposals: str = "none"
    grounding: StudentConfig = field(default_factory=StudentConfig)


def sees_truth(config: Config) -> bool:
    """Whether the run is fully supervised."""
    return config.labels == TRUTH


def build(config: Config, accelerator, work: Path, truth: Truth | None = None) -> Parts:
    """The three parts, ready for `cycle.run`. `work` holds caches that may be thrown away; `truth` is given where `sees_truth`."""
    if config.labels != TRUTH:
        label_file(config.labels)  # a mistyped name is said before the run's folder is made

    def proposals(split: Split) -> LabelTable:
        if config.proposals == "none":
            return LabelTable()
        return propose(build_detector(config.proposals, config.detection), split, config.detection, progress=track)

    def labels(split: Split) -> LabelTable:
        return read_labels(config.labels, split, config.data) if truth is None else held_labels(split, truth)

    return Parts(
        propose=proposals,
        generator=DatasetExpressions(),
        refiner=GivenLabels(labels),
        grounder=build_student(config.grounding, accelerator, work / "grounding"),
    )


open_grounder = open_student
