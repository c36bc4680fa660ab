"""The ablation: its arms fit the config, an arm is an ordinary run, what is finished is not run again, the table's figures."""

import copy
import json
import math

import pytest

from cpgr import ablation
from cpgr.ablation.arms import BASE, arms
from cpgr.ablation.table import Result, interval, read_result, write_tables
from cpgr.errors import CpgrError

TINY = [
    "--config", "smallest", "--data.world_images", "12", "--threads", "1", "--precision", "fp32", "--cycles", "2",
    "--generation.training.steps", "2", "--grounding.training.steps", "3",
]  # fmt: skip


def test_every_arm_changes_keys_that_exist(tmp_path):
    base = ablation.base_config(None, [])
    for arm in arms().values():
        config = ablation.arm_config(arm, 0, base, tmp_path)
        assert ("generation" in config) == (arm.recipe == "cpgr"), arm.name
    broken = copy.deepcopy(base)
    del broken["generation"]["prefix"]
    with pytest.raises(CpgrError, match="generation.prefix"):
        ablation.arm_config(arms()["no-prefix"], 0, broken, tmp_path)


def test_names_and_groups():
    known = arms()
    assert [arm.name for arm in ablation.choose(known, "random")] == [BASE, "random"]
    assert {arm.group for arm in ablation.choose(known, "cycles")} == {"base", "cycles"}
    assert len(ablation.choose(known, "all")) == len(known)
    with pytest.raises(CpgrError, match="no arm and no group 'nothing'"):
        ablation.choose(known, "nothing")


def test_interval_of_seeds():
    found = interval([0.5, 0.6, 0.7])
    assert found.mean == pytest.approx(0.6) and found.half == pytest.approx(4.303 * 0.1 / math.sqrt(3), rel=1e-3)
    assert math.isnan(interval([0.5]).half)


def test_differences_are_paired_by_seed(tmp_path):
    def result(value):
        return Result({"val": value}, {"pairing_hit_rate": 0.5}, {}, 10.0, 5.0, 100)

    known = ablation.choose(arms(), "random,agree")
    results = {"base": {0: result(0.5), 1: result(0.7)}, "random": {0: result(0.4), 1: result(0.6)}, "agree": {1: result(0.8)}}
    write_tables(known, [0, 1], results, {}, [("agree", 0, "it broke")], tmp_path)
    rows = {row["arm"]: row for row in json.loads((tmp_path / "ablation.json").read_text())["arms"]}
    assert rows["random"]["difference"]["mean"] == pytest.approx(-0.1) and rows["random"]["difference"]["half"] == pytest.approx(0, abs=1e-9)
    assert rows["agree"]["difference"]["mean"] == pytest.approx(0.1)  # with seed 1 alone
    text = (tmp_path / "ablation.md").read_text()
    assert "failed: agree, seed 0: it broke" in text and (tmp_path / "ablation.png").stat().st_size > 1000


@pytest.mark.slow
def test_arms_are_runs_and_resume(tmp_path, monkeypatch):
    """The base, a baseline that reads its training time, full supervision, and one that is the base itself."""
    from cpgr import execution, run

    out = tmp_path / "out"
    names = "equal-time,supervised,judges,cross-fitting,crops,cycles-2"
    args = [*TINY, "--arms", names, "--seeds", "4", "--out", str(out)]
    assert run.main(["ablation", *args]) == 0
    done = {p.parent.name: p for p in out.glob("*/seed-4") if p.parent.name != "worlds"}
    assert set(done) == {"base", "equal-time", "supervised", "judges", "cross-fitting", "crops"}  # cycles-2 is the base
    assert all(read_result(p) for p in done.values())
    rows = {row["arm"]: row for row in json.loads((out / "ablation.json").read_text())["arms"]}
    assert rows["cycles-2"]["same_as"] == BASE and set(rows) == {*done, "cycles-2"}
    # the control trains for as long as both parts of the base did in all its cycles
    base, control = read_result(done["base"]), read_result(done["equal-time"])
    assert control.grounding_steps == max(1, round(base.seconds * base.grounding_steps / base.grounding_seconds))
    assert rows["supervised"]["pairing_hit_rate"]["mean"] == 1.0

    calls = []
    monkeypatch.setattr(execution, "command", lambda argv, prog: calls.append(argv))
    assert run.main(["ablation", *args]) == 0 and calls == []
    assert run.main(["ablation", *args[:-4], "--seeds", "x", "--out", str(out)]) == 2
