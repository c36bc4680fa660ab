"""Work done ahead: a thread makes the next items while the loop uses the last one.

A thread, not processes: decoding, resizing and tensor copies let go of Python's lock, nothing is pickled, and a
GPU and a file of cached features stay usable.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from typing import TypeVar

T = TypeVar("T")

_END = object()


def ahead(items: Iterator[T], depth: int) -> Iterator[T]:
    """The items, up to `depth` of them made before they are asked for, in a thread; 0 makes each when it is asked for.

    What making an item raises is raised where the item is asked for. Closing the iterator ends the thread.
    """
    if depth <= 0:
        yield from items
        return
    made: queue.Queue = queue.Queue(depth)
    stop = threading.Event()

    def put(kind, value) -> None:
        while not stop.is_set():
            try:
                return made.put((kind, value), timeout=0.1)
            except queue.Full:
                continue

    def fill() -> None:
        try:
            for item in items:
                put(None, item)
                if stop.is_set():
                    return
            put(_END, None)
        except BaseException as error:
            put(error, None)

    thread = threading.Thread(target=fill, name="prefetch", daemon=True)
    thread.start()
    try:
        while True:
            kind, value = made.get()
            if kind is _END:
                return
            if kind is not None:
                raise kind
            yield value
    finally:
        stop.set()
        thread.join()
