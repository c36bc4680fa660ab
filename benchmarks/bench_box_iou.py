"""box_iou: every box against every box, one against one, and the gradient."""

from collections.abc import Iterator
from functools import partial

import torch

from cpgr_kernels import box_iou

from .boxes import spread_boxes
from .harness import Case, against_reference, agree_closely, agree_exactly

SIZES = ((100, 100), (1000, 1000), (10000, 1000))


def cases(device: str) -> Iterator[Case]:
    """Pairwise by size, then element by element, then forward and backward."""
    for rows, columns in SIZES:
        boxes1, boxes2 = spread_boxes(rows, seed=1), spread_boxes(columns, seed=2)
        yield Case(
            "box_iou",
            f"{rows} x {columns}",
            against_reference(partial(box_iou, boxes1, boxes2)),
            agree_exactly,
            floor_bytes=4 * (rows * columns + 4 * (rows + columns)),
        )
    boxes1, boxes2 = spread_boxes(100_000, seed=1), spread_boxes(100_000, seed=2)
    yield Case(
        "box_iou",
        "100000 pairs",
        against_reference(partial(box_iou, boxes1, boxes2, pairwise=False)),
        agree_exactly,
        floor_bytes=4 * 9 * 100_000,
    )
    yield _gradient_case(1000)


def _gradient_case(count: int) -> Case:
    boxes1, boxes2 = (spread_boxes(count, seed=seed).requires_grad_() for seed in (1, 2))
    weights = torch.rand(count, count, generator=torch.Generator().manual_seed(3))

    def both(backend):
        iou = box_iou(boxes1, boxes2, backend=backend)
        return torch.cat(torch.autograd.grad(iou, (boxes1, boxes2), weights))

    return Case(
        "box_iou",
        f"{count} x {count} with gradient",
        against_reference(both),
        agree_closely,
        # The matrix written once and its gradient read once.
        floor_bytes=4 * 2 * count * count,
    )
