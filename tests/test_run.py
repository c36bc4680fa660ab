"""Whole runs of the recipe at their smallest size: the boundary, the links between cycles, killing and resuming."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cpgr.data.scenes.write import write_scenes
from cpgr.labels import LabelTable

SMALLEST = ["--config", "smallest", "--threads", "1", "--precision", "fp32"]
REFCLIP = ["--config", "refclip-smallest", "--threads", "1", "--precision", "fp32"]


def run(root, world, *more, recipe="cpgr"):
    from cpgr.run import main

    options = ["--data.format", "refer", "--data.root", str(world), "--data.dataset", "scenes", "--out", str(root)]
    assert main([recipe, *(REFCLIP if recipe == "refclip" else SMALLEST), *options, *more]) == 0
    return root


def made(root) -> dict[str, bytes]:
    """What a run makes: its labels, by value, and its weights, byte for byte."""
    found = {}
    for path in sorted(Path(root).glob("cycle-*/**/*")):
        name = str(path.relative_to(root))
        if path.suffix == ".safetensors":
            found[name] = path.read_bytes()
        elif path.name in ("proposals.parquet", "basic.parquet", "refined.parquet"):
            found[name] = repr(list(LabelTable.load(path)))
    return found


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("data") / "world"
    write_scenes(root, seed=5, images=24)
    return root


@pytest.fixture(scope="module")
def whole(world, tmp_path_factory):
    return run(tmp_path_factory.mktemp("runs") / "whole", world)


@pytest.mark.slow
def test_training_regions_do_not_matter(world, whole, tmp_path, poisoned):
    """The weak-supervision boundary: poison every training region and no label and no weight changes by one bit."""
    assert made(run(tmp_path / "run", poisoned(world, tmp_path / "poisoned"))) == made(whole)


@pytest.mark.slow
@pytest.mark.parametrize("leak", [False, True])
def test_refclip_training_regions_do_not_matter(world, tmp_path, monkeypatch, leak, poisoned):
    """The same for teacher and student of two cycles, the second teacher taught by the first student; a planted leak is seen."""
    if leak:
        _plant_leak(monkeypatch)
    options = ["--cycles", "2", "--refinement.in_image", "0.5"]
    honest = made(run(tmp_path / "a", world, *options, recipe="refclip"))
    assert {"cycle-2/refinement/model.safetensors", "cycle-2/refined.parquet", "cycle-2/grounding/model.safetensors"} < set(honest)
    again = made(run(tmp_path / "b", poisoned(world, tmp_path / "poisoned"), *options, recipe="refclip"))
    assert (again == honest) == (not leak)


@pytest.mark.slow
def test_refclip_learns_from_expressions_alone(tmp_path):
    """300 images with their expressions, 250 steps: the teacher's boxes are three times as often right as a random anchor's."""
    write_scenes(tmp_path / "world", seed=7, images=300)
    root = run(tmp_path / "run", tmp_path / "world", "--refinement.training.steps", "250", "--refinement.training.batch_size", "96", recipe="refclip")
    found = json.loads((root / "cycle-1" / "metrics.json").read_text())
    chance = found["pairing"]["random"]["hit_rate"]
    assert found["labels"]["pairing_hit_rate"] > 3 * chance
    assert found["teacher"]["val"]["acc@0.5"] > 2.5 * chance


@pytest.mark.slow
def test_a_planted_leak_is_seen(world, whole, tmp_path, monkeypatch, poisoned):
    """The test above can fail: let the size of a true box into the order of the training expressions."""
    _plant_leak(monkeypatch)
    honest = made(run(tmp_path / "a", world))
    assert made(run(tmp_path / "b", poisoned(world, tmp_path / "poisoned"))) != honest


def _plant_leak(monkeypatch):
    from cpgr.data import readers

    read = readers.read_split

    def leaky(config, split, problems, *more):
        records, truth = read(config, split, problems, *more)
        if split == config.train_split:
            records.expressions.sort(key=lambda e: truth.boxes.get(e.expression_id, [0.0])[0])
        return records, truth

    monkeypatch.setattr(readers, "read_split", leaky)


@pytest.mark.slow
def test_a_run_can_be_repeated(world, whole, tmp_path):
    assert made(run(tmp_path / "again", world)) == made(whole)
    assert (whole / "report.html").stat().st_size > 10_000


@pytest.mark.slow
@pytest.mark.parametrize("link", ["refined", "grounding"])
def test_each_link_to_the_second_cycle_carries(world, whole, tmp_path, link):
    """Sever one link between the cycles and what hangs on it changes, and only that."""
    root = tmp_path / "run"
    shutil.copytree(whole, root)
    shutil.rmtree(root / "cycle-2")
    first = root / "cycle-1"
    if link == "refined":
        rows = list(LabelTable.load(first / "refined.parquet"))
        texts = [row.expression for row in rows]
        random.Random(0).shuffle(texts)
        LabelTable(_with(row, expression=text) for row, text in zip(rows, texts, strict=True)).save(first / "refined.parquet")
    else:
        from safetensors.torch import load_file, save_file

        weights = load_file(first / "grounding" / "model.safetensors")
        save_file({k: v * 0 if "pointer" in k else v for k, v in weights.items()}, first / "grounding" / "model.safetensors")
    run(root, world, "--resume")
    before, after = made(whole), made(root)
    assert after["cycle-2/refined.parquet"] != before["cycle-2/refined.parquet"]
    generated = "cycle-2/generation/region.safetensors"
    assert (after[generated] == before[generated]) == (link == "grounding")


def _with(row, **changes):
    from dataclasses import replace

    return replace(row, **changes)


@pytest.mark.slow
def test_killed_ten_times_ends_the_same(world, tmp_path):
    """kill -9 at ten random moments, resumed each time; a part's state is saved every half second for the test."""
    options = ["--grounding.training.checkpoint_seconds", "0.5", "--generation.training.checkpoint_seconds", "0.5"]
    # more steps than the smallest run's, so that kills also fall in the middle of a training
    options += ["--grounding.training.steps", "40", "--generation.training.steps", "12"]
    start = time.monotonic()
    expected = made(_process(tmp_path / "whole", world, options, None))
    length = time.monotonic() - start
    root, rng = tmp_path / "killed", random.Random(1)
    kills = 0
    while kills < 10:
        # early enough that ten kills fall before the end, late enough that each process gets somewhere
        finished = _process(root, world, options, rng.uniform(0.15, 0.6) * length)
        if finished:
            shutil.rmtree(root)  # it outran the clock; the kills go on with a new run
            continue
        kills += 1
    while not _process(root, world, options, 600):
        pass
    assert made(root) == expected


def _process(root, world, options, seconds):
    """Run the command in a process of its own; kill -9 it after `seconds`. Returns the folder if it finished."""
    resume = ["--resume"] if (root / "config.yaml").exists() else []
    command = [sys.executable, "-m", "cpgr.run", "cpgr", *SMALLEST, "--out", str(root), *options, *resume]
    command += ["--data.format", "refer", "--data.root", str(world), "--data.dataset", "scenes"]
    with open(root.parent / "log.txt", "ab") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        try:
            code = process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return None
    assert code == 0, (root.parent / "log.txt").read_text()[-3000:]
    return root
