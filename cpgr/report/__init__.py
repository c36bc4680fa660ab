"""The report: one self-contained page about a run, made from its folder alone.

It needs no network and holds no script; what can be switched is switched by the style sheet, and the page's own
policy forbids everything but its inline styles and embedded images.
"""

from __future__ import annotations

import os
from pathlib import Path


def write(root: str | Path) -> Path:
    """Write `report.html` in the run's folder, whole or not at all; returns its path.

    An unfinished run gets a report of what there is. Raises `CpgrError` where the folder holds no run.
    """
    from .folder import read_run
    from .page import render

    root = Path(root)
    page = render(read_run(root))
    path = root / "report.html"
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(page, encoding="utf-8", errors="replace")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path
