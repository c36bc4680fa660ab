"""The `cpgr` command on stand-ins: what it prints and writes, its help, and its one-line errors."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image as pil

from cpgr import cli, recipes
from cpgr.commands import COMMANDS, checks
from cpgr.labels import Label, LabelTable
from cpgr.stages import Attention, Grounded

BOX = [10.0, 20.0, 50.0, 60.0]


class Grounder:
    """Finds the same box for everything, and is sure of it."""

    def ground(self, queries):
        return Grounded(torch.tensor([BOX] * len(queries)), torch.full((len(queries),), 0.9))

    def attend(self, queries):
        return Attention(torch.full((len(queries), 16), 1 / 16), 4, 128)


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A run of one finished and one begun cycle over a folder of images; its model is the stand-in."""
    pil.new("RGB", (100, 80), (90, 120, 60)).save(tmp_path / "photo.png")
    data = tmp_path / "data"
    data.mkdir()
    pil.new("RGB", (100, 80)).save(data / "a.png")
    half = [10, 20, 50, 40]  # half of the answer: an IoU of 0.5 exactly
    boxes = {"the dog": BOX, "a cat": half, "a cow": [60, 0, 90, 9]}
    lines = [{"image": "a.png", "expression": text, "box": box} for text, box in boxes.items()]
    (data / "val.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    root = tmp_path / "run"
    (root / "cycle-1" / "grounding").mkdir(parents=True)
    (root / "cycle-2").mkdir()
    (root / "config.yaml").write_text(f"seed: 0\ncycles: 2\nprecision: fp32\ndata:\n  format: folder\n  root: {data}\n  eval_split: val\n")
    rows = [
        Label("7", "a.png", 100, 80, BOX, expression="left dog", kind="generated", region_id=0, scores={"itm": 0.5}),
        Label("7", "a.png", 100, 80, BOX, expression="a dog", kind="generated", region_id=0).drop("filtering: attention lies on another region"),
        Label("8", "b.png", 100, 80, BOX, expression="the cow", expression_id="1", region_id=1),
    ]
    LabelTable(rows).save(root / "cycle-1" / "refined.parquet")
    # accelerate's state is one a process: another test's precision must not matter here
    monkeypatch.setattr("cpgr.training.make_accelerator", lambda precision: None)
    monkeypatch.setattr(recipes, "load", lambda name: SimpleNamespace(open_grounder=lambda folder, accelerator, work: Grounder()))
    monkeypatch.chdir(tmp_path)
    return root


def run(capsys, *args):
    code = cli.main([str(arg) for arg in args])
    out, err = capsys.readouterr()
    return code, out, err


def fails(capsys, *args):
    """The one line of an error the user can mend."""
    code, out, err = run(capsys, *args)
    assert code == 2 and out == ""
    assert err.startswith("error: ") and err.count("\n") == 1
    return err


def test_ground_prints_the_box_and_draws_it(root, capsys):
    code, out, _ = run(capsys, "ground", "photo.png", "the dog", "a  cat", "--run", root)
    assert code == 0
    assert out.splitlines() == ["10.0,20.0,50.0,60.0  0.900  the dog", "10.0,20.0,50.0,60.0  0.900  a cat", "picture: photo_grounded.png"]
    assert pil.open("photo_grounded.png").width == 2 * 512 + 8
    code, out, _ = run(capsys, "ground", "photo.png", "the dog", "--run", root, "--json", "--out", "one.jpg")
    found = json.loads(out)
    assert found["answers"] == [{"expression": "the dog", "box": BOX, "score": 0.9}] and found["cycle"] == 1
    assert pil.open("one.jpg").format == "JPEG"


def test_ground_names_what_is_wrong(root, capsys, tmp_path):
    def ground(*args):
        return fails(capsys, "ground", *args)

    assert "nope.png: the image file is missing" in ground("nope.png", "a dog", "--run", root)
    (tmp_path / "text.png").write_text("no picture")
    assert "not an image of a known format" in ground("text.png", "a dog", "--run", root)
    for empty in ("", "  ", "...", "\x00"):
        assert "has no words" in ground("photo.png", empty, "--run", root)
    assert "holds no run (no config.yaml)" in ground("photo.png", "a dog", "--run", tmp_path)
    assert "no trained grounding model of cycle 2; it has that of cycle 1" in ground("photo.png", "a dog", "--run", root, "--cycle", "2")
    assert "is the image itself" in ground("photo.png", "a dog", "--run", root, "--out", "photo.png")
    assert "name a picture" in ground("photo.png", "a dog", "--run", root, "--out", "answer.txt")
    assert "there is no folder" in ground("photo.png", "a dog", "--run", root, "--out", "not/there.png")
    (root / "cycle-1" / "grounding").rmdir()
    message = ground("photo.png", "a dog", "--run", root)
    assert "no trained grounding model yet (cycle 2 is at: proposals)" in message and "--resume" in message
    (root / "config.yaml").write_text("recipe: unheard_of\n")
    (root / "cycle-1" / "grounding").mkdir()
    assert "'unheard_of'" in ground("photo.png", "a dog", "--run", root)


def test_evaluate_counts_both_ways_and_writes_predictions(root, capsys, tmp_path):
    code, out, _ = run(capsys, "evaluate", "--run", root, "--predictions", "p.jsonl")
    assert code == 0
    assert out.splitlines()[:2] == [
        "cycle 1  Acc@0.5 (>=)  Acc@0.5 (>)  mean IoU  expressions",
        "val             66.67        33.33    0.5000            3",
    ]
    lines = [json.loads(line) for line in Path("p.jsonl").read_text().splitlines()]
    assert [round(line["iou"], 3) for line in lines] == [1.0, 0.5, 0.0] and lines[0]["box"] == BOX and lines[0]["split"] == "val"
    code, out, _ = run(capsys, "evaluate", "--run", root, "--json", "--predictions", "p.parquet")
    found = json.loads(out)["splits"]["val"]
    assert found["acc@0.5"] == pytest.approx(2 / 3) and found["acc>0.5"] == pytest.approx(1 / 3) and found["count"] == 3
    assert found["mean_iou"] == pytest.approx(0.5)
    import pyarrow.parquet as pq

    assert pq.read_table("p.parquet").num_rows == 3


def test_evaluate_on_other_data(root, capsys, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    pil.new("RGB", (100, 80)).save(other / "b.png")
    (other / "test.jsonl").write_text(json.dumps({"image": "b.png", "texts": [{"text": "a hen"}], "box_xyxy": BOX}) + "\n")
    code, out, _ = run(capsys, "evaluate", "--run", root, "--data.root", other, "--data.eval_split", "test", "--json")
    assert code == 0 and json.loads(out)["splits"]["test"]["acc@0.5"] == 1.0
    assert "unknown data format 'nope'" in fails(capsys, "evaluate", "--run", root, "--data.format", "nope")
    assert "data.on_bad" in fails(capsys, "evaluate", "--run", root, "--data.on_bad", "maybe")
    assert "--data.rot" in fails(capsys, "evaluate", "--run", root, "--data.rot", "x")
    assert "names no split" in fails(capsys, "evaluate", "--run", root, "--data.eval_split", ",")
    assert ".parquet or .jsonl" in fails(capsys, "evaluate", "--run", root, "--predictions", "p.csv")
    world = fails(capsys, "evaluate", "--run", root, "--data.format", "scenes", "--data.root", tmp_path / "no world")
    assert "holds no built-in world" in world


def test_labels_show(root, capsys):
    code, out, _ = run(capsys, "labels", "show", "--run", root)
    assert code == 0 and "'left dog'" in out and "'the cow'" in out and "'a dog'" not in out and "2 kept, 1 dropped" in out
    _, out, _ = run(capsys, "labels", "show", "--run", root, "--image", "a.png", "--dropped")
    assert "dropped: filtering: attention lies on another region" in out and "cow" not in out
    _, out, _ = run(capsys, "labels", "show", "--run", root, "--limit", "1")
    assert "1 more are not shown" in out
    assert "no labels of an image '99'" in fails(capsys, "labels", "show", "--run", root, "--image", "99")
    assert "no basic labels yet" in fails(capsys, "labels", "show", "--run", root, "--table", "basic")


def test_labels_export(root, capsys, tmp_path):
    for form, out in (("jsonl", "l.jsonl"), ("cpl", "l.pth"), ("coco", "l.json")):
        code, text, _ = run(capsys, "labels", "export", "--run", root, "--format", form, "--out", out)
        assert code == 0 and text == f"2 labels of cycle 1 written to {out}\n" and (tmp_path / out).exists()
    _, text, _ = run(capsys, "labels", "export", "--run", root, "--format", "jsonl", "--out", "all.jsonl", "--dropped")
    assert text.startswith("3 labels") and len((tmp_path / "all.jsonl").read_text().splitlines()) == 3


def test_scenes_and_report(root, capsys, tmp_path):
    code, out, _ = run(capsys, "scenes", "world", "--seed", "1", "--images", "2")
    assert code == 0 and "train" in out and (tmp_path / "world" / "scenes" / "instances.json").exists()
    assert "is not empty" in fails(capsys, "scenes", "world", "--seed", "1", "--images", "2")
    code, out, _ = run(capsys, "report", "--run", root)
    assert code == 0 and Path(out.strip()) == root / "report.html"


def test_doctor_reports_and_its_code_says_whether_the_essentials_work(capsys, monkeypatch, tmp_path):
    good = {"packages": [checks.item("torch", True, "2.13")], "optional_packages": [checks.item("ray", None, "not installed", "pip install ray")]}
    monkeypatch.setattr(checks, "examine", lambda: good)
    code, out, _ = run(capsys, "doctor")
    assert code == 0 and "ok   torch" in out and "pip install ray" in out and "The essentials work." in out
    good["packages"].append(checks.item("peft", False, "No module named 'peft'"))
    code, out, _ = run(capsys, "doctor", "--json")
    assert code == 1 and json.loads(out)["ok"] is False
    monkeypatch.setattr(checks, "BUILTIN", tmp_path)
    assert [(i["ok"], i["found"]) for i in checks.weights()] == [(False, "missing")] * 4


def test_doctors_checks_never_raise(monkeypatch):
    def broken(name):
        raise RuntimeError(f"{name}\nis broken")

    accelerator = SimpleNamespace(device="cpu", mixed_precision="no")
    monkeypatch.setattr("cpgr.training.make_accelerator", lambda precision: accelerator)
    found = {i["name"]: i for i in checks.kernels() + checks.device() + checks.attention()}
    assert found["self-test"]["ok"] and found["box_iou on cpu"]["ok"] and found["precision auto"]["found"] == "fp32"
    monkeypatch.setattr(checks.importlib, "import_module", broken)
    monkeypatch.setattr(checks, "_version", lambda name: "1.0")
    assert {i["ok"] for i in checks.packages()[1:]} == {False} and {i["ok"] for i in checks.optional()} == {None}
    assert checks._guarded(lambda: broken("x"))[0] == checks.item("<lambda>", False, "x is broken")


@pytest.mark.parametrize("args", [[], *([name] for name in COMMANDS), ["labels", "show"], ["labels", "export"]])
def test_every_help_text(args, capsys):
    code, out, _ = run(capsys, *args, "--help")
    assert code == 0 and out.startswith("usage: cpgr") and len(out) > 150


def test_wrong_usage_and_stops(root, capsys, monkeypatch):
    assert run(capsys)[0] == 2
    assert run(capsys, "fly")[0] == 2
    code, _, err = run(capsys, "report", "--run", root, "--more")
    assert code == 2 and "--more" in err
    assert "unknown recipe 'nope'" in fails(capsys, "run", "nope")
    for error, code in ((KeyboardInterrupt, 130), (PermissionError(13, "Permission denied", "x"), 2)):
        monkeypatch.setattr("cpgr.report.write", lambda root, error=error: (_ for _ in ()).throw(error))
        assert run(capsys, "report", "--run", root)[0] == code


def test_help_is_instant_and_a_closed_pipe_is_no_error(root):
    start = time.monotonic()
    code = "import sys; from cpgr.cli import main; main(['--help']); sys.exit(any(m in sys.modules for m in ('torch', 'numpy', 'jsonargparse')))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, env=_environment()).returncode == 0
    assert time.monotonic() - start < 5
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "cpgr.cli", "labels", "show", "--run", root]
    closed = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, env=_environment())
    os.close(write)
    assert closed.returncode == 141 and closed.stderr == b""


def _environment():
    return {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
