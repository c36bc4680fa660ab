"""Batches made ahead by a thread: the same items, errors where they are asked for, and no thread left behind."""

import threading
import time

import pytest

from cpgr.prefetch import ahead


@pytest.mark.parametrize("depth", [0, 1, 3])
def test_the_items_and_their_error(depth):
    def items():
        yield from range(5)
        raise ValueError("the sixth")

    found = []
    with pytest.raises(ValueError, match="the sixth"):
        for item in ahead(items(), depth):
            found.append(item)
    assert found == list(range(5))


def test_they_are_made_before_they_are_asked_for_and_no_further():
    made = []
    loop = ahead((made.append(i) or i for i in range(100)), 2)
    assert next(loop) == 0
    time.sleep(0.3)
    assert 3 <= len(made) <= 4  # two in the queue, and the one that waits for a place
    loop.close()
    assert not [t for t in threading.enumerate() if t.name == "prefetch"]
