"""Boxes x1, y1, x2, y2."""

import torch
from torch import Tensor

from .precision import upcast


def box_area(boxes: Tensor) -> Tensor:
    """(x2 - x1) * (y2 - y1) of boxes [..., 4]: negative for boxes turned inside out, as in torchvision."""
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def box_iou(boxes1: Tensor, boxes2: Tensor, pairwise: bool = True) -> Tensor:
    """Intersection over union.

    Pairwise: boxes1 [..., N, 4] and boxes2 [..., M, 4] give [..., N, M]. Else boxes [..., 4] each give [...].
    Leading dimensions broadcast. The result is float64 if both are, else float32.

    Degenerate boxes are taken as they are: two boxes of area zero give 0/0 = NaN, boxes turned inside out have a
    negative area. A NaN coordinate gives NaN. N, M or a leading dimension of zero gives an empty result.
    Gradient: where two edges tie, each box takes half.
    """
    boxes1, boxes2 = upcast(boxes1), upcast(boxes2)
    if pairwise:
        boxes1, boxes2 = boxes1.unsqueeze(-2), boxes2.unsqueeze(-3)
    top_left = torch.maximum(boxes1[..., :2], boxes2[..., :2])
    bottom_right = torch.minimum(boxes1[..., 2:], boxes2[..., 2:])
    width, height = (bottom_right - top_left).clamp(min=0).unbind(-1)
    inter = width * height
    return inter / (box_area(boxes1) + box_area(boxes2) - inter)


def box_iou_backward(grad: Tensor, boxes1: Tensor, boxes2: Tensor, pairwise: bool) -> tuple[Tensor, Tensor]:
    """The gradients of both boxes, which must have the same leading dimensions. Differentiable itself."""
    a, b = upcast(boxes1), upcast(boxes2)
    if pairwise:
        a, b = a.unsqueeze(-2), b.unsqueeze(-3)
    raw_size = torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])
    size = raw_size.clamp(min=0)
    inter = size[..., 0] * size[..., 1]
    union = box_area(a) + box_area(b) - inter
    grad_area = -grad * (inter / union) / union
    grad_inter = grad / union - grad_area
    # A side's gradient is the other side's length; an intersection of length zero still passes it, as clamp does.
    grad_size = torch.where(raw_size >= 0, grad_inter.unsqueeze(-1) * size.flip(-1), 0)
    low = (a[..., :2] > b[..., :2]) + 0.5 * (a[..., :2] == b[..., :2])
    high = (a[..., 2:] < b[..., 2:]) + 0.5 * (a[..., 2:] == b[..., 2:])

    def gradient_of(box, low_share, high_share):
        spread = grad_area.unsqueeze(-1) * (box[..., 2:] - box[..., :2]).flip(-1)
        return torch.cat([-spread - grad_size * low_share, spread + grad_size * high_share], dim=-1)

    grad1, grad2 = gradient_of(a, low, high), gradient_of(b, 1 - low, 1 - high)
    return (grad1.sum(-2), grad2.sum(-3)) if pairwise else (grad1, grad2)


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """Indices (int64) of the boxes that stay, in descending order of scores.

    boxes [N, 4], scores [N]. From the best box down, a box that stays makes every later one fall whose IoU with it is
    above the threshold; the comparison is made in float64. Equal scores keep their order of appearance; NaN scores
    come first. A box with a NaN coordinate neither falls nor makes others fall. N = 0 gives an empty result.
    """
    order = scores.sort(stable=True, descending=True).indices
    boxes = boxes[order]
    stays = torch.ones(len(order), dtype=torch.bool, device=boxes.device)
    for i in range(len(order)):
        if stays[i]:
            overlap = box_iou(boxes[i], boxes[i + 1 :], pairwise=False)
            stays[i + 1 :] &= ~(overlap.double() > iou_threshold)
    return order[stays]


def batched_nms(boxes: Tensor, scores: Tensor, idxs: Tensor, iou_threshold: float) -> Tensor:
    """`nms` among the boxes of the same entry in idxs [N]; the indices of all together, in descending order of scores.

    Each class is suppressed by its own boxes as they are (torchvision also has a faster way, which shifts the boxes
    of each class apart and so rounds them).
    """
    stays = torch.zeros(len(scores), dtype=torch.bool, device=boxes.device)
    for idx in idxs.unique():
        members = (idxs == idx).nonzero().squeeze(1)
        stays[members[nms(boxes[members], scores[members], iou_threshold)]] = True
    order = scores.sort(stable=True, descending=True).indices
    return order[stays[order]]
