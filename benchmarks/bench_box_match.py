"""box_match: the best partner of every box both ways, against the matrix and its maxima."""

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from cpgr_kernels import box_match, reference

from .boxes import crowded_boxes, spread_boxes
from .harness import Case, agree_closely
from .peers import compiled, peer

CASES = (
    ("1000 x 1000", spread_boxes, 1000, 1000),
    ("1000 x 1000 crowded", crowded_boxes, 1000, 1000),
    ("10000 x 1000", spread_boxes, 10000, 1000),
    ("10000 x 10000", spread_boxes, 10000, 10000),
)


def cases(device: str = "cpu") -> Iterator[Case]:
    """By size and crowding, then with the gradient."""
    for name, make, rows, columns in CASES:
        boxes1, boxes2 = make(rows, seed=1).to(device), make(columns, seed=2).to(device)
        maxima = partial(_maxima, boxes1, boxes2)
        runs = {
            "cpgr_kernels": lambda a=boxes1, b=boxes2: tuple(box_match(a, b)),
            "torchvision": peer("torchvision.ops", lambda ops, maxima=maxima: partial(maxima, ops.box_iou)),
            "torch.compile": partial(compiled(_reference_maxima), boxes1, boxes2),
        }
        yield Case(
            "box_match",
            name,
            runs,
            _agree,
            floor_bytes=(16 + 12) * (rows + columns),
            floor_flops=14 * rows * columns,
            goals={"torchvision": 50.0} if device == "cuda" and rows * columns >= 10**8 else {},
        )
    yield _gradient_case(1000, device)


def _maxima(boxes1: Tensor, boxes2: Tensor, iou_of: Callable[[Tensor, Tensor], Tensor]) -> tuple[Tensor, ...]:
    iou = iou_of(boxes1, boxes2)
    return *iou.max(1), *iou.max(0)


def _reference_maxima(boxes1: Tensor, boxes2: Tensor) -> tuple[Tensor, ...]:
    return _maxima(boxes1, boxes2, reference.box_iou)


def _agree(ours: tuple[Tensor, ...], theirs: tuple[Tensor, ...]) -> None:
    """The same IoUs bit for bit, and indices too: these boxes have no equal IoUs but zeros, which go to the first."""
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def _gradient_case(count: int, device: str) -> Case:
    boxes1, boxes2 = (crowded_boxes(count, seed=seed).to(device).requires_grad_() for seed in (1, 2))
    weights = torch.rand(2, count, generator=torch.Generator().manual_seed(3)).to(device)

    def both(match: Callable[[Tensor, Tensor], tuple[Tensor, ...]]) -> Tensor:
        iou1, _, iou2, _ = match(boxes1, boxes2)
        return torch.cat(torch.autograd.grad((iou1, iou2), (boxes1, boxes2), tuple(weights)))

    maxima = partial(_maxima, boxes1, boxes2)
    runs = {
        "cpgr_kernels": partial(both, box_match),
        "torchvision": peer("torchvision.ops", lambda ops: lambda: both(lambda *_: maxima(ops.box_iou))),
        "torch.compile": partial(both, compiled(_reference_maxima)),
    }
    return Case(
        "box_match",
        f"{count} x {count} crowded with gradient",
        runs,
        agree_closely,
        floor_bytes=2 * (16 + 12) * 2 * count,
        floor_flops=14 * count * count,
    )
