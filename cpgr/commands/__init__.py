"""The subcommands of `cpgr`, a module each: `add_arguments(parser)` sets its options and, as `command`, what runs."""

from __future__ import annotations

import importlib

COMMANDS = {
    "ground": "find the region an expression names in an image",
    "evaluate": "measure a run's model on a data set",
    "labels": "show the labels a run made, or export them for other code",
    "report": "write a run's report again, from its folder",
    "scenes": "write a data set of the built-in world",
    "doctor": "say what is installed, what runs, and why; what a run of a config lacks",
}


def load(name: str):
    """The module of a subcommand."""
    return importlib.import_module(f".{name}", __name__)
