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
from ..generation.generator import Blip2Generator
from ..generation.settings import GenerationConfig
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
    """

    generation: GenerationConfig = field(default_factory=GenerationConfig)
    refinement: RefinementConfig = field(default_factory=RefinementConfig)
    grounding: TransVGConfig = field(default_factory=TransVGConfig)


def build(config: Config, accelerator, work: Path) -> Parts:
    """The three parts, ready for `cycle.run`. `work` holds caches that may be thrown away."""

    def proposals(split):
        return propose(build_detector(config.proposals, config.detection), split, config.detection, progress=track)

    return Parts(
        propose=proposals,
        generator=Blip2Generator(config.generation, accelerator, work / "generation", config.seed),
        refiner=AttentionRefiner(config.refinement),
        grounder=TransVGGrounder(config.grounding, accelerator, work / "grounding"),
    )


def open_grounder(folder: Path, accelerator, work: Path) -> TransVGGrounder:
    """The trained grounding model in a run's `cycle-N/grounding`."""
    return open_model(folder, TransVGConfig, TransVGGrounder, accelerator, work)
