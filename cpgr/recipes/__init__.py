"""Recipes: one module a system, each its parts put together for `cycle.run`. It holds no loop of its own.

A module that declares `SEES_TRUTH` is given the training split's true boxes; no other can reach them.
"""

from __future__ import annotations

import importlib
from pathlib import Path

RECIPES = ("cpgr", "refclip", "student", "supervised")
CONFIGS = Path(__file__).parent / "configs"


def load(name: str):
    """The recipe's module: its `Config` dataclass and `build(config, accelerator, work)`."""
    return importlib.import_module(f".{name}", __name__)


def shipped_configs() -> list[str]:
    """The names of the configs that ship with the package."""
    return sorted(path.stem for path in CONFIGS.glob("*.yaml"))
