"""The best partner of every box, without the matrix. What it means is in `reference.box_match`."""

import torch
from torch import Tensor

from . import dispatch, native, reference
from .arguments import check_boxes, check_device, from_numpy, plain
from .library import define, differentiable
from .overlap import broadcast_leading, computed_dtype
from .reference import BoxMatch


def box_match(boxes1, boxes2, *, backend: str | None = None) -> BoxMatch:
    """For every box its best IoU with a box of the other side, and which one that is; both ways at once.

    What `box_iou(boxes1, boxes2).max(-1)` and `.max(-2)` give, in O(N + M) memory, with gradient. Boxes are x1, y1,
    x2, y2.

    Args:
        boxes1: [..., N, 4], of any float or integer type.
        boxes2: [..., M, 4]; leading dimensions broadcast against those of boxes1.
        backend: "cpp", "cuda", "reference", or None for the best that can run.

    Returns:
        BoxMatch(iou1 [..., N], index1 [..., N], iou2 [..., M], index2 [..., M]). IoUs are float64 if either side is,
        else float32; indices are int64. Ties go to the lowest index. NaN IoUs are passed over; a box with no other
        has IoU 0 and index -1: mask by `index >= 0` before indexing. The gradient of an IoU flows to the box and its
        partner.

    Example:
        >>> truth = torch.tensor([[0., 0., 2., 2.], [5., 5., 6., 6.]])
        >>> match = box_match(torch.tensor([[0., 0., 2., 1.], [0., 0., 9., 9.]]), truth)
        >>> match.index1, match.iou2
        (tensor([0, 0]), tensor([0.5000, 0.0123]))
    """
    if not (isinstance(boxes1, Tensor) and isinstance(boxes2, Tensor)):
        boxes1, boxes2 = from_numpy("box_match", boxes1=boxes1, boxes2=boxes2)
        return BoxMatch(*(part.numpy() for part in box_match(boxes1, boxes2, backend=backend)))
    if boxes1.dtype is not boxes2.dtype:
        common = torch.promote_types(boxes1.dtype, boxes2.dtype)
        boxes1, boxes2 = boxes1.to(common), boxes2.to(common)
    if boxes1.shape[:-2] != boxes2.shape[:-2]:
        boxes1, boxes2 = broadcast_leading("box_match", boxes1, boxes2, 2)
    return BoxMatch(*_box_match_op(boxes1, boxes2, backend))


def _check(boxes1: Tensor, boxes2: Tensor) -> None:
    check_boxes("box_match", "boxes1", boxes1)
    check_boxes("box_match", "boxes2", boxes2)
    check_device("box_match", boxes1=boxes1, boxes2=boxes2)
    if boxes1.dim() < 2 or boxes2.dim() < 2 or boxes1.shape[:-2] != boxes2.shape[:-2]:
        raise ValueError(
            "box_match: boxes1 and boxes2 must be [..., N, 4] and [..., M, 4], "
            f"got {list(boxes1.shape)} and {list(boxes2.shape)}"
        )
    if boxes1.dtype is not boxes2.dtype:
        raise TypeError(f"box_match: boxes1 is {boxes1.dtype} and boxes2 is {boxes2.dtype}")


def _outputs(boxes1: Tensor, boxes2: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    values, indices = {"dtype": computed_dtype(boxes1)}, {"dtype": torch.int64}
    first, second = boxes1.shape[:-1], boxes2.shape[:-1]
    return (
        boxes1.new_empty(first, **values),
        boxes1.new_empty(first, **indices),
        boxes1.new_empty(second, **values),
        boxes1.new_empty(second, **indices),
    )


def _box_match(boxes1: Tensor, boxes2: Tensor, backend: str | None = None):
    _check(boxes1, boxes2)
    run = dispatch.choose("box_match", boxes1.device.type, backend)
    return run(plain(boxes1), plain(boxes2))


def _box_match_fake(boxes1, boxes2, backend=None):
    _check(boxes1, boxes2)
    return _outputs(boxes1, boxes2)


def _sizes(boxes1: Tensor, boxes2: Tensor) -> tuple[int, int, int]:
    return boxes1.shape[:-2].numel(), boxes1.shape[-2], boxes2.shape[-2]


def _cpp(boxes1: Tensor, boxes2: Tensor):
    outputs = _outputs(boxes1, boxes2)
    native.cpu()[0].box_match(
        boxes1.dtype is torch.float64,
        boxes1.data_ptr(),
        boxes2.data_ptr(),
        *_sizes(boxes1, boxes2),
        *(output.data_ptr() for output in outputs),
        torch.get_num_threads(),
    )
    return outputs


def _cuda(boxes1: Tensor, boxes2: Tensor):
    with torch.cuda.device(boxes1.device):
        outputs = _outputs(boxes1, boxes2)
        # One 64-bit key a box: the bits of its best IoU, then its partner's index.
        keys = boxes1.new_empty(boxes1.numel() // 4 + boxes2.numel() // 4, dtype=torch.int64)
        native.cuda()[0].box_match(
            boxes1.dtype is torch.float64,
            boxes1.data_ptr(),
            boxes2.data_ptr(),
            *_sizes(boxes1, boxes2),
            keys.data_ptr(),
            *(output.data_ptr() for output in outputs),
            *native.launch_place(boxes1),
        )
    return outputs


def _reference(boxes1: Tensor, boxes2: Tensor):
    return tuple(part.contiguous() for part in reference.box_match(boxes1, boxes2))


dispatch.register("box_match", cpp=_cpp, cuda=_cuda, reference=_reference)


def _setup_context(ctx, inputs, output):
    boxes1, boxes2, ctx.backend = inputs
    _, index1, _, index2 = output
    ctx.save_for_backward(boxes1, boxes2, index1, index2)


def _gradient(ctx, grad1, _, grad2, __):
    """The pairs that were matched, one by one, and their gradients gathered where the partners are."""
    boxes1, boxes2, index1, index2 = ctx.saved_tensors
    if boxes1.shape[-2] == 0 or boxes2.shape[-2] == 0:
        return torch.zeros_like(boxes1), torch.zeros_like(boxes2), None
    wide1, wide2 = reference.upcast(boxes1), reference.upcast(boxes2)
    own1, other2 = _pair_gradients(grad1, wide1, wide2, index1, ctx.backend)
    own2, other1 = _pair_gradients(grad2, wide2, wide1, index2, ctx.backend)
    return (own1 + other1).to(boxes1.dtype), (own2 + other2).to(boxes2.dtype), None


def _pair_gradients(grad: Tensor, boxes: Tensor, others: Tensor, index: Tensor, backend: str | None):
    matched = (index >= 0).unsqueeze(-1)
    place = index.clamp(min=0).unsqueeze(-1).expand(*index.shape, 4)
    partners = others.gather(-2, place)
    if torch.is_grad_enabled():  # a second derivative is wanted: the reference is differentiable
        own, other = reference.box_iou_backward(grad, boxes, partners, False)
    else:
        own, other = torch.ops.cpgr_kernels.box_iou_backward(grad, boxes, partners, False, backend)
    # An unmatched box's IoU is NaN: its gradient must not be, not even times zero.
    own, other = torch.where(matched, own, 0), torch.where(matched, other, 0)
    return own, own.new_zeros(others.shape).scatter_add(-2, place, other)


_box_match_op = differentiable(
    define(
        "box_match(Tensor boxes1, Tensor boxes2, str? backend=None) -> (Tensor, Tensor, Tensor, Tensor)",
        _box_match,
        _box_match_fake,
    ),
    _setup_context,
    _gradient,
    tensors=2,
)
