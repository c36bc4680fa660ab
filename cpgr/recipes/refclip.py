"""RefCLIP: weakly supervised referring expression comprehension by anchor-text contrast (CVPR 2023), and its students.

Generation takes the data set's expressions, Refinement trains RefCLIP on them and gives each its anchor's box, Grounding
trains a student on those labels. One cycle is the published system; with `refinement.in_image` a later cycle's teacher learns
from the last student, as RefCLIP++ has it.

What it may see: images and expressions of the training split, and a detector's weights (objects' boxes and classes; RefCLIP's
own was trained on COCO without the images of RefCOCO's validation and test splits). Boxes of the validation split choose the
best epoch where `validate_every` of `refinement.training` or of the student's training is set, as published.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from ..config import RunConfig
from ..cycle import Parts
from ..generation.expressions import DatasetExpressions
from ..grounding.students import StudentConfig, build_student, open_model, open_student
from ..refinement.anchors import AnchorConfig, AnchorRefiner
from ..stages import Grounder


@dataclass
class Config(RunConfig):
    """RefCLIP's run. Its proposals are the teacher's anchors: the sections `proposals` and `detection` have no effect.

    Attributes:
        cycles: Teacher and student, so many times.
        refinement: RefCLIP, the teacher.
        grounding: The student.
    """

    shipped: ClassVar[tuple[str, ...]] = ("students",)

    cycles: int = 1
    refinement: AnchorConfig = field(default_factory=AnchorConfig)
    grounding: StudentConfig = field(default_factory=StudentConfig)


def build(config: Config, accelerator, work: Path) -> Parts:
    """The three parts, ready for `cycle.run`. `work` holds caches that may be thrown away."""
    teacher = AnchorRefiner(config.refinement, accelerator, work / "refinement")
    teacher.check()
    return Parts(
        propose=teacher.propose,
        generator=DatasetExpressions(),
        refiner=teacher,
        grounder=build_student(config.grounding, accelerator, work / "grounding"),
    )


def open_grounder(folder: Path, accelerator, work: Path) -> Grounder:
    """The trained student of a run (`cycle-N/grounding`) or its teacher (`cycle-N/refinement`)."""
    if json.loads((folder / "config.json").read_text()).get("grounder") == "refclip":
        return open_model(folder, AnchorConfig, AnchorRefiner, accelerator, work)
    return open_student(folder, accelerator, work)
