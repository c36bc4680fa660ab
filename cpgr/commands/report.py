"""`cpgr report`: write a run's report again."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.description = "Write report.html in a run's folder, from what is there; a run in progress gets one too."
    parser.add_argument("--run", type=Path, required=True, metavar="DIR", help="the run's folder")
    parser.set_defaults(command=run)


def run(args: argparse.Namespace) -> int:
    """Write the report and print its path."""
    from ..report import write

    print(write(args.run))
    return 0
