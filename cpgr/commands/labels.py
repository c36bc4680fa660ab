"""`cpgr labels`: show the labels a run made, export them in another code's format, or measure a first pairing."""

from __future__ import annotations

import argparse
from itertools import groupby
from pathlib import Path

from ..errors import CpgrError
from . import baselines
from .options import add_run, find_artefact

TABLES = {"refined": "refined labels", "basic": "basic labels", "proposals": "proposals"}
FORMATS = ("cpl", "transvg", "refclip", "realgin", "mattnet", "seqtr", "coco", "jsonl")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """`show`, `export` and `baselines`, each with its options."""
    parser.description = "Show the labels a run made, export them for other code, or measure a first pairing."
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    show = commands.add_parser("show", help="print labels readably", description="Print a cycle's labels, image by image.")
    _add_table(show)
    show.add_argument("--image", metavar="ID", help="only this image (its id or file name)")
    show.add_argument("--limit", type=int, default=60, metavar="N", help="at most so many labels; 0 for all (default: %(default)s)")
    show.set_defaults(command=_show, parser=show)
    export = commands.add_parser(
        "export", help="write labels in another code's format", formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Write a cycle's labels in another code's format:\n\n"
        "  cpl      CPL, Pseudo-Q: torch file of (image, box, expression, weight)\n"
        "  transvg  TransVG: torch file of its data sets' tuples; FILE is called unc_train.pth, gref_umd_train.pth, referit_train.pth, ...\n"
        "  refclip  RefCLIP, SimREC: JSON by split\n"
        "  realgin  RealGIN: text, a line a label\n"
        "  mattnet  MAttNet: REFER's files; FILE is called refs(NAME).p, instances.json is written beside it\n"
        "  seqtr    SeqTR: JSON by split\n"
        "  coco     COCO: instances JSON, and results JSON beside it\n"
        "  jsonl    a JSON object a line with every field",
    )  # fmt: skip
    _add_table(export)
    export.add_argument("--format", required=True, choices=FORMATS, help="the format")
    export.add_argument("--out", type=Path, required=True, metavar="FILE", help="the file to write")
    export.add_argument("--split", default="train", metavar="NAME", help="the split that the file names (default: %(default)s)")
    export.add_argument("--match", action="store_true", help="mattnet: point at the proposals that the labels overlap best, instead of new annotations")
    export.set_defaults(command=_export, parser=export)
    measure = commands.add_parser(
        "baselines", help="pairing beside simpler choices, on data with true boxes", formatter_class=argparse.RawDescriptionHelpFormatter,
        description=baselines.DESCRIPTION,
    )  # fmt: skip
    baselines.add_arguments(measure)


def _add_table(parser: argparse.ArgumentParser) -> None:
    add_run(parser)
    parser.add_argument("--table", choices=list(TABLES), default="refined", help="which labels (default: %(default)s)")
    parser.add_argument("--dropped", action="store_true", help="the dropped ones too, with the reason")


def _table(args: argparse.Namespace):
    from ..labels import LabelTable

    number, path = find_artefact(args.run, args.cycle, f"{args.table}.parquet", TABLES[args.table])
    return number, LabelTable.load(path)


def _export(args: argparse.Namespace) -> int:
    from ..data.export import export_labels

    number, table = _table(args)
    candidates = None
    if args.match:
        candidates = type(table).load(find_artefact(args.run, number, "proposals.parquet", TABLES["proposals"])[1])
    count = export_labels(table, args.format, args.out, split=args.split, dropped=args.dropped, candidates=candidates)
    print(f"{count} labels of cycle {number} written to {args.out}")
    return 0


def _show(args: argparse.Namespace) -> int:
    number, table = _table(args)
    rows = list(table)
    if args.image is not None:
        rows = [row for row in rows if args.image in (row.image_id, row.file_name, Path(row.file_name).name)]
        if not rows:
            known = f"; one it has is {table[0].image_id!r}" if len(table) else ""
            raise CpgrError(f"no labels of an image {args.image!r} in cycle {number}{known}")
    chosen = [row for row in rows if row.kept or args.dropped]
    shown = chosen[: args.limit] if args.limit > 0 else chosen
    for (image_id, file_name), group in groupby(shown, key=lambda row: (row.image_id, row.file_name)):
        print(f"image {image_id}  {file_name}")
        for row in group:
            print(_line(row))
    kept = sum(row.kept for row in rows)
    print(f"cycle {number}, {TABLES[args.table]}: {kept} kept, {len(rows) - kept} dropped")
    if len(shown) < len(chosen):
        print(f"{len(chosen) - len(shown)} more are not shown (--limit 0 shows all)")
    return 0


def _line(row) -> str:
    box = ",".join(f"{v:.0f}" for v in row.box) if row.box else "no box"
    scores = " ".join(f"{name}={value:.3g}" for name, value in row.scores.items())
    region = f"region {row.region_id}" if row.region_id >= 0 else ""
    about = "  ".join(filter(None, [row.kind, region, box, scores]))
    fate = "  +" if row.kept else "  -"
    return f"{fate} {row.expression or row.words!r}\n      {about}" + ("" if row.kept else f"\n      dropped: {row.reason}")
