"""nms and batched_nms: boxes spread out (most stay) and crowded (most fall).

powerboxes computes in float64 and so can decide a pair at the threshold the other way.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from cpgr_kernels import batched_nms, nms

from .boxes import crowded_boxes, spread_boxes
from .harness import Case, against_reference, agree_exactly
from .peers import MissingPeer, peer

THRESHOLD = 0.5
SIZES = (100, 1000, 3549, 10647)  # the last two: the cells of a 416 x 416 image at three scales, and 3 anchors each
LARGEST_OF_REFERENCE = 3549  # it is a loop in Python
CLASSES = 80
GOALS = {"spread": 30.0, "crowded": 15.0, "batched": 30.0}  # over torchvision on a CPU, from 1000 boxes


def cases(device: str = "cpu") -> Iterator[Case]:
    """By size and crowding, then with 80 classes."""
    kinds = {"spread": spread_boxes, "crowded": crowded_boxes}
    for count in SIZES:
        for kind, make in kinds.items():
            arguments = (make(count, seed=count).to(device), _scores(count).to(device), THRESHOLD)
            yield Case(
                "nms",
                f"{count} {kind}",
                _runs(nms, arguments, count) | _peers(*arguments),
                _agree,
                floor_bytes=count * (4 * 5),
                goals=_goals(kind, count, device),
                facts={"kept": len(nms(*arguments))},
            )
    for count in SIZES:
        for kind, make in kinds.items():
            idxs = torch.randint(0, CLASSES, (count,), generator=torch.Generator().manual_seed(1)).to(device)
            arguments = (make(count, seed=count).to(device), _scores(count).to(device), idxs, THRESHOLD)
            theirs = peer("torchvision.ops", lambda ops, arguments=arguments: partial(ops.batched_nms, *arguments))
            yield Case(
                "batched_nms",
                f"{count} {kind}, {CLASSES} classes",
                _runs(batched_nms, arguments, count) | {"torchvision": theirs},
                agree_exactly,
                floor_bytes=count * (4 * 5 + 8),
                goals=_goals("batched", count, device),
                facts={"kept": len(batched_nms(*arguments))},
            )


def _scores(count: int) -> Tensor:
    """No two are equal: torchvision's batched_nms leaves their order open above 1000 boxes."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(count + 1)) / count


def _runs(op: Callable[..., Any], arguments: tuple, count: int) -> dict[str, Callable[[], Any] | MissingPeer]:
    runs = against_reference(partial(op, *arguments))
    if count > LARGEST_OF_REFERENCE:
        del runs["reference"]
    return runs


def _peers(boxes: Tensor, scores: Tensor, threshold: float) -> dict[str, Callable[[], Any] | MissingPeer]:
    peers = {"torchvision": peer("torchvision.ops", lambda ops: partial(ops.nms, boxes, scores, threshold))}
    if boxes.device.type == "cpu":
        arrays = boxes.double().numpy(), scores.double().numpy(), threshold, -1.0  # all scores are above -1
        peers["powerboxes"] = peer("powerboxes", lambda module: partial(module.nms, *arrays))
        peers["powerboxes, R-tree"] = peer("powerboxes", lambda module: partial(module.rtree_nms, *arrays))
    return peers


def _goals(kind: str, count: int, device: str) -> dict[str, float]:
    return {"torchvision": GOALS[kind]} if count >= 1000 and device == "cpu" else {}


def _agree(ours: Tensor, theirs: Any) -> None:
    """torchvision's indices are the same; of powerboxes' all but one in a thousand."""
    if isinstance(theirs, Tensor):
        agree_exactly(ours, theirs)
        return
    others = set(theirs.tolist())
    differing = len(others.symmetric_difference(ours.tolist()))
    assert differing <= len(others) / 1000, f"{differing} of {len(others)} indices differ"
