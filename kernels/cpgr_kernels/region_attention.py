"""What of an attention map lies in a box. `reference.region_attention` says what it means."""

import math

import torch
from torch import Tensor

from . import dispatch, native, reference
from .arguments import check_boxes, check_device, check_numbers, from_numpy
from .library import define, differentiable


def region_attention(
    maps, boxes, grid, gamma: float = 0.5, size=(1.0, 1.0), *, least_area: float = 1e-6, backend: str | None = None
):
    """The mass of attention maps in boxes, over the boxes' area to the power gamma, with gradient to the maps.

    Args:
        maps: [..., Q, rows * columns], the cells of the grid row by row.
        boxes: [..., R, 4], x1, y1, x2, y2 in a frame that the grid fills. Leading dimensions broadcast against those of
            maps. Boxes get no gradient.
        grid: (rows, columns).
        gamma: 0 is the mass inside, 1 the density; between them, large boxes are held back less.
        size: (width, height) of the frame, in the units of the boxes.
        least_area: boxes count as at least this share of the frame, so that none is divided by almost nothing.
        backend: "cpp", "triton", "reference", or None for the best that can run.

    Returns:
        [..., Q, R], float64 if either is, else float32. A cell counts by the share of it that the box covers; what lies
        outside the frame holds no cell but counts as area.

    Example:
        >>> region_attention(torch.full((1, 4), 0.25), torch.tensor([[0.0, 0.0, 0.5, 1.0]]), (2, 2), gamma=0.0)
        tensor([[0.5000]])
    """
    if not (isinstance(maps, Tensor) and isinstance(boxes, Tensor)):
        maps, boxes = from_numpy("region_attention", maps=maps, boxes=boxes)
        return region_attention(maps, boxes, grid, gamma, size, least_area=least_area, backend=backend).numpy()
    if maps.shape[:-2] != boxes.shape[:-2]:
        maps, boxes = _broadcast(maps, boxes)
    (rows, columns), (width, height) = grid, size
    settings = int(rows), int(columns), float(gamma), float(width), float(height), float(least_area)
    return _region_op(maps, boxes, *settings, backend)


