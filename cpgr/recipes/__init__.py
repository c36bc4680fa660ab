"""Recipes: one module a system, each its parts put together for `cycle.run`. It holds no loop of its own."""

from __future__ import annotations

import importlib

RECIPES = ("cpgr", "refclip", "student")


def load(name: str):
    """The recipe's module: its `Config` dataclass and `build(config, accelerator, work)`."""
    return importlib.import_module(f".{name}", __name__)
