"""Boxes x1, y1, x2, y2."""

from typing import NamedTuple

import torch
from torch import Tensor

from .precision import upcast


def box_area(boxes: Tensor) -> Tensor:
    """(x2 - x1) * (y2 - y1) of boxes [..., 4]: negative for boxes turned inside out, as in torchvision."""
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def box_iou(boxes1: Tensor, boxes2: Tensor, pairwise: bool = True) -> Tensor:
    """Intersection over union.

    Pairwise: boxes1 [..., N, 4] and boxes2 [..., M, 4] give [..., N, M]. Else boxes [..., 4] each give [...].
    Leading dimensions broadcast. The result is float64 if either is, else float32.

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
    pair = _Pair(boxes1, boxes2, pairwise)
    grad_area = -grad * (pair.inter / pair.union) / pair.union
    return pair.gradients(grad / pair.union - grad_area, grad_area)


def generalized_box_iou(boxes1: Tensor, boxes2: Tensor, pairwise: bool = True, eps: float = 0.0) -> Tensor:
    """Generalized intersection over union (Rezatofighi et al., CVPR 2019): IoU - (hull - union) / hull, in -1..1.

    The hull is the smallest box round both. Shapes, types, broadcasting and empties as in `box_iou`; the values of
    proper boxes (x2 >= x1, y2 >= y1) are torchvision's.

    eps: both denominators are kept at or above it, so that the value and the gradient of boxes without area are
    finite; pairs whose union is at least eps keep their value exactly. With eps = 0 degenerate boxes are taken as
    they are: where union or hull is zero, 0/0 = NaN. A NaN coordinate gives NaN with any eps.
    Gradient: where two edges tie, each box takes half; a denominator at eps is a constant.
    """
    pair = _Pair(boxes1, boxes2, pairwise)
    hull = pair.hull_size[..., 0] * pair.hull_size[..., 1]
    return pair.inter / _floored(pair.union, eps) - (hull - pair.union) / _floored(hull, eps)


def generalized_box_iou_backward(
    grad: Tensor, boxes1: Tensor, boxes2: Tensor, pairwise: bool, eps: float = 0.0
) -> tuple[Tensor, Tensor]:
    """The gradients of both boxes, which must have the same leading dimensions. Differentiable itself."""
    pair = _Pair(boxes1, boxes2, pairwise)
    hull = pair.hull_size[..., 0] * pair.hull_size[..., 1]
    under_inter, under_rest = _floored(pair.union, eps), _floored(hull, eps)
    by_union, by_hull = pair.inter / under_inter / under_inter, -(pair.union / under_rest / under_rest)
    if eps > 0:
        by_union = torch.where(pair.union < eps, 0, by_union)
        by_hull = torch.where(hull < eps, -1 / under_rest, by_hull)
    grad_area = grad * (1 / under_rest - by_union)
    return pair.gradients(grad / under_inter - grad_area, grad_area, grad * by_hull)


def _floored(denominator: Tensor, eps: float) -> Tensor:
    return denominator.clamp(min=eps) if eps > 0 else denominator


class _Pair:
    """What `box_iou` and `generalized_box_iou` have in common: the lengths of every pair, and the way back."""

    def __init__(self, boxes1: Tensor, boxes2: Tensor, pairwise: bool):
        a, b = upcast(boxes1), upcast(boxes2)
        if pairwise:
            a, b = a.unsqueeze(-2), b.unsqueeze(-3)
        self.a, self.b, self.pairwise = a, b, pairwise
        self.raw_size = torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])
        self.size = self.raw_size.clamp(min=0)
        self.hull_size = torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2])
        self.inter = self.size[..., 0] * self.size[..., 1]
        self.union = box_area(a) + box_area(b) - self.inter

    def gradients(self, grad_inter: Tensor, grad_area: Tensor, grad_hull: Tensor | None = None):
        """The gradients of both boxes from those of the intersection, of an area and of the hull."""
        a, b = self.a, self.b
        # A side's gradient is the other side's length; an intersection of length zero still passes it, as clamp does.
        grad_size = torch.where(self.raw_size >= 0, grad_inter.unsqueeze(-1) * self.size.flip(-1), 0)
        # The share of the first box in an edge of the intersection; in an edge of the hull it has the rest.
        low = (a[..., :2] > b[..., :2]) + 0.5 * (a[..., :2] == b[..., :2])
        high = (a[..., 2:] < b[..., 2:]) + 0.5 * (a[..., 2:] == b[..., 2:])

        def gradient_of(box, low_share, high_share):
            spread = grad_area.unsqueeze(-1) * (box[..., 2:] - box[..., :2]).flip(-1)
            lower, upper = -spread - grad_size * low_share, spread + grad_size * high_share
            if grad_hull is not None:
                grad_hull_size = grad_hull.unsqueeze(-1) * self.hull_size.flip(-1)
                lower = lower - grad_hull_size * (1 - low_share)
                upper = upper + grad_hull_size * (1 - high_share)
            return torch.cat([lower, upper], dim=-1)

        grad1, grad2 = gradient_of(a, low, high), gradient_of(b, 1 - low, 1 - high)
        return (grad1.sum(-2), grad2.sum(-3)) if self.pairwise else (grad1, grad2)


class BoxMatch(NamedTuple):
    """The best partner of every box, both ways: see `box_match`."""

    iou1: Tensor  # [..., N]
    index1: Tensor  # [..., N], int64, into boxes2
    iou2: Tensor  # [..., M]
    index2: Tensor  # [..., M], int64, into boxes1


def box_match(boxes1: Tensor, boxes2: Tensor) -> BoxMatch:
    """For every box its best IoU with a box of the other side, and that box's index; both ways.

    boxes1 [..., N, 4] and boxes2 [..., M, 4]; leading dimensions broadcast. Values are those of `box_iou`.

    Ties go to the lowest index; a box that overlaps no other has IoU 0, with the first. A NaN IoU (0/0, or a NaN
    coordinate) is passed over. A box all of whose IoUs are NaN, or with no box on the other side, has IoU 0 and
    index -1.
    Gradient: that of the IoU of each box with the one partner its index names; none where the index is -1.
    """
    iou = box_iou(boxes1, boxes2)
    return BoxMatch(*_best(iou), *_best(iou.mT))


def _best(iou: Tensor) -> tuple[Tensor, Tensor]:
    if iou.shape[-1] == 0:
        return iou.new_zeros(iou.shape[:-1]), iou.new_full(iou.shape[:-1], -1, dtype=torch.int64)
    index = torch.where(iou.isnan(), -1, iou).argmax(-1, keepdim=True)
    best = iou.gather(-1, index).squeeze(-1)
    nothing = best.isnan()
    return best.masked_fill(nothing, 0), index.squeeze(-1).masked_fill(nothing, -1)


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


class PaddedNms(NamedTuple):
    """What `nms_padded` returns."""

    indices: Tensor
    counts: Tensor


def nms_padded(
    boxes: Tensor,
    scores: Tensor,
    iou_threshold: float,
    max_output: int,
    idxs: Tensor | None = None,
    counts: Tensor | None = None,
    score_threshold: float | None = None,
) -> PaddedNms:
    """`nms` of every image of boxes [B, N, 4] and scores [B, N], or `batched_nms` by idxs [B, N], in a fixed size.

    Of image b the first counts[b] boxes take part (None: all; held between 0 and N), and of these the ones with
    scores > score_threshold (None: all; a NaN score is not above). Returns the first max_output indices into the
    image's N that stay, then -1: [B, max_output], and how many they are: [B], both int64.
    """
    batch, count = scores.shape
    indices = torch.full((batch, max_output), -1, dtype=torch.int64, device=boxes.device)
    kept = torch.zeros(batch, dtype=torch.int64, device=boxes.device)
    for b in range(batch):
        real = torch.ones(count, dtype=torch.bool, device=boxes.device)
        if counts is not None:
            real = torch.arange(count, device=boxes.device) < counts[b]
        if score_threshold is not None:
            real = real & (upcast(scores[b]) > score_threshold)
        members = real.nonzero().squeeze(1)
        if idxs is None:
            keep = nms(boxes[b][members], scores[b][members], iou_threshold)
        else:
            keep = batched_nms(boxes[b][members], scores[b][members], idxs[b][members], iou_threshold)
        keep = members[keep[:max_output]]
        indices[b, : len(keep)] = keep
        kept[b] = len(keep)
    return PaddedNms(indices, kept)
