"""`cpgr labels baselines` on a folder of two splits and a file of detections."""

import json

import pytest
from PIL import Image as pil

from cpgr import cli, metrics
from cpgr.labels import LabelTable

DOG, MAN = [5.0, 5.0, 35.0, 45.0], [50.0, 5.0, 90.0, 75.0]


@pytest.fixture
def data(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    detections = []
    for number, split in enumerate(("train", "val")):
        pil.new("RGB", (100, 80), (90, 120, 60)).save(tmp_path / f"{split}.png")
        write(tmp_path, split, DOG)
        for category, box, score in (("dog", DOG, 0.5), ("person", MAN, 0.9)):
            xywh = [box[0], box[1], box[2] - box[0], box[3] - box[1]]
            detections.append({"image_id": f"{split}.png", "category": category, "bbox": xywh, "score": score})
    (tmp_path / "found.json").write_text(json.dumps(detections))
    return tmp_path


def write(folder, split, dog):
    said = [("the puppy", dog), ("a woman", MAN)]
    lines = [json.dumps({"image": f"{split}.png", "expression": text, "box": box}) for text, box in said]
    (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n")


def command(*more):
    words = ["labels", "baselines", "--config", "photographs", "--proposals", "file:found.json", "--data.format", "folder", "--data.root", "."]
    return cli.main([*words, *more])


def test_it_pairs_and_compares(data, capsys):
    assert command("--data.train_split", "train,val", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert list(found) == ["train", "val", "all"] and found["all"]["count"] == 4 and found["all"]["images"] == 2
    assert found["all"]["pairing"] == found["all"]["ceiling"] == 1.0
    assert found["train"]["best_scored"]["hit_rate"] == 0.5 and found["train"]["largest"]["hit_rate"] == 0.0, "the scenery is larger"
    assert command("--detection.extra", "[]", "--data.train_split", "val") == 0
    shown = capsys.readouterr().out
    assert "val: 2 expressions, 1 images, 2 regions" in shown and "a region of the named class" in shown and "+0.500" in shown


def test_no_choice_hangs_on_a_true_box(data, monkeypatch, capsys):
    """The boxes replaced by others: the pairing is the same, only its hit rate is not."""
    seen = []
    real = metrics.pairing_baselines
    monkeypatch.setattr(metrics, "pairing_baselines", lambda *tables: (seen.append(tables[:2]), real(*tables))[1])
    rates = []
    for dog in (DOG, [0.0, 60.0, 9.0, 79.0]):
        write(data, "train", dog)
        assert command("--data.train_split", "train", "--json") == 0
        rates.append(json.loads(capsys.readouterr().out)["train"]["pairing"])
    (one, two) = seen
    assert [list(table) for table in one] == [list(table) for table in two] and isinstance(one[1], LabelTable) and len(one[1]) > 4
    assert rates == [1.0, 0.5]


def test_mistakes_are_said_in_a_line(data, capsys):
    (data / "bare.jsonl").write_text(json.dumps({"image": "val.png", "expression": "the puppy"}) + "\n")
    assert command("--data.train_split", "bare") == 2
    assert "no true boxes to measure by" in capsys.readouterr().err
    assert command("--data.train_split", "nowhere") == 2
    assert command("--detection.extra", "[halo]") == 2
    assert "halo is none of parts, groups, scenery" in capsys.readouterr().err
    assert command("--run", "runs/cpgr") == 2
    error = capsys.readouterr().err
    assert "--run" in error and error.count("\n") == 1
    assert command("--data.train_split", ",") == 2
    assert "names no split" in capsys.readouterr().err
