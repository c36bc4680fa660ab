"""Progress a person can read: a bar with the time left on a terminal, a line now and then in a log file."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterable, Iterator

from .processes import is_main

log = logging.getLogger("cpgr")

LOG_EVERY_S = 30.0


def track(items: Iterable, what: str, total: int | None = None) -> Iterator:
    """Yield `items`, showing how many are done and how long the rest will take (the main process alone shows it)."""
    if total is None:
        total = len(items)  # type: ignore[arg-type]
    if not is_main():
        yield from items
        return
    if sys.stderr.isatty():
        yield from _bar(items, what, total)
        return
    start = last = time.monotonic()
    for done, item in enumerate(items):
        yield item
        now = time.monotonic()
        if now - last >= LOG_EVERY_S and done + 1 < total:
            last, left = now, (now - start) / (done + 1) * (total - done - 1)
            log.info("%s: %d of %d, %.0f s left", what, done + 1, total, left)


def _bar(items: Iterable, what: str, total: int) -> Iterator:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(what, total=total)
        for item in items:
            yield item
            progress.advance(task)
