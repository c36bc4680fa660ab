"""COCO's run-length encoded masks, as a Python list of dicts, made ready for the kernels."""

from array import array
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

# A mask of 16384 x 16384. A run-length encoding of ten bytes can claim any size, and its bits would be allocated.
MOST_PIXELS = 1 << 28


class Rle(NamedTuple):
    """Masks of one size: their counts one after another, as text or as 64-bit numbers."""

    counts: list[bytes]
    numbers: list[bool]
    height: int
    width: int


def read_rle(op: str, name: str, masks: Sequence[Any], size: tuple[int, int] | None = None) -> Rle:
    """Checks everything but the counts themselves. `size` is that of no masks."""
    counts, numbers = [], []
    for index, mask in enumerate(masks):
        where = f"{op}: {name}[{index}]"
        if not isinstance(mask, Mapping) or "size" not in mask or "counts" not in mask:
            raise TypeError(
                f'{where} must be {{"size": [h, w], "counts": ...}} in a list of run-length encoded masks, '
                f"got {type(mask).__name__}; for dense masks give a tensor or an array [..., H, W]"
            )
        runs = mask["counts"]
        own = _size(where, mask["size"])
        if index == 0:
            size = own
        elif own != size:
            raise ValueError(f"{where} is {own[0]} x {own[1]} and {name}[0] is {size[0]} x {size[1]}")
        counts.append(_bytes(where, runs))
        numbers.append(not isinstance(runs, (bytes, str)))
    if size is None:
        raise ValueError(f"{op}: {name} is an empty list, which has no size; give a tensor of shape [0, H, W]")
    return Rle(counts, numbers, *size)


def concatenated(sides: Iterable[Rle]) -> Rle:
    """The masks of all, which are of one size."""
    first, *others = sides
    counts, numbers = list(first.counts), list(first.numbers)
    for side in others:
        counts += side.counts
        numbers += side.numbers
    return Rle(counts, numbers, first.height, first.width)


def _size(where: str, size: Any) -> tuple[int, int]:
    try:
        height, width = array("q", size)  # takes integers of any kind and nothing else
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"{where}: size must be two integers [h, w], got {size!r:.60}") from None
    if height < 0 or width < 0 or height * width > MOST_PIXELS or max(height, width) > MOST_PIXELS:
        raise ValueError(f"{where}: size is {height} x {width}; at most 2^28 pixels can be packed")
    return height, width


def _bytes(where: str, counts: Any) -> bytes:
    if isinstance(counts, bytes):
        return counts
    try:
        return counts.encode("latin-1") if isinstance(counts, str) else array("q", counts).tobytes()
    except (TypeError, ValueError, OverflowError):
        raise ValueError(
            f"{where}: counts must be bytes or text (compressed) or a list of 64-bit integers, got {counts!r:.60}"
        ) from None


def buffers(rle: Rle) -> tuple[bytes, Tensor, Tensor]:
    """All counts as one, where each mask's begin (and the last one's end), and which are numbers."""
    lengths = torch.tensor([0, *map(len, rle.counts)], dtype=torch.int64)
    return b"".join(rle.counts), lengths.cumsum(0), torch.tensor(rle.numbers, dtype=torch.uint8)
