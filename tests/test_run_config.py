"""The command line before any work: configs, names, folders, and what each mistake says."""

import subprocess
import sys

import pytest
import yaml

from cpgr.config import CONFIGS
from cpgr.recipes import RECIPES
from cpgr.run import main


def fails(capsys, *argv):
    assert main(list(argv)) == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said and said.splitlines()[-1].startswith("error: ")
    return said


def test_an_unknown_recipe_lists_the_recipes(capsys):
    assert "the recipes are cpgr, refclip" in fails(capsys, "refclap")


def test_an_unknown_config_lists_the_shipped_ones(capsys):
    assert "smallest" in fails(capsys, "--config", "nothere")


def test_an_unknown_option_is_named(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--grounding.trainng.steps", "3"])
    assert stop.value.code == 2 and "grounding.trainng" in capsys.readouterr().err


def test_a_value_of_the_wrong_type_is_named(capsys):
    with pytest.raises(SystemExit):
        main(["--cycles", "three"])
    assert "cycles" in capsys.readouterr().err


def test_resume_needs_a_run(capsys, tmp_path):
    assert "holds no run to go on with" in fails(capsys, "--resume", "--out", str(tmp_path))


def test_a_folder_with_a_run_is_not_overwritten(capsys, tmp_path):
    (tmp_path / "config.yaml").write_text("seed: 0\n")
    assert "already holds a run" in fails(capsys, "--out", str(tmp_path))


def test_resume_with_other_settings_names_them(capsys, tmp_path):
    printed = subprocess.run(
        [sys.executable, "-m", "cpgr.run", "--config", "smallest", "--print_config"], capture_output=True, text=True, check=True
    ).stdout
    config = yaml.safe_load(printed)
    assert config["recipe"] == "cpgr" and config["cycles"] == 2 and config["grounding"]["network"]["head"] == "pointer"
    (tmp_path / "config.yaml").write_text(printed)
    said = fails(capsys, "--out", str(tmp_path), "--resume", "--seed", "5")
    assert "other settings of seed" in said


def test_the_training_split_cannot_select_models(capsys, tmp_path, small_world):
    said = fails(
        capsys, "--out", str(tmp_path / "r"), "--data.format", "refer", "--data.root", str(small_world[0]), "--data.val_split", "train",
        "--grounding.training.validate_every", "2", "--data.eval_split", "val",
    )  # fmt: skip
    assert "would see the training regions" in said


def test_data_that_is_not_there(capsys, tmp_path):
    said = fails(capsys, "--out", str(tmp_path / "r"), "--data.format", "refer", "--data.root", str(tmp_path / "no"))
    assert str(tmp_path / "no") in said
    # the mistake leaves no run behind: the mended command may use the same folder
    assert not (tmp_path / "r" / "config.yaml").exists()


def test_two_runs_cannot_write_one_folder(capsys, tmp_path):
    import fcntl

    with open(tmp_path / ".lock", "w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert "another run is writing" in fails(capsys, "--out", str(tmp_path))


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda p: p.stem)
def test_every_shipped_config_is_read(path, capsys):
    recipe = next((name for name in RECIPES if path.stem.startswith(name)), RECIPES[0])  # refclip-refcoco is one of refclip's
    with pytest.raises(SystemExit) as stop:
        main([recipe, "--config", str(path), "--print_config"])
    assert stop.value.code == 0 and "grounding:" in capsys.readouterr().out
