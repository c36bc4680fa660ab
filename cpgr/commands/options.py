"""Options that several commands share, and the trained model they ask for."""

from __future__ import annotations

import argparse
from contextlib import contextmanager
from pathlib import Path

from ..errors import CpgrError


def add_run(parser: argparse.ArgumentParser) -> None:
    """`--run` and `--cycle`."""
    parser.add_argument("--run", type=Path, required=True, metavar="DIR", help="the run's folder")
    parser.add_argument("--cycle", type=int, metavar="N", help="the cycle to take (default: the last one that has it)")


def add_part(parser: argparse.ArgumentParser) -> None:
    """`--part`: which of a run's trained models answers."""
    parser.add_argument(
        "--part", choices=["grounding", "refinement"], default="grounding",
        help="whose model: the Grounding stage's, or the Refinement stage's where it has one (refclip: the teacher)",
    )  # fmt: skip


def find_artefact(root: Path, cycle: int | None, name: str, what: str) -> tuple[int, Path]:
    """The cycle's number and its artefact `name`: of `cycle`, or of the last cycle that has it.

    Raises CpgrError where there is no run, no such cycle, or none that came so far.
    """
    from ..report.folder import STEPS, cycle_folders, read_config

    read_config(root)
    folders = cycle_folders(root)
    there = {number: folder / name for number, folder in folders.items() if (folder / name).exists()}
    if cycle is not None and cycle in there:
        return cycle, there[cycle]
    if cycle is None and there:
        return max(there.items())
    if cycle is not None and there:
        raise CpgrError(f"{root} has no {what} of cycle {cycle}; it has that of cycle {', '.join(map(str, there))}")
    step = next((s for n, s in STEPS.items() if not (folders[max(folders)] / n).exists()), "") if folders else ""
    state = f" (cycle {max(folders)} is at: {step})" if step else ""
    raise CpgrError(f"{root} has no {what} yet{state}; go on with the run by `cpgr run --out {root} --resume`")


@contextmanager
def opened_grounder(root: Path, cycle: int | None, part: str = "grounding"):
    """The model of a run that grounds, its Grounding's or its Refinement's; what it caches is gone when the block ends."""
    import tempfile

    from transformers.utils import logging as transformers_logging

    from .. import recipes
    from ..report.folder import read_config
    from ..training import make_accelerator

    config = read_config(root)
    if part == "refinement" and any(root.glob("cycle-*/refined.parquet")) and not any(root.glob("cycle-*/refinement")):
        raise CpgrError(f"{root}: the Refinement of its recipe ({config.get('recipe', recipes.RECIPES[0])}) trains no model; leave out --part")
    number, folder = find_artefact(root, cycle, part, f"trained {part} model")
    name = config.get("recipe", recipes.RECIPES[0])
    if name not in recipes.RECIPES:
        raise CpgrError(f"{root} is a run of the recipe {name!r}, which this version does not have ({', '.join(recipes.RECIPES)})")
    transformers_logging.disable_progress_bar()
    with tempfile.TemporaryDirectory(prefix="cpgr-") as work:
        accelerator = make_accelerator(config.get("precision", "auto"))
        yield number, recipes.load(name).open_grounder(folder, accelerator, Path(work))


def columns(rows: list[list[str]], left: int = 1) -> str:
    """Rows as aligned columns, the first `left` of them to the left and the others to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [cell.ljust(w) if i < left else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
