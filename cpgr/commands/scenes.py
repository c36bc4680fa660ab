"""`cpgr scenes`: write a data set of the built-in world."""

from __future__ import annotations

import argparse
from pathlib import Path

from .options import columns

DESCRIPTION = """Write a data set of the built-in world: rendered scenes with expressions, boxes, masks and captions.

The files are REFER's, so that whatever reads RefCOCO reads them:

    cpgr scenes worlds/7 --seed 7 --images 500
    cpgr run --data.format refer --data.root worlds/7 --data.dataset scenes
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.description = DESCRIPTION
    parser.add_argument("folder", type=Path, metavar="DIR", help="a new or empty folder")
    parser.add_argument("--seed", type=int, required=True, metavar="N", help="the world's seed; the same seed gives the same files")
    parser.add_argument("--images", type=int, required=True, metavar="N", help="training images; val, testA and testB get a tenth each")
    parser.add_argument("--pixels", type=int, default=128, metavar="P", help="the images' side (default: %(default)s)")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier world in DIR")
    parser.set_defaults(command=run)


def run(args: argparse.Namespace) -> int:
    """Write the world and print what is in it."""
    from ..data.scenes.write import write_scenes

    summary = write_scenes(args.folder, seed=args.seed, images=args.images, pixels=args.pixels, overwrite=args.overwrite)
    rows = [["split", "images", "referents", "expressions"]]
    rows += [[name, *(str(counts[key]) for key in ("images", "refs", "expressions"))] for name, counts in summary.items()]
    print(columns(rows))
    print(f"written to {args.folder}")
    return 0
