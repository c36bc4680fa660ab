"""nms_padded: a batch of images at once, against torchvision image by image and with images as its classes."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from cpgr_kernels import nms_padded

from .boxes import crowded_boxes, spread_boxes
from .harness import Case, against_reference
from .peers import MissingPeer, peer

THRESHOLD = 0.5
SHAPES = ((64, 507), (8, 1000))  # 507: 13 x 13 cells of 3 anchors
GOALS_ON_GPU = {"torchvision, a loop over images": 30.0, "torchvision, images as classes": 8.0}


def cases(device: str = "cpu") -> Iterator[Case]:
    """By shape and crowding."""
    for batch, count in SHAPES:
        for kind, make in (("spread", spread_boxes), ("crowded", crowded_boxes)):
            boxes = torch.stack([make(count, seed=image) for image in range(batch)]).to(device)
            order = [torch.randperm(count, generator=torch.Generator().manual_seed(image)) for image in range(batch)]
            scores = (torch.stack(order) / count).to(device)
            counts = nms_padded(boxes, scores, THRESHOLD).counts
            yield Case(
                "nms_padded",
                f"{batch} x {count} {kind}",
                against_reference(partial(nms_padded, boxes, scores, THRESHOLD)) | _peers(boxes, scores),
                _agree,
                floor_bytes=batch * count * (4 * 5 + 8),
                goals=GOALS_ON_GPU if device == "cuda" else {},
                facts={"kept": int(counts.sum())},
            )


def _peers(boxes: Tensor, scores: Tensor) -> dict[str, Callable[[], Any] | MissingPeer]:
    images = torch.arange(len(boxes), device=boxes.device).repeat_interleave(boxes.shape[1])
    flat_boxes, flat_scores = boxes.flatten(0, 1), scores.flatten()

    def loop(ops):
        return lambda: [ops.nms(*image, THRESHOLD) for image in zip(boxes, scores, strict=True)]

    return {
        "torchvision, a loop over images": peer("torchvision.ops", loop),
        "torchvision, images as classes": peer(
            "torchvision.ops", lambda ops: partial(ops.batched_nms, flat_boxes, flat_scores, images, THRESHOLD)
        ),
    }


def _agree(ours: Any, theirs: Any) -> None:
    """Every image's indices; torchvision's of images as classes come mixed, and count through all images."""
    kept = [row[:count].tolist() for row, count in zip(ours[0], ours[1].tolist(), strict=True)]
    if isinstance(theirs, Tensor):
        count = ours[0].shape[1]
        split = [[] for _ in kept]
        for index in theirs.tolist():
            split[index // count].append(index % count)
    elif isinstance(theirs, list):
        split = [image.tolist() for image in theirs]
    else:
        split = [row[:count].tolist() for row, count in zip(theirs[0], theirs[1].tolist(), strict=True)]
    assert kept == split
