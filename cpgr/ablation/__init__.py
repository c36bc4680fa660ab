"""`python -m cpgr.run ablation`: a list of arms times seeds over a base config, each arm an ordinary run in a folder of its own.

There is no loop here but the one over the runs: an arm is a call of `execution.command` with a changed config. What is finished is
not run again, what was stopped goes on.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
from pathlib import Path
from typing import Any

from .. import execution, processes
from ..errors import CpgrError
from .arms import BASE, STOPS, Arm, arms
from .table import Result, read_result, write_tables

log = logging.getLogger("cpgr")

__all__ = ["command", "run_arms"]

DESCRIPTION = """Run arms of the ablation and write ablation.md, ablation.json and ablation.png into --out.

    python -m cpgr.run ablation --config scenes-proof --arms equal-time,supervised --seeds 0,1,2 --out runs/ablation

An arm may be a group (cycles, parts, attention, levers, baselines) or `all`; the base config runs always. Options of a run
(`--data.world_images 200`) change the base config. The same command goes on with what was stopped.
"""


def command(argv: list[str], prog: str) -> int:
    """Parse, run, and write the tables; 1 where an arm failed."""
    if processes.count() > 1:
        raise CpgrError("the ablation takes one process: start it with plain python")
    parser = argparse.ArgumentParser(prog=prog, allow_abbrev=False, description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", help="the base: a YAML file or the name of a shipped config (default: the default run)")
    parser.add_argument("--arms", default="all", help="names or groups, by commas (default: all)")
    parser.add_argument("--seeds", default="0,1,2", help="by commas; each seed is a world and a run of its own")
    parser.add_argument("--out", type=Path, default=Path("runs/ablation"))
    parser.add_argument("--list", action="store_true", help="list the arms and leave")
    given, rest = parser.parse_known_args(argv)
    base = base_config(given.config, rest)
    known = arms(base["grounding"]["network"]["layers"])
    if given.list:
        for arm in known.values():
            print(f"{arm.name:18} {arm.group:10} {arm.meaning}")
        return 0
    chosen = choose(known, given.arms)
    try:
        seeds = [int(seed) for seed in given.seeds.split(",") if seed.strip()]
    except ValueError:
        raise CpgrError(f"--seeds {given.seeds!r}: whole numbers, by commas") from None
    if not seeds or len(set(seeds)) < len(seeds):
        raise CpgrError(f"--seeds {given.seeds!r}: at least one, none twice")
    failed = run_arms(chosen, seeds, base, given.out)
    for name, seed, problem in failed:
        log.error("%s, seed %d: %s", name, seed, problem)
    print((given.out / "ablation.md").read_text())
    return 1 if failed else 0


def choose(known: dict[str, Arm], names: str) -> list[Arm]:
    """The base arm and those named, in the table's order."""
    wanted = {BASE}
    groups = {arm.group for arm in known.values()}
    for name in (n.strip() for n in names.split(",") if n.strip()):
        if name == "all":
            wanted |= set(known)
        elif name in groups:
            wanted |= {arm.name for arm in known.values() if arm.group == name}
        elif name in known:
            wanted.add(name)
        else:
            raise CpgrError(f"no arm and no group {name!r}; `--list` shows them")
    return [arm for arm in known.values() if arm.name in wanted]


def base_config(name: str | None, options: list[str]) -> dict[str, Any]:
    """The base config as a nested dict: the recipe's defaults, the named config, the options."""
    import yaml

    from .. import recipes
    from ..config import make_parser, name_configs

    parser = make_parser(recipes.load("cpgr").Config, "cpgr", "python -m cpgr.run ablation: base config of")
    given = parser.parse_args(name_configs((["--config", name] if name else []) + options))
    for key in ("config", "base", "out", "resume", "recipe"):
        given.pop(key, None)
    return yaml.safe_load(parser.dump(given))


def run_arms(chosen: list[Arm], seeds: list[int], base: dict[str, Any], out: Path) -> list[tuple[str, int, str]]:
    """Run every arm with every seed and keep the tables up to date; returns what failed: (arm, seed, why)."""
    failed: list[tuple[str, int, str]] = []
    same: dict[str, str] = {}
    for seed in seeds:
        for arm in chosen:
            try:
                if run_arm(arm, seed, base, out):
                    same[arm.name] = BASE
            except (CpgrError, FloatingPointError) as error:
                failed.append((arm.name, seed, " ".join(str(error).split())))
                log.error("%s, seed %d: %s", arm.name, seed, error)
            tables(chosen, seeds, same, failed, out)
    return failed


def tables(chosen, seeds, same, failed, out: Path) -> None:
    results: dict[str, dict[int, Result]] = {}
    for arm in chosen:
        found = {seed: read_result(folder(out, same.get(arm.name, arm.name), seed)) for seed in seeds}
        results[arm.name] = {seed: result for seed, result in found.items() if result}
    write_tables(chosen, seeds, results, same, failed, out)


def folder(out: Path, name: str, seed: int) -> Path:
    return out / name.replace("+", "p") / f"seed-{seed}"


def run_arm(arm: Arm, seed: int, base: dict[str, Any], out: Path) -> bool:
    """Run one arm, unless it is finished; True where its config is the base's own, so that nothing has to be run."""
    import yaml

    at = folder(out, arm.name, seed)
    config = arm_config(arm, seed, base, out)
    if arm.name != BASE and arm.recipe == "cpgr" and config == arm_config(Arm(BASE, "base"), seed, base, out):
        return True
    if read_result(at):
        return False
    if arm.equal_time:
        steps = equal_steps(folder(out, arm.needs, seed))
        training = config["grounding"]["training"]
        training["steps"], training["validate_every"] = steps, max(1, steps // STOPS)
    written = out / "configs" / f"{arm.name}-seed-{seed}.yaml"
    written.parent.mkdir(parents=True, exist_ok=True)
    if not (at / "config.yaml").exists():
        written.write_text(yaml.safe_dump(config, sort_keys=False))
    resume = ["--resume"] if (at / "config.yaml").exists() else []
    execution.command([arm.recipe, "--config", str(written), "--out", str(at), *resume], "python -m cpgr.run")
    return False


def arm_config(arm: Arm, seed: int, base: dict[str, Any], out: Path) -> dict[str, Any]:
    """The base with the arm's changes, of the sections that its recipe has. Each seed has a world of its own, for all arms."""
    import copy

    from .. import recipes

    config = copy.deepcopy(base)
    config["seed"] = seed
    if config["data"]["format"] == "scenes" and not config["data"].get("root"):
        config["data"] |= {"seed": seed, "root": str(out / "worlds" / f"seed-{seed}")}
    for key, value in arm.changes.items():
        *sections, last = key.split(".")
        where = config
        for section in sections:
            where = where.get(section) if isinstance(where, dict) else None
        if not isinstance(where, dict) or last not in where:
            raise CpgrError(f"the arm {arm.name} changes {key}, which the config does not have")
        where[last] = value
    fields = {field.name for field in dataclasses.fields(recipes.load(arm.recipe).Config)}
    return {key: value for key, value in config.items() if key in fields}


def equal_steps(root: Path) -> int:
    """Steps of Grounding that take as long as all trainings of the run in `root` took."""
    result = read_result(root)
    if not result or not result.grounding_steps:
        raise CpgrError(f"{root} holds no finished run to take the training time from")
    return max(1, round(result.seconds * result.grounding_steps / result.grounding_seconds))
