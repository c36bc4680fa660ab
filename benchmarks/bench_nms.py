"""nms and batched_nms: boxes spread out (most stay) and crowded (most fall)."""

from collections.abc import Iterator
from functools import partial

import torch

from cpgr_kernels import batched_nms, nms

from .boxes import crowded_boxes, spread_boxes
from .harness import Case, against_reference, agree_exactly

THRESHOLD = 0.5
SIZES = (100, 1000, 3549)
CLASSES = 80


def cases(device: str) -> Iterator[Case]:
    """By size and crowding, then with 80 classes."""
    for count in SIZES:
        for kind, make in (("spread", spread_boxes), ("crowded", crowded_boxes)):
            boxes, scores = make(count, seed=count), _scores(count)
            yield Case(
                "nms",
                f"{count} {kind}",
                against_reference(partial(nms, boxes, scores, THRESHOLD)),
                agree_exactly,
                floor_bytes=count * (4 * 5),
                facts={"kept": len(nms(boxes, scores, THRESHOLD))},
            )
    for count in SIZES:
        boxes, scores = crowded_boxes(count, seed=count), _scores(count)
        idxs = torch.randint(0, CLASSES, (count,), generator=torch.Generator().manual_seed(1))
        arguments = (boxes, scores, idxs, THRESHOLD)
        yield Case(
            "batched_nms",
            f"{count} crowded, {CLASSES} classes",
            against_reference(partial(batched_nms, *arguments)),
            agree_exactly,
            floor_bytes=count * (4 * 5 + 8),
            facts={"kept": len(batched_nms(*arguments))},
        )


def _scores(count: int) -> torch.Tensor:
    return torch.rand(count, generator=torch.Generator().manual_seed(count + 1))
