"""box_iou: every box against every box, into memory of one's own, one against one, and the gradient.

powerboxes computes in float64 and gives distances, 1 - IoU; its users subtract.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from cpgr_kernels import box_iou, reference

from .boxes import spread_boxes
from .harness import Case, against_reference, agree_closely, agree_exactly
from .peers import MissingPeer, compiled, peer

SIZES = ((100, 100), (1000, 1000), (10000, 1000))
GOALS = {"torchvision": 100.0, "torch.compile": 20.0, "powerboxes": 25.0}


def cases(device: str = "cpu") -> Iterator[Case]:
    """Pairwise by size, then into `out=`, then element by element, then forward and backward."""
    for rows, columns in SIZES:
        boxes1, boxes2 = spread_boxes(rows, seed=1).to(device), spread_boxes(columns, seed=2).to(device)
        work = {
            "floor_bytes": 4 * (rows * columns + 4 * (rows + columns)),
            "floor_flops": 12 * rows * columns,
            "goals": GOALS if (rows, columns) == (1000, 1000) and device == "cpu" else {},
        }
        runs = against_reference(partial(box_iou, boxes1, boxes2)) | _peers(boxes1, boxes2)
        yield Case("box_iou", f"{rows} x {columns}", runs, _agree, **work)
        if rows * columns >= 1_000_000:
            yield Case("box_iou", f"{rows} x {columns} into out=", _into(boxes1, boxes2), _agree, **work)
    yield _pairs_case(100_000, device)
    yield _gradient_case(1000, device)


def _peers(boxes1: Tensor, boxes2: Tensor) -> dict[str, Callable[[], Any] | MissingPeer]:
    fused = compiled(reference.box_iou)
    peers = {
        "torchvision": peer("torchvision.ops", lambda ops: partial(ops.box_iou, boxes1, boxes2)),
        "torch.compile": partial(fused, boxes1, boxes2),
    }
    if boxes1.device.type == "cpu":
        first, second = boxes1.double().numpy(), boxes2.double().numpy()
        peers["powerboxes"] = peer("powerboxes", lambda module: lambda: 1 - module.iou_distance(first, second))
    return peers


def _into(boxes1: Tensor, boxes2: Tensor) -> dict[str, Callable[[], Any] | MissingPeer]:
    """Ours into memory that is there; of the peers only a compiled graph can do the same."""
    ours, theirs = (boxes1.new_empty(len(boxes1), len(boxes2)) for _ in range(2))
    fused = compiled(lambda a, b, out: out.copy_(reference.box_iou(a, b)))
    return {
        "cpgr_kernels": partial(box_iou, boxes1, boxes2, out=ours),
        **_peers(boxes1, boxes2),
        "torch.compile": partial(fused, boxes1, boxes2, theirs),
    }


def _agree(ours: Tensor, theirs: Any) -> None:
    """powerboxes' arrays are float64; all others must be the same bit for bit."""
    if isinstance(theirs, Tensor):
        agree_exactly(ours, theirs)
    else:
        torch.testing.assert_close(ours.double(), torch.from_numpy(theirs), rtol=1e-4, atol=1e-6)


def _pairs_case(count: int, device: str) -> Case:
    boxes1, boxes2 = spread_boxes(count, seed=1).to(device), spread_boxes(count, seed=2).to(device)
    fused = compiled(reference.box_iou)
    runs = against_reference(partial(box_iou, boxes1, boxes2, pairwise=False))
    runs["torch.compile"] = partial(fused, boxes1, boxes2, False)
    return Case("box_iou", f"{count} pairs", runs, agree_exactly, floor_bytes=4 * 9 * count, floor_flops=18 * count)


def _gradient_case(count: int, device: str) -> Case:
    boxes1, boxes2 = (spread_boxes(count, seed=seed).to(device).requires_grad_() for seed in (1, 2))
    weights = torch.rand(count, count, generator=torch.Generator().manual_seed(3)).to(device)

    def both(iou: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        return torch.cat(torch.autograd.grad(iou(boxes1, boxes2), (boxes1, boxes2), weights))

    runs = against_reference(lambda backend: both(partial(box_iou, backend=backend)))
    runs["torchvision"] = peer("torchvision.ops", lambda ops: lambda: both(ops.box_iou))
    runs["torch.compile"] = partial(both, compiled(reference.box_iou))
    return Case(
        "box_iou",
        f"{count} x {count} with gradient",
        runs,
        agree_closely,
        floor_bytes=4 * 2 * count * count,  # the matrix written once and its gradient read once
        floor_flops=(12 + 45) * count * count,
    )
