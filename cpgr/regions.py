"""Boxes, frames and attention cells: the geometry every part shares.

A box is x1, y1, x2, y2 in pixels of the original image, corners, right and bottom edge exclusive, unless a
name says otherwise (`xywh`, `normalized`, `cxcywh`). A frame is the square a network sees.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


def xywh_to_xyxy(box):
    x, y, w, h = box
    return [x, y, x + w, y + h]


def xyxy_to_xywh(box):
    x1, y1, x2, y2 = box
    return [x1, y1, x2 - x1, y2 - y1]


def xyxy_to_cxcywh(boxes: torch.Tensor) -> torch.Tensor:
    """[..., 4] corners -> centre and size."""
    x1, y1, x2, y2 = boxes.unbind(-1)
    return torch.stack([(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1], -1)


def cxcywh_to_xyxy(boxes: torch.Tensor) -> torch.Tensor:
    """[..., 4] centre and size -> corners."""
    cx, cy, w, h = boxes.unbind(-1)
    return torch.stack([cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2], -1)


def clip_box(box, width: int, height: int) -> list[float] | None:
    """The part of `box` inside the image, or None where nothing of it is (or it is not finite)."""
    x1, y1, x2, y2 = (float(v) for v in box)
    if not all(abs(v) < float("inf") for v in (x1, y1, x2, y2)):
        return None
    x1, y1, x2, y2 = max(x1, 0.0), max(y1, 0.0), min(x2, float(width)), min(y2, float(height))
    return [x1, y1, x2, y2] if x2 > x1 and y2 > y1 else None


@dataclass(frozen=True)
class Frame:
    """How an image of `width` x `height` pixels lies in a network's square input of `size` pixels.

    `letterbox` keeps the aspect: the long side becomes `size`, the rest is padding shared by both sides
    (TransVG's evaluation geometry); `squash` stretches each side to `size` (BLIP-2's).
    """

    size: int
    width: int
    height: int
    mode: str = "letterbox"

    @property
    def scale(self) -> tuple[float, float]:
        if self.mode == "squash":
            return self.size / self.width, self.size / self.height
        ratio = self.size / max(self.width, self.height)
        return ratio, ratio

    @property
    def content(self) -> tuple[int, int, int, int]:
        """Left, top, width, height of the picture inside the frame, whole pixels."""
        if self.mode == "squash":
            return 0, 0, self.size, self.size
        sx, sy = self.scale
        width, height = max(1, round(self.width * sx)), max(1, round(self.height * sy))
        return (self.size - width) // 2, (self.size - height) // 2, width, height

    def to_frame(self, boxes: torch.Tensor) -> torch.Tensor:
        """[..., 4] original pixels -> frame pixels."""
        left, top, width, height = self.content
        ratio = boxes.new_tensor([width / self.width, height / self.height] * 2)
        return boxes * ratio + boxes.new_tensor([left, top, left, top])

    def to_image(self, boxes: torch.Tensor) -> torch.Tensor:
        """[..., 4] frame pixels -> original pixels, clamped to the image."""
        left, top, width, height = self.content
        ratio = boxes.new_tensor([self.width / width, self.height / height] * 2)
        back = (boxes - boxes.new_tensor([left, top, left, top])) * ratio
        limit = back.new_tensor([self.width, self.height, self.width, self.height])
        return torch.minimum(back.clamp(min=0), limit)


def cell_coverage(boxes: torch.Tensor, size: int, grid: int) -> torch.Tensor:
    """The share of every cell that every box covers.

    boxes [N, 4] in frame pixels, a frame of `size` pixels cut into `grid` x `grid` cells, row-major.
    Returns [N, grid * grid] in 0..1.
    """
    step = size / grid
    low = torch.arange(grid, dtype=boxes.dtype, device=boxes.device) * step
    x1, y1, x2, y2 = boxes[:, :, None].unbind(1)
    across = (torch.minimum(x2, low + step) - torch.maximum(x1, low)).clamp(min=0) / step
    down = (torch.minimum(y2, low + step) - torch.maximum(y1, low)).clamp(min=0) / step
    return (down[:, :, None] * across[:, None, :]).flatten(1)
