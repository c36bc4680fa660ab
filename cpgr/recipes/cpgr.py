"""CPGR: cyclic pseudo-label generation and refinement (TCSVT 2025), the main recipe.

What it may see: images and expressions of the training split; a detector's boxes, classes and attributes; the
weights its models were pretrained with (captions, detection labels). Boxes of the validation split choose the best
epoch only where `grounding.training.validate_every` is set, as is the custom of this line of work.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from ..config import RunConfig
from ..cycle import Parts
from ..data.proposals import build_detector, propose
from ..errors import CpgrError
from ..folds import CrossFittedGenerator, CrossFittedGrounder
from ..generation.generator import Blip2Generator
from ..generation.settings import GenerationConfig
from ..grounding.choosing import ChoosingGrounder
from ..grounding.students import open_model
from ..grounding.transvg import TransVGConfig, TransVGGrounder
from ..progress import track
from ..refinement.refiner import AttentionRefiner, RefinementConfig


@dataclass
class Config(RunConfig):
    """CPGR's run.

    Attributes:
        generation: BLIP-2 with coordinate embedding, prefix and LoRA.
        refinement: Filtering and Label Pairing.
        grounding: TransVG with CPL's multi-level cross-attention.
        folds: Cross-fitting: each of so many parts of the images is labelled by models trained on the others (0: off).
        last_length: How many times as long Grounding trains in the last cycle.
        answer: What answers when the run is measured: `grounding`, the trained network; or, as a baseline, one of the
            detector's regions: `random`, `score` (the detector's best), `largest` or `judges` (the generator's scores).
    """

    generation: GenerationConfig = field(default_factory=GenerationConfig)
    refinement: RefinementConfig = field(default_factory=RefinementConfig)
    grounding: TransVGConfig = field(default_factory=TransVGConfig)
    folds: int = 0
    last_length: float = 1.0
    answer: str = "grounding"


def build(config: Config, accelerator, work: Path) -> Parts:
    """The three parts, ready for `cycle.run`. `work` holds caches that may be thrown away."""

    def proposals(split):
        return propose(build_detector(config.proposals, config.detection), split, config.detection, progress=track)

    def generator(fold: int = 0):
        return Blip2Generator(config.generation, accelerator, work / f"generation-{fold}", config.seed)

    def grounder(fold: int = 0):
        return TransVGGrounder(config.grounding, accelerator, work / f"grounding-{fold}")

    if config.folds == 1 or config.folds < 0:
        raise CpgrError(f"folds: {config.folds} makes no sense; cross-fitting takes 2 or more, 0 turns it off")
    parts = Parts(
        propose=proposals,
        generator=CrossFittedGenerator(generator, config.folds) if config.folds else generator(),
        refiner=AttentionRefiner(config.refinement),
        grounder=CrossFittedGrounder(grounder, config.folds) if config.folds else grounder(),
        last_length=config.last_length,
    )
    if config.answer != "grounding":
        parts.grounder = ChoosingGrounder(parts.grounder, config.answer, proposals, parts.generator, config.refinement.pairing, config.seed)
    return parts


def open_grounder(folder: Path, accelerator, work: Path) -> TransVGGrounder:
    """The trained grounding model in a run's `cycle-N/grounding`."""
    return open_model(folder, TransVGConfig, TransVGGrounder, accelerator, work)
