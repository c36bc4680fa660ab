"""RefCLIP's students on the built-in world: each taught by the teacher's labels, and supervised by the true boxes.

    python -m benchmarks.students --out DIR [--seeds 0 1 2] [--students realgin simrec transvg mattnet] [--supervised] [-- OPTIONS]

For each seed (of the training and of the world) it runs the recipe `refclip`, then the recipe `student` on the labels of that run and on the
truth, all at the shipped size, and prints a table of Acc@0.5: mean and standard deviation over the seeds of each run's mean over
val, testA and testB. With `--supervised` the teacher and what it teaches are left out. Runs that are there already are read, unfinished
ones resumed: the same command goes on after a stop. OPTIONS go to every run (`--threads 1`).
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

STUDENTS = ("realgin", "simrec", "transvg", "mattnet")
SPLITS = ("val", "testA", "testB")


def run(out: Path, recipe: str, *options: str) -> Path:
    """Run a recipe into `out`, or finish what is there; returns the folder of its cycle."""
    cycle = out / "cycle-1"
    if not (out / "report.html").exists():
        resume = ["--resume"] if (out / "config.yaml").exists() else []
        subprocess.run([sys.executable, "-m", "cpgr.run", recipe, "--out", str(out), *options, *resume], check=True)
    return cycle


def score(metrics: dict) -> float:
    """The mean of the splits' Acc@0.5."""
    return statistics.mean(metrics[split]["acc@0.5"] for split in SPLITS)


def measure(out: Path, seed: int, students: list[str], taught: bool, options: list[str]) -> dict[str, float]:
    """Acc@0.5 by name of everything that is trained with one seed."""
    found, shared = {}, ["--seed", str(seed), "--data.seed", str(seed), "--data.root", str(out / f"world-{seed}"), *options]
    if taught:
        teacher = run(out / f"refclip-{seed}", "refclip", *shared)
        metrics = json.loads((teacher / "metrics.json").read_text())
        found = {"teacher": score(metrics["teacher"]), "labels": metrics["labels"]["pairing_hit_rate"]}
    for student in students:
        chosen = ["--grounding.student", student, *shared]
        if taught:
            labels = ["--labels", str(teacher / "refined.parquet")]
            folder = run(out / f"{student}-taught-{seed}", "student", *chosen, *labels)
            found[f"{student} taught"] = score(json.loads((folder / "metrics.json").read_text()))
        folder = run(out / f"{student}-{seed}", "student", *chosen)
        found[f"{student} supervised"] = score(json.loads((folder / "metrics.json").read_text()))
    return found


def table(results: list[dict[str, float]], students: list[str], taught: bool) -> str:
    """The Markdown table of all seeds' results."""

    def cell(name: str) -> str:
        values = [100 * found[name] for found in results]
        spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
        return f"{statistics.mean(values):.1f}{spread}"

    lines = ["| network | taught by RefCLIP | supervised |", "| --- | --- | --- |"]
    if taught:
        lines += [f"| RefCLIP (labels right: {cell('labels')}) | {cell('teacher')} | |"]
    lines += [f"| {name} | {cell(f'{name} taught') if taught else ''} | {cell(f'{name} supervised')} |" for name in students]
    return "\n".join(lines)


def main() -> None:
    """Train what is missing and print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.students", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="the folder of all runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--students", nargs="+", choices=STUDENTS, default=list(STUDENTS))
    parser.add_argument("--supervised", action="store_true", help="only the supervised trainings")
    parser.add_argument("options", nargs="*", help="options of every run, after --")
    given = parser.parse_args()
    results = [measure(given.out, seed, given.students, not given.supervised, given.options) for seed in given.seeds]
    for seed, found in zip(given.seeds, results, strict=True):
        print(f"seed {seed}: " + ", ".join(f"{name} {100 * value:.1f}" for name, value in found.items()))
    print(table(results, given.students, not given.supervised))


if __name__ == "__main__":
    main()
