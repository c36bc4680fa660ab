"""Other people's implementations, imported where they are: `pip install -r benchmarks/requirements.txt` brings them.

A peer that is missing is a row of the table with the reason, never a silent gap.
"""

from collections.abc import Callable
from importlib import import_module
from types import ModuleType
from typing import Any


class MissingPeer:
    """Stands in a case's `run` for a peer that cannot run here."""

    def __init__(self, reason: str):
        self.reason = reason


def peer(module: str, make: Callable[[ModuleType], Callable[[], Any]]) -> Callable[[], Any] | MissingPeer:
    """`make(module)` returns the peer's run; MissingPeer with the reason where the module cannot be imported."""
    try:
        loaded = import_module(module)
    except Exception as error:  # a torchvision beside another torch raises RuntimeError at import
        return MissingPeer(f"{module} cannot be imported: {str(error).splitlines()[0]}")
    return make(loaded)


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """torch.compile, with a fresh cache of graphs and one compilation for the shapes it is given."""
    import torch

    return torch.compile(function, dynamic=False, fullgraph=True)
