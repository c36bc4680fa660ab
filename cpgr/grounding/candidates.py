"""The regions MAttNet chooses among, where they lie in their image and what lies around them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from cpgr_kernels import box_iou

from ..data.records import Image
from ..labels import Label
from ..regions import Frame

AROUND = 5  # neighbours of the same category whose place is read, and as many of any whose look is read too
SAME_OBJECT = 0.5  # two boxes with a greater IoU are of one object
NONE = -1


@dataclass
class Places:
    """Where R regions lie.

    regions [R, 4] corners in 0..1 of the frame; location [R, 5] corners and area as shares of the image; alike [R, 25] the place of the
    nearest five regions of the same category, as seen from the region (zeros where there are fewer); context [R, 5] indices of its
    nearest five neighbours among the candidates, those of other categories first (-1: none); context_location [R, 5, 5] their places.
    """

    regions: torch.Tensor
    location: torch.Tensor
    alike: torch.Tensor
    context: torch.Tensor
    context_location: torch.Tensor

    def take(self, index) -> Places:
        return Places(*(value[index] for value in vars(self).values()))

    @staticmethod
    def cat(parts: Sequence[Places]) -> Places:
        return Places(*(torch.cat(values) for values in zip(*(vars(part).values() for part in parts), strict=True)))


@dataclass
class Candidates:
    """The proposals of one image: boxes [R, 4] in original pixels, their classes and attributes, and their places."""

    image: Image
    size: int
    boxes: torch.Tensor
    categories: list[str]
    attributes: list[list[str]]

    def __post_init__(self):
        self.places = self.place(self.boxes, self.categories)

    @classmethod
    def of(cls, image: Image, rows: Sequence[Label], size: int) -> Candidates:
        """The candidates of proposal rows, for a network whose frame has `size` pixels."""
        boxes = torch.tensor([row.box for row in rows], dtype=torch.float32).reshape(-1, 4)
        return cls(image, size, boxes, [row.category for row in rows], [row.attributes for row in rows])

    def place(self, boxes: torch.Tensor, categories: Sequence[str]) -> Places:
        """Where boxes [N, 4] in original pixels lie among the candidates; a candidate that is the same object is no neighbour."""
        width, height = self.image.width, self.image.height
        shares = boxes / boxes.new_tensor([width, height] * 2)
        area = (shares[:, 2:] - shares[:, :2]).prod(1, keepdim=True)
        alike = torch.zeros(len(boxes), AROUND, 5)
        context = torch.full((len(boxes), AROUND), NONE)
        context_location = torch.zeros(len(boxes), AROUND, 5)
        far = torch.cdist(_centres(boxes), _centres(self.boxes))
        order, other = far.argsort(dim=1, stable=True).tolist(), (box_iou(boxes, self.boxes) < SAME_OBJECT).tolist()
        for row, category in enumerate(categories):
            near = [i for i in order[row] if other[row][i]]
            same = [i for i in near if self.categories[i] == category]
            seen = ([i for i in near if self.categories[i] != category] + same)[:AROUND]
            alike[row, : len(same[:AROUND])] = _seen_from(boxes[row], self.boxes[same[:AROUND]])
            context[row, : len(seen)] = torch.tensor(seen, dtype=torch.long)
            context_location[row, : len(seen)] = _seen_from(boxes[row], self.boxes[seen])
        framed = Frame(self.size, width, height).to_frame(boxes) / self.size
        return Places(framed, torch.cat([shares, area], 1), alike.flatten(1), context, context_location)


def _centres(boxes: torch.Tensor) -> torch.Tensor:
    return (boxes[:, :2] + boxes[:, 2:]) / 2


def _seen_from(box: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """Corners from the box's centre and area, in the box's own sides and area: [4], [N, 4] -> [N, 5]."""
    sides = (box[2:] - box[:2]).clamp(min=1e-3)
    corners = (others - ((box[:2] + box[2:]) / 2).repeat(2)) / sides.repeat(2)
    area = (others[:, 2:] - others[:, :2]).prod(1, keepdim=True) / sides.prod()
    return torch.cat([corners, area], 1)
