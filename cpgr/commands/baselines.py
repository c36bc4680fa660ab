"""`cpgr labels baselines`: the first cycle's pairing beside choices that ask less of an expression, without any training."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from ..errors import CpgrError
from .options import columns

DESCRIPTION = """Pair the true expressions with regions as the first cycle does, and compare with choosing the largest region, the
one the detector is surest of, any of the named class, or any at all. True boxes serve for the count alone.

Every option of `cpgr run` may be given; --data.train_split may name several splits:

    cpgr labels baselines --config photographs --proposals onnx:yolox_nano.onnx --data.format refer --data.root refer/data \\
        --data.dataset refcoco --data.train_split val,testA
"""
NAMES = {
    "largest": "largest region", "best_scored": "best-scored region", "named_class": "a region of the named class", "random": "any region",
}  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's own option; the run's are read by its config's parser."""
    parser.usage = "cpgr labels baselines [-h] [--json] [--section.key VALUE ...]"
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(command=run, takes_more=True)


def run(args: argparse.Namespace) -> int:
    """Propose, write the templates, pair, compare, print."""
    recipe, config = _config(args.more)

    from transformers.utils import logging as transformers_logging

    from ..data.readers import read_split
    from ..data.records import Problems, Truth
    from ..data.world import ensure_world
    from ..labels import LabelTable
    from ..metrics import pairing_baselines
    from ..training import make_accelerator, seed_everything

    transformers_logging.disable_progress_bar()
    problems, found = Problems(config.data.on_bad), {}
    tables, truths = [LabelTable(), LabelTable()], Truth()
    names = [name.strip() for name in config.data.train_split.split(",") if name.strip()]
    if not names:
        raise CpgrError("--data.train_split names no split")
    with tempfile.TemporaryDirectory(prefix="cpgr-") as work:
        data = ensure_world(config.data, Path(work) / "world") if config.data.format == "scenes" else config.data
        parts = recipe.build(config, make_accelerator(config.precision), Path(work))
        for name in names:
            split, truth = read_split(data, name, problems)
            if not truth.boxes:
                raise CpgrError(f"the split {name!r} of {data.root} has no true boxes to measure by")
            seed_everything(config.seed, 1, "baselines")
            proposals = parts.propose(split)
            basic = parts.generator.generate(split, proposals)
            refined = parts.refiner.refine(basic, proposals, split, parts.generator, None)
            found[name] = pairing_baselines(proposals, refined, truth) | {"regions": len(proposals)}
            tables = [whole + _apart(rows, name) for whole, rows in zip(tables, (proposals, refined), strict=True)]
            truths.boxes |= {f"{name} {key}": box for key, box in truth.boxes.items()}
        if len(names) > 1:
            found["all"] = pairing_baselines(*tables, truths) | {"regions": len(tables[0])}
    print(json.dumps(found, indent=2) if args.json else "\n\n".join(_table(name, some) for name, some in found.items()))
    if skipped := problems.summary():
        print(f"skipped records: {skipped}", file=sys.stderr)
    return 0


def _config(options: list[str]):
    """The recipe and its config, as `cpgr run` reads them."""
    from jsonargparse import ArgumentError

    from .. import recipes
    from ..config import make_parser, name_configs, split_recipe
    from ..execution import NOT_CONFIG

    name, rest = split_recipe(options, recipes.RECIPES)
    recipe = recipes.load(name)
    parser = make_parser(recipe.Config, name, "cpgr labels baselines")
    parser.exit_on_error = False
    try:
        options = parser.instantiate(parser.parse_args(name_configs(rest)))
    except ArgumentError as error:
        raise CpgrError(str(error)) from error
    return recipe, recipe.Config(**{key: value for key, value in vars(options).items() if key not in NOT_CONFIG})


def _apart(rows, split: str):
    """The rows under ids of their own: two splits may count their images alike."""
    from ..labels import LabelTable

    return LabelTable(replace(row, image_id=f"{split} {row.image_id}", expression_id=f"{split} {row.expression_id}") for row in rows)


def _table(name: str, found: dict) -> str:
    if not found["count"]:
        return f"{name}: no expression with a true box"
    rows = [["", "hit rate", "pairing minus it", "95 % interval"], ["pairing", f"{found['pairing']:.3f}", "", ""]]
    for key, said in NAMES.items():
        one = found[key]
        rows.append([said, f"{one['hit_rate']:.3f}", f"{one['difference']:+.3f}", f"{one['low']:+.3f} to {one['high']:+.3f}"])
    rows.append(["the best region", f"{found['ceiling']:.3f}", "", ""])
    about = f"{found['count']} expressions, {found['images']} images, {found['regions']} regions"
    return f"{name}: {about}\n{columns(rows)}"
