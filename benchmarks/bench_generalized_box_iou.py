"""generalized_box_iou: every box against every box, the loss of pairs, and the gradient."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from cpgr_kernels import generalized_box_iou, reference

from .boxes import spread_boxes
from .harness import Case, against_reference, agree_closely, agree_exactly
from .peers import MissingPeer, compiled, peer

SIZES = ((100, 100), (1000, 1000), (10000, 1000))
PAIRS = (1000, 100_000)
EPS = 1e-7  # torchvision's; here boxes are of pixels, where adding it and flooring at it are the same


def cases(device: str = "cpu") -> Iterator[Case]:
    """Pairwise by size, the gradient of all pairs, then the loss of pairs forward and backward."""
    for rows, columns in SIZES:
        boxes1, boxes2 = spread_boxes(rows, seed=1).to(device), spread_boxes(columns, seed=2).to(device)
        yield Case(
            "generalized_box_iou",
            f"{rows} x {columns}",
            _runs(boxes1, boxes2),
            agree_exactly,
            floor_bytes=4 * (rows * columns + 4 * (rows + columns)),
            floor_flops=23 * rows * columns,
        )
    yield _gradient_case(1000, device)
    for count in PAIRS:
        yield _loss_case(count, device)


def _runs(boxes1: Tensor, boxes2: Tensor) -> dict[str, Callable[[], Any] | MissingPeer]:
    return {
        **against_reference(partial(generalized_box_iou, boxes1, boxes2)),
        "torchvision": peer("torchvision.ops", lambda ops: partial(ops.generalized_box_iou, boxes1, boxes2)),
        "torch.compile": partial(compiled(reference.generalized_box_iou), boxes1, boxes2),
    }


def _gradient_case(count: int, device: str) -> Case:
    boxes1, boxes2 = (spread_boxes(count, seed=seed).to(device).requires_grad_() for seed in (1, 2))
    weights = torch.rand(count, count, generator=torch.Generator().manual_seed(3)).to(device)

    def both(value: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        return torch.cat(torch.autograd.grad(value(boxes1, boxes2), (boxes1, boxes2), weights))

    runs = against_reference(lambda backend: both(partial(generalized_box_iou, backend=backend)))
    runs["torchvision"] = peer("torchvision.ops", lambda ops: lambda: both(ops.generalized_box_iou))
    runs["torch.compile"] = partial(both, compiled(reference.generalized_box_iou))
    return Case(
        "generalized_box_iou",
        f"{count} x {count} with gradient",
        runs,
        agree_closely,
        floor_bytes=4 * 2 * count * count,  # the matrix written once and its gradient read once
        floor_flops=(23 + 75) * count * count,
    )


def _loss_case(count: int, device: str) -> Case:
    boxes1, boxes2 = (spread_boxes(count, seed=seed).to(device) for seed in (1, 2))
    boxes1.requires_grad_()

    def loss(a: Tensor, b: Tensor, backend: str | None = None) -> Tensor:
        return (1 - generalized_box_iou(a, b, pairwise=False, eps=EPS, backend=backend)).mean()

    def both(value: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        return torch.autograd.grad(value(boxes1, boxes2), boxes1)[0] * count

    runs = against_reference(lambda backend: both(partial(loss, backend=backend)))
    runs["torchvision"] = peer(
        "torchvision.ops", lambda ops: lambda: both(partial(ops.generalized_box_iou_loss, reduction="mean"))
    )
    runs["torch.compile"] = partial(both, compiled(partial(loss, backend="reference")))
    return Case(
        "generalized_box_iou",
        f"loss of {count} pairs with gradient",
        runs,
        agree_closely,
        floor_bytes=4 * (8 + 1 + 1 + 8 + 4) * count,  # boxes and value, then gradient, boxes and their gradient
        floor_flops=(29 + 80) * count,
    )
