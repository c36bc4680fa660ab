"""What a detector finds in one image, and the choice of the detections that become proposals."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from ..records import Image


@dataclass
class Detections:
    """N detections: boxes [N, 4] x1,y1,x2,y2 in original pixels, scores [N] in 0..1, categories N class words,
    attributes N lists of words (left empty by a detector that knows none)."""

    boxes: np.ndarray
    scores: np.ndarray
    categories: list[str]
    attributes: list[list[str]] = field(default_factory=list)

    def __post_init__(self):
        self.boxes = np.asarray(self.boxes, np.float64).reshape(-1, 4)
        self.scores = np.asarray(self.scores, np.float64).reshape(-1)
        self.attributes = self.attributes or [[] for _ in self.categories]
        lengths = {len(self.boxes), len(self.scores), len(self.categories), len(self.attributes)}
        if len(lengths) != 1:
            raise ValueError(f"boxes, scores, categories and attributes of one image differ in length: {sorted(lengths)}")

    def __len__(self) -> int:
        return len(self.scores)

    def __add__(self, other: Detections) -> Detections:
        return Detections(
            np.concatenate([self.boxes, other.boxes]), np.concatenate([self.scores, other.scores]),
            self.categories + other.categories, self.attributes + other.attributes,
        )  # fmt: skip

    def take(self, indices) -> Detections:
        return Detections(
            self.boxes[indices], self.scores[indices],
            [self.categories[i] for i in indices], [self.attributes[i] for i in indices],
        )  # fmt: skip


def select(found: Detections, image: Image, config) -> Detections:
    """The detections of `image` that become proposals, by falling score; never none (see `whole_image`).

    Boxes are clipped to the image, and those of less than a pixel or of no finite numbers left out; then come
    the score threshold, suppression within a class and across classes, and the best `max_regions`.
    """
    import torch
    from cpgr_kernels import batched_nms, nms

    found = replace(found, boxes=found.boxes.clip(0, [image.width, image.height] * 2))
    sides = found.boxes[:, 2:] - found.boxes[:, :2]
    with np.errstate(invalid="ignore"):
        good = (found.scores >= config.min_score) & np.isfinite(sides).all(1) & (sides >= 1).all(1)
    found = found.take(np.flatnonzero(good))
    if len(found):
        numbers = {name: i for i, name in enumerate(dict.fromkeys(found.categories))}
        classes = torch.tensor([numbers[name] for name in found.categories])
        boxes, scores = torch.from_numpy(found.boxes).float(), torch.from_numpy(found.scores).float()
        found = found.take(batched_nms(boxes, scores, classes, config.nms_iou).numpy())
    if len(found) and config.across_iou < 1:
        boxes, scores = torch.from_numpy(found.boxes).float(), torch.from_numpy(found.scores).float()
        found = found.take(nms(boxes, scores, config.across_iou).numpy())
    return found.take(np.arange(min(len(found), config.max_regions))) if len(found) else whole_image(image)


def whole_image(image: Image) -> Detections:
    """The one region of an image in which nothing is found, so that its expressions are not lost."""
    return Detections(np.array([[0, 0, image.width, image.height]]), np.zeros(1), [""])


def first_line(error: Exception) -> str:
    """What another library's error says, without the pages that some add."""
    return str(error).strip().partition("\n")[0][:300]
