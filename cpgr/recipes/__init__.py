"""Recipes: one module a system, each its parts put together for `cycle.run`. It holds no loop of its own.

A module that declares `SEES_TRUTH` is given the training split's true boxes; no other can reach them.
"""

from __future__ import annotations

import importlib

RECIPES = ("cpgr", "supervised")


def load(name: str):
    """The recipe's module: its `Config` dataclass and `build(config, accelerator, work)`."""
    return importlib.import_module(f".{name}", __name__)
