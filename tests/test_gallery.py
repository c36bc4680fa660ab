"""A cycle's gallery: which expressions are in it, what is said of them, and that it stays comparable."""

import json
from dataclasses import replace

import pytest
import torch
from PIL import Image as pil

from cpgr import gallery
from cpgr.cycle import CycleFolder
from cpgr.data.records import Expression, Image, Split, Truth
from cpgr.labels import Label, LabelTable
from cpgr.stages import Attention, Grounded

TRUE, WRONG = [10.0, 10.0, 30.0, 30.0], [60.0, 60.0, 90.0, 90.0]


class Grounder:
    """Answers every query with the same box and an even attention."""

    def __init__(self, box):
        self.box = box

    def ground(self, queries):
        return Grounded(torch.tensor([self.box] * len(queries)), torch.full((len(queries),), 0.75))

    def attend(self, queries):
        return Attention(torch.full((len(queries), 16), 1 / 16), 4, 128)


def held(name, folder, count):
    """A split of `count` images with two expressions each, and its truth."""
    split, truth = Split(name), Truth()
    for i in range(count):
        path = folder / f"{name}{i}.png"
        pil.new("RGB", (100, 80), (40, 90, 40)).save(path)
        split.images[f"{name}{i}"] = Image(f"{name}{i}", path.name, path, 100, 80)
        for j in range(2):
            split.expressions.append(Expression(f"{name}{i}.{j}", f"{name}{i}", f"thing {j} of {i}"))
            truth.boxes[f"{name}{i}.{j}"] = list(TRUE)
    return split, truth


def finish(root, number, train, evaluated, right):
    """The artefacts of a cycle that pairs expression k rightly where `right(k)`, and answers likewise."""
    here = CycleFolder(root, number)
    here.folder.mkdir(parents=True)
    split = train[0]
    regions = {
        key: [Label(key, im.file_name, 100, 80, box, kind="proposal", region_id=j, category="dog", spatial=word, scores={"detector": 0.9})
              for j, (box, word) in enumerate([(TRUE, "left"), (WRONG, "right")])]
        for key, im in split.images.items()
    }  # fmt: skip
    rows = []
    for key, (a, b) in regions.items():
        rows.append(replace(a, kind="generated", expression="left dog", scores={"itm": 0.8}))
        rows.append(replace(b, kind="generated", expression="a dog", scores={}).drop("filtering: attention lies on another region"))
        for e in (e for e in split.expressions if e.image_id == key):
            best = 0 if right(e.expression_id) else 1
            for j, region in enumerate((a, b)):
                scores = {"posterior": 0.9 if j == best else 0.1}
                row = replace(region, kind="dataset", expression=e.text, expression_id=e.expression_id, scores=scores)
                rows.append(row if j == best else row.drop(f"pairing: region {best} fits better"))
    LabelTable([r for pair in regions.values() for r in pair]).save(here.proposals)
    LabelTable(rows).save(here.refined)
    for name, (s, _) in evaluated.items():
        LabelTable(
            Label(e.image_id, "", 100, 80, TRUE, expression=e.text, expression_id=e.expression_id, scores={"iou": float(right(e.expression_id))})
            for e in s.expressions
        ).save(here.folder / f"predictions-{name}.parquet")
    return here


def load(here):
    return json.loads((here.folder / "gallery.json").read_text())["entries"]


@pytest.fixture
def run(tmp_path):
    pictures = tmp_path / "run" / "world"
    pictures.mkdir(parents=True)
    return tmp_path / "run", held("train", pictures, 12), {n: held(n, pictures, 6) for n in ("val", "testA")}


def test_holds_right_and_wrong_expressions_of_every_split_and_what_became_of_them(run):
    root, train, evaluated = run
    here = finish(root, 1, train, evaluated, lambda key: key.endswith(".0"))
    gallery.collect(here, Grounder(WRONG), train, evaluated)
    entries = load(here)
    training = [e for e in entries if e["role"] == "training"]
    assert len(training) == 12 and len([e for e in entries if e["role"] == "evaluation"]) == 12
    assert {e["split"] for e in entries} == {"train", "val", "testA"}
    assert sum(e["iou"] >= 0.5 for e in training) == 6, "half of them are right where there are enough of both"
    first = next(e for e in training if e["expression_id"].endswith(".0"))
    assert first["chosen"]["region_id"] == 0 and first["iou"] == 1.0 and first["reason"] == ""
    assert first["prediction"] == {"box": WRONG, "score": 0.75, "iou": 0.0}
    assert [p["words"] for p in first["proposals"]] == ["left dog", "right dog"]
    assert [(label["kept"], label["reason"]) for label in first["labels"]] == [(True, ""), (False, "filtering: attention lies on another region")]
    assert {pair["region_id"]: pair["scores"]["posterior"] for pair in first["pairs"]} == {0: 0.9, 1: 0.1}
    assert first["attention"] == {"grid": 4, "size": 128, "mode": "letterbox", "values": [0.0625] * 16}
    assert first["image"]["path"].startswith("world/"), "an image inside the run's folder is named from there"
    assert all("chosen" not in e and e["iou"] == 0.0 for e in entries if e["role"] == "evaluation")


def test_later_cycles_show_the_same_expressions(run):
    root, train, evaluated = run
    first = finish(root, 1, train, evaluated, lambda key: key.endswith(".0"))
    gallery.collect(first, Grounder(TRUE), train, evaluated)
    second = finish(root, 2, train, evaluated, lambda key: True)
    gallery.collect(second, Grounder(TRUE), train, evaluated)
    key = [(e["role"], e["split"], e["expression_id"]) for e in load(first)]
    assert [(e["role"], e["split"], e["expression_id"]) for e in load(second)] == key
    assert all(e["iou"] == 1.0 for e in load(second))


def test_the_choice_is_made_anew_where_the_first_gallery_is_of_other_data_or_damaged(run):
    root, train, evaluated = run
    first = finish(root, 1, train, evaluated, lambda key: True)
    for content in ("{", '{"entries": [{"role": "training", "split": "train", "expression_id": "gone"}]}'):
        (first.folder / "gallery.json").write_text(content)
        second = CycleFolder(root, 2)
        if not second.folder.exists():
            finish(root, 2, train, evaluated, lambda key: True)
        gallery.collect(second, Grounder(TRUE), train, evaluated)
        assert len(load(second)) == 24


def test_it_draws_no_random_number_of_the_run(run):
    root, train, evaluated = run
    here = finish(root, 1, train, evaluated, lambda key: True)
    before = torch.get_rng_state()
    gallery.collect(here, Grounder(TRUE), train, evaluated)
    assert torch.equal(before, torch.get_rng_state())


def test_a_dropped_pair_an_unknown_truth_and_an_image_elsewhere(run, tmp_path):
    root, _, evaluated = run
    elsewhere = tmp_path / "photos"
    elsewhere.mkdir()
    split, truth = held("train", elsewhere, 2)
    truth.boxes.clear()
    here = finish(root, 1, (split, truth), evaluated, lambda key: True)
    table = LabelTable.load(here.refined)
    LabelTable(row.drop("pairing: the scores disagree") if row.kind == "dataset" and row.kept else row for row in table).save(here.refined)
    gallery.collect(here, Grounder(TRUE), (split, truth), evaluated)
    training = [e for e in load(here) if e["role"] == "training"]
    assert len(training) == 4
    assert all(e["chosen"] is None and e["iou"] is None and e["true_box"] is None for e in training)
    assert {e["reason"] for e in training} == {"pairing: the scores disagree"}
    assert training[0]["image"]["path"] == str((elsewhere / "train0.png").resolve())
