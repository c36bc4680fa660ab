"""`cpgr doctor`: what is installed, what runs, and why. Exit code 0 where the essentials work, 1 where not."""

from __future__ import annotations

import argparse
import json

DESCRIPTION = """Say what is installed, what runs, and why.

Exit code 0 where the essentials work (a good start for a bug report: --json), 1 where something must be mended.
"""

_SIGNS = {True: "ok  ", False: "FAIL", None: "-   "}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.description = DESCRIPTION
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(command=run)


def run(args: argparse.Namespace) -> int:
    """Check everything and print it."""
    from . import checks

    found = checks.examine()
    healthy = all(item["ok"] is not False for items in found.values() for item in items)
    if args.json:
        print(json.dumps({"ok": healthy, **found}, indent=2))
    else:
        _print(found)
        print("\nThe essentials work." if healthy else "\nSomething essential does not work: see FAIL above.")
    return 0 if healthy else 1


def _print(found: dict[str, list[dict]]) -> None:
    """Sections of lines: a sign, a name, what was found, and how to mend or get it."""
    for section, items in found.items():
        print(f"\n{section.replace('_', ' ')}")
        width = max((len(item["name"]) for item in items), default=0)
        for item in items:
            more = f"  ({item['note']})" if item.get("note") else ""
            print(f"  {_SIGNS[item['ok']]} {item['name']:<{width}}  {item['found']}{more}")
