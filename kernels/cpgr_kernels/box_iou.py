"""Intersection over union of boxes. What it means is in `reference.box_iou`."""

import torch
from torch import Tensor

from . import dispatch, native, reference
from .arguments import check_boxes, check_device, from_numpy, plain
from .library import define, differentiable


def box_iou(boxes1, boxes2, *, pairwise: bool = True, backend: str | None = None):
    """Intersection over union of boxes x1, y1, x2, y2, with gradient.

    Args:
        boxes1: [..., N, 4] (pairwise) or [..., 4], of any float or integer type.
        boxes2: [..., M, 4] (pairwise) or [..., 4]; leading dimensions broadcast against those of boxes1.
        pairwise: every box of boxes1 against every box of boxes2, else one against one.
        backend: "cpp", "cuda", "reference", or None for the best that can run.

    Returns:
        [..., N, M] (pairwise) or [...]: float64 if either is, else float32. Two boxes of area zero, and a NaN
        coordinate, give NaN, as in torchvision.

    Example:
        >>> box_iou(torch.tensor([[0., 0., 2., 2.]]), torch.tensor([[1., 1., 3., 3.], [5., 5., 6., 6.]]))
        tensor([[0.1429, 0.0000]])
    """
    if not (isinstance(boxes1, Tensor) and isinstance(boxes2, Tensor)):
        boxes1, boxes2 = from_numpy("box_iou", boxes1=boxes1, boxes2=boxes2)
        return box_iou(boxes1, boxes2, pairwise=pairwise, backend=backend).numpy()
    if boxes1.dtype is not boxes2.dtype:
        common = torch.promote_types(boxes1.dtype, boxes2.dtype)
        boxes1, boxes2 = boxes1.to(common), boxes2.to(common)
    kept = 2 if pairwise else 1
    if boxes1.shape[:-kept] != boxes2.shape[:-kept]:
        boxes1, boxes2 = _broadcast(boxes1, boxes2, kept)
    return _box_iou_op(boxes1, boxes2, bool(pairwise), backend)


def _broadcast(boxes1: Tensor, boxes2: Tensor, kept: int) -> tuple[Tensor, Tensor]:
    try:
        leading = torch.broadcast_shapes(boxes1.shape[:-kept], boxes2.shape[:-kept])
    except RuntimeError:
        raise ValueError(
            f"box_iou: leading dimensions of boxes1 {list(boxes1.shape)} and boxes2 {list(boxes2.shape)} do not match"
        ) from None
    return boxes1.expand(*leading, *boxes1.shape[-kept:]), boxes2.expand(*leading, *boxes2.shape[-kept:])


def _check(boxes1: Tensor, boxes2: Tensor, pairwise: bool) -> torch.Size:
    """Check the arguments of the op and return the shape of the result."""
    check_boxes("box_iou", "boxes1", boxes1)
    check_boxes("box_iou", "boxes2", boxes2)
    check_device("box_iou", boxes1=boxes1, boxes2=boxes2)
    kept = 2 if pairwise else 1
    leading = boxes1.shape[:-kept]
    if boxes1.dim() < kept or boxes2.dim() < kept or leading != boxes2.shape[:-kept]:
        wanted = "[..., N, 4] and [..., M, 4]" if pairwise else "both [..., 4]"
        raise ValueError(
            f"box_iou: boxes1 and boxes2 must be {wanted} with pairwise={pairwise}, "
            f"got {list(boxes1.shape)} and {list(boxes2.shape)}"
        )
    if boxes1.dtype is not boxes2.dtype:
        raise TypeError(f"box_iou: boxes1 is {boxes1.dtype} and boxes2 is {boxes2.dtype}")
    return leading + (boxes1.shape[-2], boxes2.shape[-2]) if pairwise else leading


def _dtype(boxes: Tensor) -> torch.dtype:
    return torch.float64 if boxes.dtype is torch.float64 else torch.float32


def _box_iou(boxes1: Tensor, boxes2: Tensor, pairwise: bool, backend: str | None = None) -> Tensor:
    shape = _check(boxes1, boxes2, pairwise)
    run = dispatch.choose("box_iou", boxes1.device.type, backend)
    return run(plain(boxes1), plain(boxes2), pairwise, shape)


def _box_iou_fake(boxes1, boxes2, pairwise, backend=None):
    return boxes1.new_empty(_check(boxes1, boxes2, pairwise), dtype=_dtype(boxes1))


