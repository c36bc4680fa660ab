"""The loop on small stand-in parts: its order, its artefacts, and resuming after a crash at every step."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cpgr.cycle import CycleFolder, Parts, run
from cpgr.data.records import Expression, Image, Split
from cpgr.labels import Label, LabelTable
from cpgr.stages import Attention, Grounded

CYCLES = 3


@pytest.fixture
def split():
    images = {str(i): Image(str(i), f"{i}.jpg", Path(f"{i}.jpg"), 10, 10) for i in range(3)}
    return Split("train", images, [Expression(f"e{i}", str(i), f"text {i}") for i in range(3)])


class Part:
    """A part whose weight is a number drawn from the step's random state; it can be told to crash."""

    crash_at = None  # (part, method, how often called before)
    calls: list = []

    def __init__(self):
        self.weight = 0.0

    def note(self, method):
        Part.calls.append((type(self).__name__, method))
        if Part.crash_at == len(Part.calls):
            raise RuntimeError("crash")

    def save(self, folder):
        folder.mkdir(parents=True)
        (folder / "weight.json").write_text(json.dumps(self.weight))
        self.note("save")

    def load(self, folder):
        self.weight = json.loads((folder / "weight.json").read_text())


class Generator(Part):
    def fit(self, labels, images, work):
        self.note("fit")
        self.weight = float(torch.rand(1)) + sum(row.scores.get("seen", 0.0) for row in labels)

    def generate(self, split, proposals):
        self.note("generate")
        return LabelTable(replace(row, kind="generated", expression=f"{self.weight + float(torch.rand(1)):.6f}") for row in proposals)


class Refiner(Part):
    def refine(self, basic, proposals, split, generator, grounder):
        self.note("refine")
        attention = grounder.attend([]).maps.sum().item() if grounder else 0.0
        return LabelTable(row.keep(seen=float(row.expression) + attention + generator.weight) for row in basic)


class Grounder(Part):
    def fit(self, labels, images, work, validate=None, length=1.0):
        self.note("fit")
        self.weight = length * float(torch.rand(1)) + sum(row.scores["seen"] for row in labels)

    def ground(self, queries):
        return Grounded(torch.zeros(len(queries), 4), torch.zeros(len(queries)))

    def attend(self, queries):
        return Attention(torch.tensor([self.weight]), 1, 10)


def propose(split):
    return LabelTable(Label(i.image_id, i.file_name, 10, 10, box=[0, 0, 5, 5], region_id=0, kind="proposal") for i in split.images.values())


def go(root, split, cycles=CYCLES):
    parts = Parts(propose, Generator(), Refiner(), Grounder())
    run(parts, split, root, cycles=cycles, seed=7, report=lambda here, grounder: {"weight": grounder.weight})


def outcome(root):
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


@pytest.fixture(autouse=True)
def no_crash():
    Part.crash_at, Part.calls = None, []


def test_order_and_artefacts(tmp_path, split):
    go(tmp_path, split)
    one = [("Generator", "fit"), ("Generator", "save"), ("Generator", "generate"), ("Refiner", "refine"), ("Grounder", "fit"), ("Grounder", "save")]
    assert Part.calls == one * CYCLES
    for number in range(1, CYCLES + 1):
        here = CycleFolder(tmp_path, number)
        assert all(getattr(here, name).exists() for name in ("proposals", "basic", "refined", "generation", "grounding", "metrics"))
        assert not here.work.exists()
        assert {row.cycle for row in LabelTable.load(here.basic)} == {number}


@pytest.mark.parametrize("crash", range(1, 6 * CYCLES + 1))
def test_a_crash_at_any_step_changes_nothing(tmp_path, split, crash):
    go(tmp_path / "whole", split)
    Part.calls, Part.crash_at = [], crash
    with pytest.raises(RuntimeError, match="crash"):
        go(tmp_path / "broken", split)
    Part.crash_at = None
    go(tmp_path / "broken", split)
    assert outcome(tmp_path / "broken") == outcome(tmp_path / "whole")


def test_a_finished_run_does_nothing(tmp_path, split):
    go(tmp_path, split)
    before, Part.calls = outcome(tmp_path), []
    go(tmp_path, split)
    assert Part.calls == [] and outcome(tmp_path) == before


def test_more_cycles_go_on_from_the_last(tmp_path, split):
    go(tmp_path / "a", split, cycles=1)
    go(tmp_path / "a", split, cycles=3)
    go(tmp_path / "b", split, cycles=3)
    assert outcome(tmp_path / "a") == outcome(tmp_path / "b")


def test_the_second_cycle_reads_the_first(tmp_path, split):
    """Each link severed on its own: the refined labels feed Generation, the grounder's attention feeds Refinement."""
    go(tmp_path, split, cycles=1)
    first = CycleFolder(tmp_path, 1)
    kept = {name: getattr(first, name) for name in ("refined", "grounding")}
    import shutil

    outcomes = {}
    for severed in ("nothing", "refined", "grounding"):
        root = tmp_path.with_name(f"{tmp_path.name}-{severed}")
        shutil.copytree(tmp_path, root)
        here = CycleFolder(root, 1)
        if severed == "refined":
            LabelTable(row.keep(seen=0.0) for row in LabelTable.load(kept["refined"])).save(here.refined)
        if severed == "grounding":
            (here.grounding / "weight.json").write_text("0.0")
        go(root, split, cycles=2)
        two = CycleFolder(root, 2)
        outcomes[severed] = two.basic.read_bytes(), two.refined.read_bytes()
    assert outcomes["refined"][0] != outcomes["nothing"][0]
    assert outcomes["grounding"][0] == outcomes["nothing"][0] and outcomes["grounding"][1] != outcomes["nothing"][1]
