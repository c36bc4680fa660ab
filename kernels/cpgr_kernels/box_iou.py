"""Intersection over union of boxes. What it means is in `reference.box_iou`."""

from . import reference
from .overlap import Overlap

_measure = Overlap("box_iou", reference.box_iou, reference.box_iou_backward)


def box_iou(boxes1, boxes2, *, pairwise: bool = True, out=None, backend: str | None = None):
    """Intersection over union of boxes x1, y1, x2, y2, with gradient.

    Args:
        boxes1: [..., N, 4] (pairwise) or [..., 4], of any float or integer type.
        boxes2: [..., M, 4] (pairwise) or [..., 4]; leading dimensions broadcast against those of boxes1.
        pairwise: every box of boxes1 against every box of boxes2, else one against one.
        out: contiguous tensor or array of the result's shape and type to write to and return. A large result into
            memory that was written to before takes a fraction of the time that fresh memory takes. No gradient.
        backend: "cpp", "cuda", "reference", or None for the best that can run.

    Returns:
        [..., N, M] (pairwise) or [...]: float64 if either is, else float32. Two boxes of area zero, and a NaN
        coordinate, give NaN, as in torchvision.

    Example:
        >>> box_iou(torch.tensor([[0., 0., 2., 2.]]), torch.tensor([[1., 1., 3., 3.], [5., 5., 6., 6.]]))
        tensor([[0.1429, 0.0000]])
    """
    return _measure(boxes1, boxes2, pairwise, out, backend)
