"""The grounding networks a recipe can teach, by name. A student's module has a config dataclass and a grounder."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ..errors import CpgrError
from ..stages import Grounder
from ..training import TrainingConfig
from .mattnet import MAttNetConfig, MAttNetGrounder
from .realgin import RealGINConfig, RealGINGrounder
from .simrec import SimRECConfig, SimRECGrounder
from .transvg import TransVGConfig, TransVGGrounder

GROUNDERS = {
    "realgin": (RealGINConfig, RealGINGrounder),
    "simrec": (SimRECConfig, SimRECGrounder),
    "transvg": (TransVGConfig, TransVGGrounder),
    "mattnet": (MAttNetConfig, MAttNetGrounder),
}


@dataclass
class StudentConfig:
    """The network that is taught.

    Attributes:
        student: Which of those below; the others' settings have no effect.
        realgin: RealGIN, one-stage with prior boxes.
        simrec: SimREC, one-stage and anchor-free.
        transvg: TransVG, a transformer.
        mattnet: MAttNet, which chooses among a detector's regions.
    """

    student: Literal["realgin", "simrec", "transvg", "mattnet"] = "transvg"
    realgin: RealGINConfig = field(default_factory=RealGINConfig)
    simrec: SimRECConfig = field(default_factory=SimRECConfig)
    transvg: TransVGConfig = field(default_factory=TransVGConfig)
    mattnet: MAttNetConfig = field(default_factory=MAttNetConfig)

    @property
    def training(self) -> TrainingConfig:
        return getattr(self, self.student).training


def build_student(config: StudentConfig, accelerator, work: Path) -> Grounder:
    """The chosen network, not trained yet."""
    return GROUNDERS[config.student][1](getattr(config, config.student), accelerator, work)


def open_student(folder: Path, accelerator, work: Path) -> Grounder:
    """The trained network in an artefact, whichever it is."""
    name = json.loads((folder / "config.json").read_text()).get("grounder")
    if name not in GROUNDERS:
        raise CpgrError(f"{folder} holds a grounding model {name!r}, which this version does not have ({', '.join(GROUNDERS)})")
    return open_model(folder, *GROUNDERS[name], accelerator, work)


def open_model(folder: Path, config_class: type, model_class: type, accelerator, work: Path):
    """A model of `model_class` by the config.json that its `save` wrote, with its weights."""
    from jsonargparse import ArgumentParser

    saved = json.loads((folder / "config.json").read_text())
    saved.pop("grounder")
    parser = ArgumentParser()
    parser.add_class_arguments(config_class, "model")
    model = model_class(parser.instantiate(parser.parse_object({"model": saved})).model, accelerator, work)
    model.load(folder)
    return model
