"""Non-maximum suppression. What it means is in `reference.nms` and `reference.batched_nms`."""

import torch
from torch import Tensor

from . import dispatch, native, reference
from .arguments import check_boxes, check_device, check_length, check_numbers, from_numpy, plain
from .library import define


def nms(boxes, scores, iou_threshold: float, *, backend: str | None = None):
    """Keep the best boxes that do not overlap.

    Args:
        boxes: [N, 4], x1, y1, x2, y2, of any float or integer type; half precision is computed in float32.
        scores: [N]; equal scores keep their order of appearance, NaN comes first.
        iou_threshold: a box falls if its IoU with a better one that stays is above this.
        backend: "cpp", "cuda", "reference", or None for the best that can run.

    Returns:
        int64 indices of the boxes that stay, in descending order of scores; torchvision's exactly.

    Example:
        >>> boxes = torch.tensor([[0., 0., 10., 10.], [1., 1., 10., 10.], [20., 20., 30., 30.]])
        >>> nms(boxes, torch.tensor([0.6, 0.9, 0.3]), 0.5)
        tensor([1, 2])
    """
    if isinstance(boxes, Tensor) and isinstance(scores, Tensor):
        return _nms_op(boxes, scores, iou_threshold, backend)
    boxes, scores = from_numpy("nms", boxes=boxes, scores=scores)
    return _nms_op(boxes, scores, iou_threshold, backend).numpy()


def batched_nms(boxes, scores, idxs, iou_threshold: float, *, backend: str | None = None):
    """`nms` within each class: boxes of different `idxs` ([N], integers of any value) never make each other fall.

    The indices of all classes come together, in descending order of scores. See `nms` for the other arguments.
    """
    if isinstance(boxes, Tensor) and isinstance(scores, Tensor) and isinstance(idxs, Tensor):
        return _batched_nms_op(boxes, scores, idxs, iou_threshold, backend)
    boxes, scores, idxs = from_numpy("batched_nms", boxes=boxes, scores=scores, idxs=idxs)
    return _batched_nms_op(boxes, scores, idxs, iou_threshold, backend).numpy()


def _check(op: str, boxes: Tensor, scores: Tensor, idxs: Tensor | None = None) -> None:
    check_boxes(op, "boxes", boxes, dims=2)
    check_length(op, "scores", scores, boxes.shape[0])
    check_numbers(op, "scores", scores)
    check_device(op, boxes=boxes, scores=scores)
    if idxs is not None:
        check_length(op, "idxs", idxs, boxes.shape[0])
        check_device(op, boxes=boxes, idxs=idxs)
        if idxs.is_floating_point() or idxs.is_complex():
            raise TypeError(f"{op}: idxs must be integers, got {idxs.dtype}")


def _nms(boxes: Tensor, scores: Tensor, iou_threshold: float, backend: str | None = None) -> Tensor:
    _check("nms", boxes, scores)
    run = dispatch.choose("nms", boxes.device.type, backend)
    return run(plain(boxes), plain(scores), iou_threshold)


def _batched_nms(
    boxes: Tensor, scores: Tensor, idxs: Tensor, iou_threshold: float, backend: str | None = None
) -> Tensor:
    _check("batched_nms", boxes, scores, idxs)
    run = dispatch.choose("batched_nms", boxes.device.type, backend)
    return run(plain(boxes), plain(scores), idxs.long().contiguous(), iou_threshold)


def _nms_fake(boxes, scores, iou_threshold, backend=None):
    _check("nms", boxes, scores)
    return boxes.new_empty(torch.library.get_ctx().new_dynamic_size(), dtype=torch.int64)


def _batched_nms_fake(boxes, scores, idxs, iou_threshold, backend=None):
    _check("batched_nms", boxes, scores, idxs)
    return boxes.new_empty(torch.library.get_ctx().new_dynamic_size(), dtype=torch.int64)


def _cpp(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    return _run_cpp(boxes, scores, 0, iou_threshold)


def _cpp_batched(boxes: Tensor, scores: Tensor, idxs: Tensor, iou_threshold: float) -> Tensor:
    return _run_cpp(boxes, scores, idxs.data_ptr(), iou_threshold)


def _run_cpp(boxes: Tensor, scores: Tensor, idxs: int, iou_threshold: float) -> Tensor:
    module = native.cpu()[0]
    count = boxes.shape[0]
    keep = torch.empty(count, dtype=torch.int64)
    kept = module.nms(
        boxes.dtype is torch.float64,
        scores.dtype is torch.float64,
        boxes.data_ptr(),
        scores.data_ptr(),
        idxs,
        count,
        iou_threshold,
        keep.data_ptr(),
    )
    return keep.resize_(kept)  # shorter, in place: cheaper than a view, and none


def _cuda(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    return _run_cuda(boxes, scores, 0, iou_threshold)


def _cuda_batched(boxes: Tensor, scores: Tensor, idxs: Tensor, iou_threshold: float) -> Tensor:
    return _run_cuda(boxes, scores, idxs.data_ptr(), iou_threshold)


def _run_cuda(boxes: Tensor, scores: Tensor, idxs: int, iou_threshold: float) -> Tensor:
    module = native.cuda()[0]
    count = boxes.shape[0]
    with torch.cuda.device(boxes.device):
        order = scores.sort(stable=True, descending=True).indices
        scratch = boxes.new_empty(module.nms_words(count), dtype=torch.int64)
        keep, kept = torch.empty_like(order), order.new_empty(1)
        module.nms(
            boxes.dtype is torch.float64,
            boxes.data_ptr(),
            order.data_ptr(),
            idxs,
            count,
            iou_threshold,
            scratch.data_ptr(),
            keep.data_ptr(),
            kept.data_ptr(),
            *native.launch_place(boxes),
        )
        return keep.narrow(0, 0, int(kept))


dispatch.register("nms", cpp=_cpp, cuda=_cuda, reference=reference.nms)
dispatch.register("batched_nms", cpp=_cpp_batched, cuda=_cuda_batched, reference=reference.batched_nms)

_nms_op = define("nms(Tensor boxes, Tensor scores, float iou_threshold, str? backend=None) -> Tensor", _nms, _nms_fake)
_batched_nms_op = define(
    "batched_nms(Tensor boxes, Tensor scores, Tensor idxs, float iou_threshold, str? backend=None) -> Tensor",
    _batched_nms,
    _batched_nms_fake,
)