def _backward(
    grad: Tensor, boxes1: Tensor, boxes2: Tensor, pairwise: bool, backend: str | None = None
) -> tuple[Tensor, Tensor]:
    shape = _check(boxes1, boxes2, pairwise)
    if grad.shape != shape or grad.device != boxes1.device:
        raise ValueError(f"box_iou_backward: grad must be {list(shape)} on {boxes1.device}, got {list(grad.shape)}")
    run = dispatch.choose("box_iou_backward", boxes1.device.type, backend)
    grad = grad.to(_dtype(boxes1)).contiguous()
    grad1, grad2 = run(grad, plain(boxes1), plain(boxes2), pairwise)
    return grad1.to(boxes1.dtype).contiguous(), grad2.to(boxes2.dtype).contiguous()


def _backward_fake(grad, boxes1, boxes2, pairwise, backend=None):
    return boxes1.new_empty(boxes1.shape), boxes2.new_empty(boxes2.shape)


def _sizes(boxes1: Tensor, boxes2: Tensor, pairwise: bool) -> tuple[str, tuple[int, ...]]:
    """The suffix of the kernel's name, and the sizes it takes."""
    if not pairwise:
        return "_pairs", (boxes1.numel() // 4,)
    rows, count = boxes1.shape[-2], boxes2.shape[-2]
    return "", (boxes1.shape[:-2].numel(), rows, count)


def _run(module, place, boxes1: Tensor, boxes2: Tensor, pairwise: bool, shape: torch.Size) -> Tensor:
    out = boxes1.new_empty(shape)
    suffix, sizes = _sizes(boxes1, boxes2, pairwise)
    kernel = getattr(module, "box_iou" + suffix)
    wide = boxes1.dtype is torch.float64
    kernel(wide, boxes1.data_ptr(), boxes2.data_ptr(), *sizes, out.data_ptr(), *place)
    return out


def _run_backward(module, place, grad: Tensor, boxes1: Tensor, boxes2: Tensor, pairwise: bool):
    grad1, grad2 = torch.empty_like(boxes1), torch.empty_like(boxes2)
    suffix, sizes = _sizes(boxes1, boxes2, pairwise)
    kernel = getattr(module, f"box_iou{suffix}_backward")
    addresses = grad.data_ptr(), boxes1.data_ptr(), boxes2.data_ptr()
    kernel(boxes1.dtype is torch.float64, *addresses, *sizes, grad1.data_ptr(), grad2.data_ptr(), *place)
    return grad1, grad2


def _cpp(*args):
    return _run(native.cpu()[0], (torch.get_num_threads(),), *args)


def _cpp_backward(*args):
    return _run_backward(native.cpu()[0], (torch.get_num_threads(),), *args)


def _cuda(boxes1, *args):
    with torch.cuda.device(boxes1.device):
        return _run(native.cuda()[0], native.launch_place(boxes1), boxes1, *args)


def _cuda_backward(grad, *args):
    with torch.cuda.device(grad.device):
        return _run_backward(native.cuda()[0], native.launch_place(grad), grad, *args)


def _reference(boxes1, boxes2, pairwise, shape):
    return reference.box_iou(boxes1, boxes2, pairwise)


dispatch.register("box_iou", cpp=_cpp, cuda=_cuda, reference=_reference)
dispatch.register(
    "box_iou_backward", cpp=_cpp_backward, cuda=_cuda_backward, reference=reference.box_iou_backward
)

_backward_op = define(
    "box_iou_backward(Tensor grad, Tensor boxes1, Tensor boxes2, bool pairwise, str? backend=None)"
    " -> (Tensor, Tensor)",
    _backward,
    _backward_fake,
)


def _setup_context(ctx, inputs, output):
    ctx.save_for_backward(inputs[0], inputs[1])
    ctx.pairwise, ctx.backend = inputs[2:]


def _gradient(ctx, grad):
    boxes1, boxes2 = ctx.saved_tensors
    if torch.is_grad_enabled():  # a second derivative is wanted: the reference is differentiable
        grads = reference.box_iou_backward(grad, boxes1, boxes2, ctx.pairwise)
    else:
        grads = _backward_op(grad, boxes1, boxes2, ctx.pairwise, ctx.backend)
    return *grads, None, None


_box_iou_op = differentiable(
    define(
        "box_iou(Tensor boxes1, Tensor boxes2, bool pairwise, str? backend=None) -> Tensor",
        _box_iou,
        _box_iou_fake,
    ),
    _setup_context,
    _gradient,
    tensors=2,
)
