"""Full supervision sees true boxes, and nothing else does."""

import inspect

import pytest

from cpgr import execution, recipes
from cpgr.data.records import Truth
from cpgr.errors import CpgrError
from cpgr.labels import LabelTable


def test_only_supervised_recipes_say_that_they_see_the_truth():
    assert [name for name in recipes.RECIPES if hasattr(recipes.load(name), "sees_truth")] == ["student", "supervised"]
    student = recipes.load("student")
    assert student.sees_truth(student.Config(labels="truth")) and not student.sees_truth(student.Config(labels="labels.json"))
    for name in set(recipes.RECIPES) - {"student", "supervised"}:
        assert "truth" not in inspect.signature(recipes.load(name).build).parameters


def test_a_weak_build_is_handed_no_truth(small_world, tmp_path, monkeypatch):
    """What `execute` passes to `build`: true boxes to the supervised recipe, and to a weak one nothing that holds any."""
    handed = {}

    class Stop(Exception):
        pass

    labels = tmp_path / "labels.parquet"
    for name, more in {"cpgr": [], "supervised": [], "student": ["--labels", str(labels)], "student on the truth": ["--labels", "truth"]}.items():
        recipe = recipes.load(name.split()[0])

        def build(*args, name=name):
            handed[name] = args
            raise Stop

        monkeypatch.setattr(recipe, "build", build)
        options = ["--data.format", "refer", "--data.root", str(small_world[0]), "--data.dataset", "scenes", "--out", str(tmp_path / name)]
        with pytest.raises(Stop):
            execution.command([name.split()[0], *options, *more])
    for weak in ("cpgr", "student"):
        assert not any(isinstance(arg, Truth) for arg in handed[weak]) and len(handed[weak]) == 3
    for supervised in ("supervised", "student on the truth"):
        truth = handed[supervised][3]
        assert isinstance(truth, Truth) and len(truth.boxes) == len(small_world[1].expressions)


@pytest.mark.parametrize("name", ["supervised", "student"])
def test_its_labels_are_the_true_boxes(accelerator, tmp_path, small_world, small_proposals, name):
    _, split, truth = small_world
    parts = recipes.load(name).build(recipes.load(name).Config(), accelerator, tmp_path, truth)
    rows = parts.refiner.refine(LabelTable(), small_proposals, split, parts.generator, None)
    assert {row.expression_id: row.box for row in rows} == {e: list(b) for e, b in truth.boxes.items()}


def test_it_has_one_cycle(accelerator, tmp_path):
    recipe = recipes.load("supervised")
    with pytest.raises(CpgrError, match="cycles"):
        recipe.build(recipe.Config(cycles=2), accelerator, tmp_path, Truth())
