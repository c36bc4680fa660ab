"""Full supervision sees true boxes, and nothing else does."""

import inspect

import pytest

from cpgr import recipes, run
from cpgr.data.records import Truth
from cpgr.errors import CpgrError


def test_only_the_supervised_recipe_declares_that_it_sees_the_truth():
    seeing = [name for name in recipes.RECIPES if getattr(recipes.load(name), "SEES_TRUTH", False)]
    assert seeing == ["supervised"]
    for name in set(recipes.RECIPES) - set(seeing):
        assert "truth" not in inspect.signature(recipes.load(name).build).parameters


def test_a_weak_build_is_handed_no_truth(small_world, tmp_path, monkeypatch):
    """What `execute` passes to `build`: true boxes to the supervised recipe, and to a weak one nothing that holds any."""
    handed = {}

    class Stop(Exception):
        pass

    for name in ("cpgr", "supervised"):
        recipe = recipes.load(name)

        def build(*args, name=name):
            handed[name] = args
            raise Stop

        monkeypatch.setattr(recipe, "build", build)
        options = ["--data.format", "refer", "--data.root", str(small_world[0]), "--data.dataset", "scenes", "--out", str(tmp_path / name)]
        with pytest.raises(Stop):
            run.command([name, *options])
    assert not any(isinstance(arg, Truth) for arg in handed["cpgr"]) and len(handed["cpgr"]) == 3
    truth = handed["supervised"][3]
    assert isinstance(truth, Truth) and len(truth.boxes) == len(small_world[1].expressions)


def test_its_labels_are_the_true_boxes(small_world, small_proposals):
    from cpgr.labels import LabelTable
    from cpgr.recipes.supervised import _TrueBoxes

    _, split, truth = small_world
    rows = _TrueBoxes(truth).refine(LabelTable(), small_proposals, split, None, None)
    assert {row.expression_id: row.box for row in rows} == {e: list(b) for e, b in truth.boxes.items()}


def test_it_has_one_cycle(accelerator, tmp_path):
    recipe = recipes.load("supervised")
    with pytest.raises(CpgrError, match="cycles"):
        recipe.build(recipe.Config(cycles=2), accelerator, tmp_path, Truth())
