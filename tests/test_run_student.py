"""The recipe `student`: full supervision and label files, its boundary, and that each network learns."""

import json
from pathlib import Path

import pytest

from cpgr.data.readers import DataConfig, read_split
from cpgr.data.records import Problems
from cpgr.data.scenes.write import write_scenes
from cpgr.labels import LabelTable
from cpgr.run import main

SMALL = {
    "realgin": ["--grounding.realgin.width", "16"],
    "simrec": ["--grounding.simrec.width", "16", "--grounding.simrec.head_width", "16"],
    "transvg": ["--grounding.transvg.network.layers", "1"],
    "mattnet": ["--grounding.mattnet.width", "16"],
}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("student") / "world"
    write_scenes(root, seed=8, images=16, held_out=3)
    return root


def run(root, world, student, *more):
    options = ["--data.format", "refer", "--data.root", str(world), "--data.dataset", "scenes", "--threads", "1", "--precision", "fp32"]
    length = ["--grounding.student", student, f"--grounding.{student}.training.steps", "3", *SMALL[student]]
    return main(["student", *options, *length, "--data.eval_split", "val", "--out", str(root), *more])


def weights(root) -> bytes:
    return (Path(root) / "cycle-1" / "grounding" / "model.safetensors").read_bytes()


@pytest.mark.parametrize("student", ["realgin", "mattnet"])
def test_the_truth_and_the_same_labels_in_a_file_train_the_same_network(world, tmp_path, student):
    assert run(tmp_path / "truth", world, student) == 0
    refined = tmp_path / "truth" / "cycle-1" / "refined.parquet"
    _, truth = read_split(DataConfig(format="refer", root=str(world), dataset="scenes"), "train", Problems())
    assert {row.expression_id: row.box for row in LabelTable.load(refined)} == truth.boxes
    assert run(tmp_path / "file", world, student, "--labels", str(refined)) == 0
    assert weights(tmp_path / "file") == weights(tmp_path / "truth")
    metrics = json.loads((tmp_path / "file" / "cycle-1" / "metrics.json").read_text())
    assert metrics["labels"]["pairing_hit_rate"] == 1.0 and 0 <= metrics["val"]["acc@0.5"] <= 1
    assert (tmp_path / "file" / "report.html").stat().st_size > 10_000


def test_labels_that_are_not_there_are_named(world, tmp_path, capsys):
    assert run(tmp_path / "run", world, "simrec", "--labels", str(tmp_path / "no.json")) == 2
    assert "no such label file" in capsys.readouterr().err and not (tmp_path / "run" / "config.yaml").exists()


@pytest.mark.slow
@pytest.mark.parametrize("student", list(SMALL))
def test_a_label_file_is_all_that_training_sees(world, tmp_path, student, poisoned):
    """Labels given, every true region of the training split may be noise: no weight changes by one bit."""
    assert run(tmp_path / "truth", world, student) == 0
    labels = str(tmp_path / "truth" / "cycle-1" / "refined.parquet")
    assert run(tmp_path / "a", world, student, "--labels", labels) == 0
    other = poisoned(world, tmp_path / "poisoned")
    assert run(tmp_path / "b", other, student, "--labels", labels) == 0
    assert weights(tmp_path / "a") == weights(tmp_path / "b")
    # and it can fail: full supervision does see them
    assert run(tmp_path / "c", other, student) == 0
    assert weights(tmp_path / "c") != weights(tmp_path / "truth")


@pytest.mark.slow
@pytest.mark.parametrize("student", ["mattnet"])  # minutes each: `python -m benchmarks.students` trains them all
def test_a_student_learns_the_built_in_world(tmp_path, student):
    """By full supervision at the shipped size on a third of the images: well above choosing one of eight regions blindly."""
    options = ["--grounding.student", student, "--data.world_images", "300", "--threads", "1", "--data.eval_split", "val"]
    assert main(["student", *options, "--out", str(tmp_path / "run")]) == 0
    assert json.loads((tmp_path / "run" / "cycle-1" / "metrics.json").read_text())["val"]["acc@0.5"] > 0.3
