"""`cpgr doctor`: what is installed, what runs, and why; with --config, whether a run has all that it needs. Exit code 0 or 1."""

from __future__ import annotations

import argparse
import json

from ..recipes import shipped_configs

DESCRIPTION = """Say what is installed, what runs, and why.

With --config it also looks for everything that a run of that config needs, before any work starts: annotations, splits,
images, weights with their tensors, packages, room on the disk; of what is missing it says where to get it and where to put it. The
run's options may follow:

    cpgr doctor --config cpgr-refcoco --data.root /data

Exit code 0 where the essentials work (a good start for a bug report: --json), 1 where something must be mended.
"""

_SIGNS = {True: "ok  ", False: "FAIL", None: "-   "}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.description = DESCRIPTION
    parser.usage = "cpgr doctor [-h] [--config NAME_OR_FILE [--SECTION.KEY VALUE ...]] [--json]"
    parser.add_argument("--config", metavar="NAME_OR_FILE", help=f"check what a run of this config needs: a file, or {', '.join(shipped_configs())}")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(command=run, takes_more=True)


def run(args: argparse.Namespace) -> int:
    """Check everything and print it."""
    from . import checks

    if args.more and not args.config:
        args.parser.error(f"unrecognized arguments: {' '.join(args.more)} (options of a run need --config)")
    found = checks.examine()
    if args.config:
        from . import needs

        found |= needs.examine(args.config, args.more)
    healthy = all(item["ok"] is not False for items in found.values() for item in items)
    if args.json:
        print(json.dumps({"ok": healthy, **found}, indent=2))
    else:
        _print(found)
        good = f"A run of {args.config} has what it needs." if args.config else "The essentials work."
        print(f"\n{good}" if healthy else "\nSomething essential is missing or does not work: see FAIL above.")
    return 0 if healthy else 1


def _print(found: dict[str, list[dict]]) -> None:
    """Sections of lines: a sign, a name, what was found, and how to mend or get it."""
    for section, items in found.items():
        print(f"\n{section.replace('_', ' ')}")
        width = max((len(item["name"]) for item in items), default=0)
        for item in items:
            more = f"  ({item['note']})" if item.get("note") else ""
            print(f"  {_SIGNS[item['ok']]} {item['name']:<{width}}  {item['found']}{more}")