def _broadcast(maps: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
    try:
        leading = torch.broadcast_shapes(maps.shape[:-2], boxes.shape[:-2])
    except RuntimeError:
        raise ValueError(
            f"region_attention: leading dimensions of maps {list(maps.shape)} and boxes {list(boxes.shape)} do not match"
        ) from None
    return maps.expand(*leading, *maps.shape[-2:]), boxes.expand(*leading, *boxes.shape[-2:])


def _check(op, maps, boxes, rows, columns, width, height, least_area) -> None:
    check_boxes(op, "boxes", boxes)
    check_numbers(op, "maps", maps)
    check_device(op, maps=maps, boxes=boxes)
    if maps.dim() < 2 or boxes.dim() < 2 or maps.shape[:-2] != boxes.shape[:-2]:
        wanted = "[..., Q, rows * columns] and [..., R, 4]"
        raise ValueError(f"{op}: maps and boxes must be {wanted}, got {list(maps.shape)} and {list(boxes.shape)}")
    if rows < 1 or columns < 1 or maps.shape[-1] != rows * columns:
        raise ValueError(f"{op}: a grid of {rows} x {columns} cells does not fit maps {list(maps.shape)}")
    if not (0 < width < math.inf and 0 < height < math.inf):
        raise ValueError(f"{op}: size must be positive, got {(width, height)}")
    if not least_area > 0:
        raise ValueError(f"{op}: least_area must be positive, got {least_area}")


def _result(maps: Tensor, boxes: Tensor) -> tuple[torch.Size, torch.dtype]:
    wide = torch.float64 in (maps.dtype, boxes.dtype)
    return maps.shape[:-1] + boxes.shape[-2:-1], torch.float64 if wide else torch.float32


def _region(maps, boxes, rows, columns, gamma, width, height, least_area, backend=None):
    _check("region_attention", maps, boxes, rows, columns, width, height, least_area)
    run = dispatch.choose("region_attention", maps.device.type, backend)
    _, dtype = _result(maps, boxes)
    return run(maps.to(dtype), boxes.to(dtype), rows, columns, gamma, width, height, least_area)


def _region_fake(maps, boxes, rows, columns, gamma, width, height, least_area, backend=None):
    _check("region_attention", maps, boxes, rows, columns, width, height, least_area)
    shape, dtype = _result(maps, boxes)
    return maps.new_empty(shape, dtype=dtype)


def _backward(grad, maps, boxes, rows, columns, gamma, width, height, least_area, backend=None):
    op = "region_attention_backward"
    _check(op, maps, boxes, rows, columns, width, height, least_area)
    shape, dtype = _result(maps, boxes)
    if grad.shape != shape or grad.device != maps.device:
        raise ValueError(f"{op}: grad must be {list(shape)} on {maps.device}, got {list(grad.shape)}")
    run = dispatch.choose(op, maps.device.type, backend)
    found = run(grad.to(dtype), boxes.to(dtype), rows, columns, gamma, width, height, least_area)
    return found.to(maps.dtype).contiguous()


def _backward_fake(grad, maps, *others):
    return maps.new_empty(maps.shape)


def _reference(maps, boxes, rows, columns, gamma, width, height, least_area):
    return reference.region_attention(maps, boxes, (rows, columns), gamma, (width, height), least_area).contiguous()


def _reference_backward(grad, boxes, rows, columns, gamma, width, height, least_area):
    # The op is linear in the maps: its value at the unit maps, transposed.
    units = torch.eye(rows * columns, dtype=boxes.dtype, device=boxes.device)
    shares = reference.region_attention(units, boxes, (rows, columns), gamma, (width, height), least_area)
    return grad @ shares.transpose(-1, -2)


def _batches(values: Tensor) -> tuple[Tensor, int]:
    """[batch, n, m] and the step from one batch to the next: 0 where all are the same memory."""
    leading, (n, m) = values.shape[:-2], values.shape[-2:]
    if all(stride == 0 or size == 1 for size, stride in zip(leading, values.stride())):
        return values[(0,) * len(leading)].contiguous(), 0
    return values.contiguous(), n * m


def _cpp(maps, boxes, *settings):
    out = maps.new_empty(maps.shape[:-1] + boxes.shape[-2:-1])
    if not out.numel():
        return out
    sizes = maps.shape[:-2].numel(), maps.shape[-2], boxes.shape[-2]
    (maps, map_step), (boxes, box_step) = _batches(maps), _batches(boxes)
    native.cpu()[0].region_attention(
        out.dtype is torch.float64,
        maps.data_ptr(),
        map_step,
        boxes.data_ptr(),
        box_step,
        *sizes,
        *settings,
        out.data_ptr(),
        torch.get_num_threads(),
    )
    return out


def _cpp_backward(grad, boxes, rows, columns, *settings):
    found = grad.new_empty(grad.shape[:-1] + (rows * columns,))
    if not found.numel():
        return found
    sizes = grad.shape[:-2].numel(), grad.shape[-2], boxes.shape[-2]
    grad, (boxes, box_step) = grad.contiguous(), _batches(boxes)
    native.cpu()[0].region_attention_backward(
        found.dtype is torch.float64,
        grad.data_ptr(),
        boxes.data_ptr(),
        box_step,
        *sizes,
        rows,
        columns,
        *settings,
        found.data_ptr(),
        torch.get_num_threads(),
    )
    return found


def _triton(*arguments):
    from .triton_kernels.region_attention import region_attention

    return region_attention(*arguments)


def _triton_backward(*arguments):
    from .triton_kernels.region_attention import region_attention_backward

    return region_attention_backward(*arguments)


dispatch.register("region_attention", cpp=_cpp, triton=_triton, reference=_reference)
dispatch.register("region_attention_backward", cpp=_cpp_backward, triton=_triton_backward, reference=_reference_backward)

_SETTINGS = "int rows, int columns, float gamma, float width, float height, float least_area, str? backend=None"
_backward_op = define(
    f"region_attention_backward(Tensor grad, Tensor maps, Tensor boxes, {_SETTINGS}) -> Tensor",
    _backward,
    _backward_fake,
)


def _setup_context(ctx, inputs, output):
    ctx.save_for_backward(*inputs[:2])
    ctx.settings = inputs[2:]


def _gradient(ctx, grad):
    maps, boxes = ctx.saved_tensors
    if torch.is_grad_enabled():  # a second derivative is wanted: linear, so the op itself, in torch
        *settings, _ = ctx.settings
        found = _reference_backward(grad, boxes.detach().to(grad.dtype), *settings).to(maps.dtype)
    else:
        found = _backward_op(grad, maps, boxes, *ctx.settings)
    return found, None, *[None] * 7


_region_op = differentiable(
    define(f"region_attention(Tensor maps, Tensor boxes, {_SETTINGS}) -> Tensor", _region, _region_fake),
    _setup_context,
    _gradient,
    tensors=1,
)
