"""The loop: Generation, Refinement, Grounding, and again. Its order, its artefacts, and how it resumes.

Every step's artefact is complete or absent. A step draws its random numbers from (seed, cycle, step) alone, so a
run that was killed and resumed ends with the labels and weights of one that was not.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from .data.records import Split
from .labels import LabelTable
from .processes import by_main
from .stages import Generator, Grounder, Refiner, TrainedRefiner
from .training import seed_everything

log = logging.getLogger("cpgr")


@dataclass
class Parts:
    """What a recipe hands to the loop. `propose` gives the split's regions; `last_length` is how much longer Grounding trains in
    the last cycle than in the others."""

    propose: Callable[[Split], LabelTable]
    generator: Generator
    refiner: Refiner
    grounder: Grounder
    last_length: float = 1.0


@dataclass
class CycleFolder:
    """The artefacts of one cycle."""

    root: Path
    number: int

    @property
    def folder(self) -> Path:
        return self.root / f"cycle-{self.number}"

    def __getattr__(self, name: str) -> Path:
        names = {
            "proposals": "proposals.parquet", "basic": "basic.parquet", "refined": "refined.parquet",
            "generation": "generation", "refinement": "refinement", "grounding": "grounding", "metrics": "metrics.json", "work": "work",
        }  # fmt: skip
        if name not in names:
            raise AttributeError(name)
        return self.folder / names[name]


def run(
    parts: Parts,
    split: Split,
    root: Path,
    *,
    cycles: int,
    seed: int,
    report: Callable[[CycleFolder, Grounder], dict],
    validate: Callable[[Grounder], float] | None = None,
) -> None:
    """Run `cycles` cycles in the folder `root`, going on from whatever artefacts it already holds.

    `split` has images and expressions and nothing else. `report` measures a finished cycle for metrics.json; its
    result is never read back. `validate` measures a part that grounds; it is given where the recipe allows model selection by
    validation boxes.
    """
    generator, grounder = _Held(parts.generator), _Held(parts.grounder)
    refiner = _Held(parts.refiner) if isinstance(parts.refiner, TrainedRefiner) else None
    for number in range(1, cycles + 1):
        here, last = CycleFolder(root, number), CycleFolder(root, number - 1)
        if here.metrics.exists():
            continue
        log.info("cycle %d of %d", number, cycles)
        proposals = _proposals(parts, split, here, last, seed)
        previous = LabelTable.load(last.refined) if number > 1 else LabelTable()

        attention = parts.grounder if number > 1 else None

        def start(step: str, number=number) -> None:
            seed_everything(seed, number, step)

        def check(part):
            return (lambda: validate(part)) if validate else None

        if not here.generation.exists():
            generator.at(last.generation)
            start("generation")
            parts.generator.fit(previous, split.images, here.work / "generation")
            _save(parts.generator, here.generation, here.work / "generation")
            generator.folder = here.generation
        if not here.basic.exists():
            generator.at(here.generation)
            start("basic")
            made = parts.generator.generate(split, proposals)
            LabelTable(replace(row, cycle=number) for row in made).save(here.basic)
        if refiner and not here.refinement.exists():
            refiner.at(last.refinement)
            grounder.at(last.grounding)
            start("refinement")
            work = here.work / "refinement"
            parts.refiner.fit(LabelTable.load(here.basic), proposals, split, work, attention, check(parts.refiner))
            _save(parts.refiner, here.refinement, work)
            refiner.folder = here.refinement
        if not here.refined.exists():
            generator.at(here.generation)
            grounder.at(last.grounding)
            if refiner:
                refiner.at(here.refinement)
            start("refined")
            refined = parts.refiner.refine(LabelTable.load(here.basic), proposals, split, parts.generator, attention)
            refined.save(here.refined)
        if not here.grounding.exists():
            grounder.at(last.grounding)
            start("grounding")
            longer = {"length": parts.last_length} if number == cycles and parts.last_length != 1 else {}
            parts.grounder.fit(LabelTable.load(here.refined), split.images, here.work / "grounding", check(parts.grounder), **longer)
            _save(parts.grounder, here.grounding, here.work / "grounding")
            grounder.folder = here.grounding
        generator.at(here.generation)
        grounder.at(here.grounding)
        if refiner:
            refiner.at(here.refinement)
        write_json(here.metrics, report(here, parts.grounder))
        _clear(here.work)


def _proposals(parts: Parts, split: Split, here: CycleFolder, last: CycleFolder, seed: int) -> LabelTable:
    """The detector runs once; every cycle's folder holds its result, so that it can be read on its own."""
    if not here.proposals.exists():
        if here.number == 1:
            seed_everything(seed, 0, "proposals")
            parts.propose(split).save(here.proposals)
        else:
            LabelTable.load(last.proposals).save(here.proposals)
    return LabelTable.load(here.proposals)


class _Held:
    """A trained part and the artefact whose weights it holds; loads only when another's are wanted."""

    def __init__(self, part):
        self.part, self.folder = part, None

    def at(self, folder: Path) -> None:
        if self.folder != folder and folder.exists():
            self.part.load(folder)
            self.folder = folder


@by_main
def _save(part, folder: Path, work: Path) -> None:
    """Save into a folder of another name, then rename: the artefact is whole or absent. Only then is the state of its
    training, in `work`, thrown away."""
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    part.save(partial)
    if getattr(part, "history", None):
        part.history.save(partial / "history.json")
        part.history = None
    os.replace(partial, folder)
    shutil.rmtree(work, ignore_errors=True)


@by_main
def _clear(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)


@by_main
def write_json(path: Path, content) -> None:
    """Write JSON whole or not at all."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(content, indent=2) + "\n")
    os.replace(temporary, path)
