"""Generalized intersection over union. What it means is in `reference.generalized_box_iou`."""

from . import reference
from .overlap import Overlap

_measure = Overlap(
    "generalized_box_iou", reference.generalized_box_iou, reference.generalized_box_iou_backward, option="eps"
)


def generalized_box_iou(
    boxes1, boxes2, *, pairwise: bool = True, eps: float = 0.0, out=None, backend: str | None = None
):
    """Generalized IoU of boxes x1, y1, x2, y2 (Rezatofighi et al., CVPR 2019, algorithm 1), with gradient.

    IoU - (hull - union) / hull, where the hull is the smallest box round both: from 1 down to -1, and it goes on
    telling near from far where boxes do not overlap. As a loss: `1 - generalized_box_iou(..., pairwise=False,
    eps=1e-7)`.

    Args:
        boxes1: [..., N, 4] (pairwise) or [..., 4], of any float or integer type.
        boxes2: [..., M, 4] (pairwise) or [..., 4]; leading dimensions broadcast against those of boxes1.
        pairwise: every box of boxes1 against every box of boxes2, else one against one.
        eps: the denominators union and hull are kept at or above this, in square units of the coordinates, so that
            value and gradient stay finite where both boxes have no area; larger unions keep their value exactly.
            0, the default, keeps nothing: 0/0 is NaN, as in torchvision.
        out: contiguous tensor or array of the result's shape and type to write to and return. No gradient.
        backend: "cpp", "cuda", "reference", or None for the best that can run.

    Returns:
        [..., N, M] (pairwise) or [...]: float64 if either is, else float32; torchvision's values for proper boxes. A
        NaN coordinate gives NaN.

    Example:
        >>> generalized_box_iou(torch.tensor([[0., 0., 1., 1.]]), torch.tensor([[0., 0., 1., 1.], [2., 0., 3., 1.]]))
        tensor([[ 1.0000, -0.3333]])
    """
    eps = float(eps)
    if not 0 <= eps < float("inf"):
        raise ValueError(f"generalized_box_iou: eps must be at least 0 and finite, got {eps}")
    return _measure(boxes1, boxes2, pairwise, out, backend, eps)
