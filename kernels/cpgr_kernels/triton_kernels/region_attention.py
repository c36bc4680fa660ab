"""Mass of attention maps in boxes, on a GPU: a product of the maps with the boxes' coverage of the cells.

The coverage of a cell by a box is computed where it is multiplied, never stored: about 15 operations, shared by a tile
of queries. Bytes: maps and boxes read once a tile of boxes, the result written once.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .. import reference
from ._attention import precision, product

TILES = {"BLOCK_Q": 32, "BLOCK_R": 32, "BLOCK_C": 32}


@triton.jit
def _least(a, b):
    return tl.minimum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _most(a, b):
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _coverage(boxes, cell, r, count, rows, columns, width, height, gamma, least_area, ACROSS: tl.constexpr):
    """[cells, boxes] (ACROSS: [boxes, cells]): the share of each cell that lies in each box, over area ** gamma."""
    ok = r < count
    x1 = tl.load(boxes + r * 4, mask=ok, other=0.0)
    y1 = tl.load(boxes + r * 4 + 1, mask=ok, other=0.0)
    x2 = tl.load(boxes + r * 4 + 2, mask=ok, other=0.0)
    y2 = tl.load(boxes + r * 4 + 3, mask=ok, other=0.0)
    area = _most(x2 - x1, 0.0) / width * (_most(y2 - y1, 0.0) / height)
    weight = tl.exp2(-gamma * tl.log2(_most(area, least_area)))
    step_x, step_y = width / columns, height / rows
    left, top = (cell % columns).to(tl.float32) * step_x, (cell // columns).to(tl.float32) * step_y
    if ACROSS:
        x1, y1, x2, y2, weight = x1[:, None], y1[:, None], x2[:, None], y2[:, None], weight[:, None]
        left, top = left[None, :], top[None, :]
    else:
        x1, y1, x2, y2, weight = x1[None, :], y1[None, :], x2[None, :], y2[None, :], weight[None, :]
        left, top = left[:, None], top[:, None]
    across = _most(_least(x2, left + step_x) - _most(x1, left), 0.0) / step_x
    down = _most(_least(y2, top + step_y) - _most(y1, top), 0.0) / step_y
    return across * down * weight


@triton.jit(do_not_specialize=["queries", "count", "rows", "columns"])
def forward_kernel(
    maps,
    boxes,
    out,
    map_step: tl.int64,
    box_step: tl.int64,
    queries,
    count,
    cells,
    rows,
    columns,
    width,
    height,
    gamma,
    least_area,
    BLOCK_Q: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
):
    """out [L, Q, R]."""
    query_tiles, box_tiles = tl.cdiv(queries, BLOCK_Q), tl.cdiv(count, BLOCK_R)
    place = tl.program_id(0)
    q = place % query_tiles * BLOCK_Q + tl.arange(0, BLOCK_Q)
    r = (place // query_tiles) % box_tiles * BLOCK_R + tl.arange(0, BLOCK_R)
    item = (place // query_tiles // box_tiles).to(tl.int64)
    sums = tl.zeros([BLOCK_Q, BLOCK_R], tl.float32)
    for start in range(0, cells, BLOCK_C):
        cell = start + tl.arange(0, BLOCK_C)
        places = maps + item * map_step + q.to(tl.int64)[:, None] * cells + cell[None, :]
        values = tl.load(places, mask=(q < queries)[:, None] & (cell < cells)[None, :], other=0.0)
        share = _coverage(
            boxes + item * box_step, cell, r, count, rows, columns, width, height, gamma, least_area, False
        )
        sums += product(values, share, PRECISION, WIDEN)
    tl.store(
        out + (item * queries + q[:, None]) * count + r[None, :],
        sums,
        mask=(q < queries)[:, None] & (r < count)[None, :],
    )


@triton.jit(do_not_specialize=["queries", "count", "rows", "columns"])
def backward_kernel(
    grad,
    boxes,
    grad_maps,
    box_step: tl.int64,
    queries,
    count,
    cells,
    rows,
    columns,
    width,
    height,
    gamma,
    least_area,
    BLOCK_Q: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
):
    """grad_maps [L, Q, cells] of grad [L, Q, R]."""
    query_tiles, cell_tiles = tl.cdiv(queries, BLOCK_Q), tl.cdiv(cells, BLOCK_C)
    place = tl.program_id(0)
    q = place % query_tiles * BLOCK_Q + tl.arange(0, BLOCK_Q)
    cell = (place // query_tiles) % cell_tiles * BLOCK_C + tl.arange(0, BLOCK_C)
    item = (place // query_tiles // cell_tiles).to(tl.int64)
    sums = tl.zeros([BLOCK_Q, BLOCK_C], tl.float32)
    for start in range(0, count, BLOCK_R):
        r = start + tl.arange(0, BLOCK_R)
        places = grad + (item * queries + q[:, None]) * count + r[None, :]
        values = tl.load(places, mask=(q < queries)[:, None] & (r < count)[None, :], other=0.0)
        share = _coverage(
            boxes + item * box_step, cell, r, count, rows, columns, width, height, gamma, least_area, True
        )
        sums += product(values, share, PRECISION, WIDEN)
    inside = (q < queries)[:, None] & (cell < cells)[None, :]
    tl.store(grad_maps + (item * queries + q[:, None]) * cells + cell[None, :], sums, mask=inside)


def region_attention(maps, boxes, rows, columns, gamma, width, height, least_area) -> Tensor:
    """maps [..., Q, rows * columns] and boxes [..., R, 4] of the same leading dimensions, both float32 or float64."""
    if maps.dtype is torch.float64:
        return reference.region_attention(maps, boxes, (rows, columns), gamma, (width, height), least_area).contiguous()
    out = maps.new_empty(maps.shape[:-1] + boxes.shape[-2:-1])
    if out.numel():
        batch, queries, count = out.shape[:-2].numel(), *out.shape[-2:]
        (maps, map_step), (boxes, box_step) = _batches(maps), _batches(boxes)
        programs = triton.cdiv(queries, TILES["BLOCK_Q"]) * triton.cdiv(count, TILES["BLOCK_R"]) * batch
        settings = queries, count, rows * columns, rows, columns, width, height, gamma, least_area
        forward_kernel[(programs,)](maps, boxes, out, map_step, box_step, *settings, **TILES, **precision(maps))
    return out


def region_attention_backward(grad, boxes, rows, columns, gamma, width, height, least_area) -> Tensor:
    """The gradient to maps of grad [..., Q, R]."""
    if grad.dtype is torch.float64:
        units = torch.eye(rows * columns, dtype=boxes.dtype, device=boxes.device)
        return grad @ region_attention(units, boxes, rows, columns, gamma, width, height, least_area).transpose(-1, -2)
    found = grad.new_empty(grad.shape[:-1] + (rows * columns,))
    if found.numel():
        batch, queries, count = grad.shape[:-2].numel(), *grad.shape[-2:]
        grad, (boxes, box_step) = grad.contiguous(), _batches(boxes)
        programs = triton.cdiv(queries, TILES["BLOCK_Q"]) * triton.cdiv(rows * columns, TILES["BLOCK_C"]) * batch
        settings = queries, count, rows * columns, rows, columns, width, height, gamma, least_area
        backward_kernel[(programs,)](grad, boxes, found, box_step, *settings, **TILES, **precision(grad))
    return found


def _batches(values: Tensor) -> tuple[Tensor, int]:
    """[batch, n, m] and the step from one batch to the next: 0 where all are the same memory."""
    leading, (n, m) = values.shape[:-2], values.shape[-2:]
    if all(stride == 0 or size == 1 for size, stride in zip(leading, values.stride())):
        return values[(0,) * len(leading)].contiguous(), 0
    return values.contiguous(), n * m


def _aot_cases() -> list[dict]:
    cases = []
    for kernel in (forward_kernel, backward_kernel):
        types = {"maps": "*fp32", "boxes": "*fp32", "out": "*fp32", "grad": "*fp32", "grad_maps": "*fp32"}
        types |= {"map_step": "i64", "box_step": "i64"} | dict.fromkeys(
            ("queries", "count", "cells", "rows", "columns"), "i32"
        )
        types |= dict.fromkeys(("width", "height", "gamma", "least_area"), "fp32")
        constants = TILES | {"PRECISION": "tf32x3", "WIDEN": False}
        signature = {name: types.get(name, "constexpr") for name in kernel.arg_names}
        divisible = ("maps", "boxes", "out", "grad", "grad_maps", "map_step", "box_step", "cells")
        attrs = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(kernel.arg_names) if name in divisible}
        case = {"name": kernel.fn.__name__, "kernel": kernel, "signature": signature, "constexprs": constants}
        cases.append(case | {"attrs": attrs, "options": {"num_warps": 4, "num_stages": 2}, "tensor_cores": "mma"})
    return cases


AOT_CASES = _aot_cases()
