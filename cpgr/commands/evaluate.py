"""`cpgr evaluate`: measure a run's model on the run's own data, or on another data set."""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

from ..errors import CpgrError
from .options import add_part, add_run, columns, opened_grounder

DESCRIPTION = """Measure a run's model: Acc@0.5 counted with >= (TransVG, CPL) and with > (RefCLIP's line), and mean IoU.

Without --data options it reads the run's own data. Every option of the run's `data` section may be given:

    cpgr evaluate --run runs/cpgr --data.format refer --data.root refer/data --data.dataset refcoco --data.eval_split testA,testB

--data.format: scenes, refer, transvg, refclip, seqtr, flickr30k or folder; --data.root: the annotations' folder;
--data.dataset, --data.images, --data.on_bad skip, ...: see `cpgr run --help`.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options; those of the data are read by the config's own parser."""
    parser.description = DESCRIPTION
    parser.usage = "cpgr evaluate [-h] --run DIR [--cycle N] [--part PART] [--data.KEY VALUE ...] [--json] [--predictions FILE]"
    add_run(parser)
    add_part(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--predictions", type=Path, metavar="FILE", help="write the answers too, as .parquet or .jsonl")
    parser.set_defaults(command=run, takes_more=True)


def run(args: argparse.Namespace) -> int:
    """Read, ground, measure and print."""
    if args.predictions and args.predictions.suffix not in (".parquet", ".jsonl"):
        raise CpgrError(f"--predictions {args.predictions}: the file's name ends in .parquet or .jsonl")
    data = _data_config(args.run, args.more)

    from ..data.readers import read_split
    from ..data.records import Problems
    from ..metrics import HIT, evaluate

    problems, found, answers = Problems(data.on_bad), {}, []
    names = [name.strip() for name in data.eval_split.split(",") if name.strip()]
    if not names:
        raise CpgrError("--data.eval_split names no split")
    with opened_grounder(args.run, args.cycle, args.part) as (cycle, grounder):
        for name in names:
            split, truth = read_split(data, name, problems)
            if not truth.boxes:
                raise CpgrError(f"the split {name!r} of {data.root} has no true boxes to measure by")
            metrics, rows = evaluate(grounder, split, truth)
            above = sum(row.scores["iou"] > HIT for row in rows) / len(rows)
            found[name] = {
                "acc@0.5": metrics["acc@0.5"], "acc>0.5": above, "mean_iou": metrics["mean_iou"],
                "count": len(rows), "without_box": len(split.expressions) - len(rows),
            }  # fmt: skip
            answers += [_record(name, row) for row in rows]
    if args.predictions:
        _write(answers, args.predictions)
    if args.json:
        print(json.dumps({"cycle": cycle, "splits": found, "skipped": problems.summary()}, indent=2))
    else:
        _print(cycle, found, problems, args.predictions)
    return 0


def _data_config(root: Path, options: list[str]):
    """The run's data config with the options over it. Another format or root takes nothing of where the run's data lay."""
    import dataclasses

    from jsonargparse import ArgumentError, ArgumentParser

    from ..data.readers import DataConfig
    from ..data.world import ensure_world
    from ..report.folder import read_config

    saved = read_config(root).get("data") or {}
    known = {field.name for field in dataclasses.fields(DataConfig)}
    elsewhere = {part.split("=")[0] for part in options} & {"--data.format", "--data.root"}
    place = {"root", "dataset", "images"} if elsewhere else set()
    parser = ArgumentParser(prog="cpgr evaluate", exit_on_error=False)
    parser.add_class_arguments(DataConfig, "data")
    parser.set_defaults({f"data.{key}": value for key, value in saved.items() if key in known - place})
    try:
        data = DataConfig(**vars(parser.parse_args(options).data))
    except ArgumentError as error:
        raise CpgrError(str(error)) from error
    if data.format != "scenes":
        return data
    world = Path(data.root) if data.root else root / "world"
    if not (world / data.dataset).exists() and elsewhere:
        raise CpgrError(f"{world} holds no built-in world {data.dataset!r}; `cpgr scenes {world}` writes one")
    return ensure_world(data, root / "world")


def _record(split: str, row) -> dict:
    return {
        "split": split, "image_id": row.image_id, "file_name": row.file_name, "width": row.width, "height": row.height,
        "expression_id": row.expression_id, "expression": row.expression, "box": row.box,
        "score": row.scores["confidence"], "iou": row.scores["iou"],
    }  # fmt: skip


def _write(records: list[dict], path: Path) -> None:
    """Whole or not at all."""
    import os

    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        if path.suffix == ".jsonl":
            temporary.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records), encoding="utf-8")
        else:
            import pyarrow as pa
            import pyarrow.parquet as pq

            pq.write_table(pa.Table.from_pylist(records), temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _print(cycle: int, found: dict, problems, predictions: Path | None) -> None:
    def number(value: float, scale: int, digits: int) -> str:
        return f"{scale * value:.{digits}f}" if math.isfinite(value) else "-"

    rows = [[f"cycle {cycle}", "Acc@0.5 (>=)", "Acc@0.5 (>)", "mean IoU", "expressions"]]
    for name, m in found.items():
        rows.append([name, number(m["acc@0.5"], 100, 2), number(m["acc>0.5"], 100, 2), number(m["mean_iou"], 1, 4), str(m["count"])])
    print(columns(rows))
    if without := sum(m["without_box"] for m in found.values()):
        print(f"{without} expressions have no true box and are not counted")
    if problems.skipped:
        print(f"skipped {len(problems.skipped)} bad records: {problems.summary()}")
    if predictions:
        print(f"predictions: {predictions}")
