"""Gradients of a choice of winners, shared by anchor_scores, anchor_contrast and maxsim.

Rows (queries, or tokens of queries) have chosen items (anchors, tokens of documents) of each of B groups (images,
documents), and each choice has a weight: d loss / d score. Both gradients are sums over choices, made where they are
stored, each in one order, with no atomics:

    row gradient    of row r    = sum over groups and choices of weight * item     gathered, one program a row
    item gradient   of item n   = sum over rows of [n chosen] * weight * row       one matrix product a group

The item gradient is the product [N, R] x [R, D] of a matrix that is nearly empty and never stored: a program makes it
from the indices, tile by tile, in registers. That is 2 R B N D FLOPs, as many as the forward pass, of which only K / N
do something, but on tensor cores: at R = B = 1024, N = 169, D = 512 in bfloat16 181 GFLOP, or 0.23 ms at 790 TFLOP/s.
The alternative, sorting the choices by item and gathering rows, does 4 GFLOP, but reads R B K D elements through L2:
2.1 GB, or about 0.4 ms at 5.5 TB/s, plus the sort. At N = 17 the product is 10 times cheaper and the gathering as
dear as before. Bytes: e D (B N + (B / PACK) (N / TILE) R) and the indices, N / TILE times.

The row gradient is gathered: 2 R B K D FLOPs in float32 and R B K D elements read, 2.1 GB or about 0.4 ms at the shape
above, of which nearly all come from L2, as the programs that run at one time walk the groups in step. The weights of
choices far below a row's largest are 0 in float32; their items are not read.

Both run in one launch where the work is small, in two where the kernels want different tiles.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._common import INTERPRETED, TYPES, aot_case, ceil_div, cover, dot, matmul_precision, power_of_two, take_options

# Where the weights come from.
GRADS, CONTRAST, SHARED = 0, 1, 2  # a gradient for every choice; the contrastive loss; one for all of a query's tokens
_CONTRAST, _SHARED = tl.constexpr(CONTRAST), tl.constexpr(SHARED)


@triton.jit
def _choice(
    row,
    group,
    j,
    inside,
    grads,
    indices,
    values,
    lse,
    positive,
    image_ids,
    groups,
    count,
    tokens,
    grad_stride,
    scale,
    K: tl.constexpr,
    WEIGHTS: tl.constexpr,
    POSITIVE: tl.constexpr,
    MASKED: tl.constexpr,
):
    """Index and weight of choice j of rows in groups (arrays that broadcast); -1 and 0 where there is none."""
    query = row.to(tl.int64)
    if WEIGHTS == _SHARED:
        query = query // tokens
    pair = query * groups + group
    at = pair * K + j
    if WEIGHTS == _SHARED:
        at = pair * tokens + row % tokens
    index = tl.load(indices + at, mask=inside, other=-1).to(tl.int32)
    if WEIGHTS == _CONTRAST:
        own = query
        if POSITIVE:
            own = tl.load(positive + query, mask=inside, other=0)
            own = tl.where((own >= 0) & (own < groups), own, 0)
        log = tl.load(values + at, mask=inside, other=0.0) * scale - tl.load(lse + query, mask=inside, other=0.0)
        probability = tl.exp(log)
        less_one = tl.where(log > -0.01, log * (1 + log * (0.5 + log / 6)), probability - 1)  # expm1
        is_negative = group != own
        if MASKED:
            own_id = tl.load(image_ids + own, mask=inside, other=0)
            is_negative &= tl.load(image_ids + group, mask=inside, other=0) != own_id
        weight = tl.where(is_negative, probability, 0.0)
        weight = tl.where((group == own) & (j == 0), less_one, weight)
        weight *= tl.load(grads + query * grad_stride, mask=inside, other=0.0).to(tl.float32) * scale
    elif WEIGHTS == _SHARED:
        weight = tl.load(grads + pair, mask=inside, other=0.0).to(tl.float32)
    else:
        weight = tl.load(grads + at, mask=inside, other=0.0).to(tl.float32)
    chosen = inside & (index >= 0) & (index < count)
    return tl.where(chosen, index, -1), tl.where(chosen, weight, 0.0)


@triton.jit
def _row_gradient(
    program,
    items,
    row_grads,
    grads,
    indices,
    values,
    lse,
    positive,
    image_ids,
    groups,
    count,
    tokens,
    features,
    grad_stride,
    scale,
    K: tl.constexpr,
    WEIGHTS: tl.constexpr,
    POSITIVE: tl.constexpr,
    MASKED: tl.constexpr,
    GATHER: tl.constexpr,
    GATHER_D: tl.constexpr,
):
    """GATHER_D features of one row's gradient; GATHER groups at a time."""
    slabs = tl.cdiv(features, GATHER_D)
    row = program // slabs
    d = (program % slabs) * GATHER_D + tl.arange(0, GATHER_D)
    sums = tl.zeros([GATHER, GATHER_D], tl.float32)
    for first in range(0, groups, GATHER):
        group = first + tl.arange(0, GATHER)
        inside = group < groups
        for j in tl.static_range(K):
            index, weight = _choice(
                row + 0 * group, group, j, inside, grads, indices, values, lse, positive, image_ids, groups, count, tokens,
                grad_stride, scale, K, WEIGHTS, POSITIVE, MASKED,
            )  # fmt: skip
            at = (group.to(tl.int64) * count + tl.maximum(index, 0)) * features
            counts = (weight != 0)[:, None] & (d < features)[None, :]
            item = tl.load(items + at[:, None] + d[None, :], mask=counts, other=0.0).to(tl.float32)
            sums += weight[:, None] * item
    total = tl.sum(sums, 0).to(row_grads.dtype.element_ty)
    tl.store(row_grads + row.to(tl.int64) * features + d, total, mask=d < features)


@triton.jit
def _store_items(item_grads, sums, first, start, groups, count, features, d, SIZE: tl.constexpr, PACK: tl.constexpr):
    row = tl.arange(0, PACK * SIZE)
    group = first + row // SIZE
    n = start + row % SIZE
    at = (group.to(tl.int64) * count + n) * features
    exists = ((group < groups) & (n < count))[:, None] & (d < features)[None, :]
    tl.store(item_grads + at[:, None] + d[None, :], sums.to(item_grads.dtype.element_ty), mask=exists)


@triton.jit
def _item_gradient(
    program,
    row_vectors,
    item_grads,
    grads,
    indices,
    values,
    lse,
    positive,
    image_ids,
    groups,
    count,
    tokens,
    rows,
    features,
    grad_stride,
    scale,
    K: tl.constexpr,
    WEIGHTS: tl.constexpr,
    POSITIVE: tl.constexpr,
    MASKED: tl.constexpr,
    NORMALIZED: tl.constexpr,
    PACK: tl.constexpr,
    TILE: tl.constexpr,
    REST: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """BLOCK_D features of the gradients of TILE + REST items of each of PACK groups."""
    slabs = tl.cdiv(features, BLOCK_D)
    tiles = tl.cdiv(count, TILE + REST)
    d = (program % slabs) * BLOCK_D + tl.arange(0, BLOCK_D)
    start = (program // slabs % tiles) * (TILE + REST)
    first = program // slabs // tiles * PACK
    group = (first + tl.arange(0, PACK))[:, None]
    n = start + tl.arange(0, TILE)[None, :, None]
    sums = tl.zeros([PACK * TILE, BLOCK_D], tl.float32)
    if REST:
        rest_n = start + TILE + tl.arange(0, REST)[None, :, None]
        rest_sums = tl.zeros([PACK * REST, BLOCK_D], tl.float32)

    # float16 would lose small weights: bring the largest to 2^14 and more, by a power of two, so that what is lost is
    # 2^-38 of it.
    factor = 1.0
    if NORMALIZED:
        largest = tl.full([PACK, BLOCK_R], 1e-30, tl.float32)
        for first_row in range(0, rows, BLOCK_R):
            row = first_row + tl.arange(0, BLOCK_R)[None, :] + 0 * group
            for j in tl.static_range(K):
                _, weight = _choice(
                    row, group, j, (row < rows) & (group < groups), grads, indices, values, lse, positive, image_ids,
                    groups, count, tokens, grad_stride, scale, K, WEIGHTS, POSITIVE, MASKED,
                )  # fmt: skip
                largest = tl.maximum(largest, tl.abs(weight))
        exponent = tl.max(tl.max(largest, 1), 0).to(tl.int32, bitcast=True) & 0x7F800000
        factor = 16384.0 / exponent.to(tl.float32, bitcast=True)
        factor = tl.where(factor > 0, factor, 1.0)  # a weight is infinite

    for first_row in range(0, rows, BLOCK_R):
        r = first_row + tl.arange(0, BLOCK_R)
        counts = (r < rows)[:, None] & (d < features)[None, :]
        x = tl.load(row_vectors + r.to(tl.int64)[:, None] * features + d[None, :], mask=counts, other=0.0)
        row = r[None, :] + 0 * group
        weights = tl.zeros([PACK, TILE, BLOCK_R], tl.float32)
        if REST:
            rest_weights = tl.zeros([PACK, REST, BLOCK_R], tl.float32)
        for j in tl.static_range(K):
            index, weight = _choice(
                row, group, j, (row < rows) & (group < groups), grads, indices, values, lse, positive, image_ids, groups,
                count, tokens, grad_stride, scale, K, WEIGHTS, POSITIVE, MASKED,
            )  # fmt: skip
            weight = (weight * factor)[:, None, :]
            weights = tl.where(index[:, None, :] == n, weight, weights)
            if REST:
                rest_weights = tl.where(index[:, None, :] == rest_n, weight, rest_weights)
        matrix = tl.reshape(weights, [PACK * TILE, BLOCK_R]).to(x.dtype)
        sums = dot(matrix, x, sums, PRECISION, INTERPRETED)
        if REST:
            rest_matrix = tl.reshape(rest_weights, [PACK * REST, BLOCK_R]).to(x.dtype)
            rest_sums = dot(rest_matrix, x, rest_sums, PRECISION, INTERPRETED)
    if NORMALIZED:
        sums /= factor
        if REST:
            rest_sums /= factor
    _store_items(item_grads, sums, first, start, groups, count, features, d, TILE, PACK)
    if REST:
        _store_items(item_grads, rest_sums, first, start + TILE, groups, count, features, d, REST, PACK)


# Numbers that change from batch to batch compile nothing anew; features are divisible by 16 or not.
@triton.jit(do_not_specialize=["groups", "count", "tokens", "rows", "grad_stride", "row_programs"])
def _gradients_kernel(
    items,
    row_vectors,
    item_grads,
    row_grads,
    grads,
    indices,
    values,
    lse,
    positive,
    image_ids,
    groups,
    count,
    tokens,
    rows,
    features,
    grad_stride,
    scale,
    row_programs,
    K: tl.constexpr,
    WEIGHTS: tl.constexpr,
    POSITIVE: tl.constexpr,
    MASKED: tl.constexpr,
    NORMALIZED: tl.constexpr,
    PARTS: tl.constexpr,
    GATHER: tl.constexpr,
    GATHER_D: tl.constexpr,
    PACK: tl.constexpr,
    TILE: tl.constexpr,
    REST: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """The first `row_programs` programs make row gradients, the others item gradients.

    PARTS: 1 rows, 2 items, 3 both. Which arrays are read depends on WEIGHTS and MASKED; the others may be anything.
    """
    program = tl.program_id(0)
    if PARTS == 1 or (PARTS == 3 and program < row_programs):
        _row_gradient(
            program, items, row_grads, grads, indices, values, lse, positive, image_ids, groups, count, tokens, features,
            grad_stride, scale, K, WEIGHTS, POSITIVE, MASKED, GATHER, GATHER_D,
        )  # fmt: skip
    else:
        _item_gradient(
            program - row_programs, row_vectors, item_grads, grads, indices, values, lse, positive, image_ids, groups,
            count, tokens, rows, features, grad_stride, scale, K, WEIGHTS, POSITIVE, MASKED, NORMALIZED, PACK, TILE, REST,
            BLOCK_R, BLOCK_D, PRECISION, INTERPRETED,
        )  # fmt: skip


def plan(
    dtype: torch.dtype, rows: int, groups: int, count: int, features: int, k: int, config: dict[str, Any] | None = None
) -> list[tuple[dict[str, Any], dict[str, int]]]:
    """The launches of a problem: each the constants of `_gradients_kernel` that depend on sizes, and its options.

    `config` overrides constants and options of every launch.
    """
    half = dtype is not torch.float32
    common = {"GATHER": 16, "GATHER_D": min(256 if half else 128, max(16, power_of_two(features)))}
    small = 2 * rows * groups * count * features < 4e9  # a few microseconds: the launch is what it costs
    # Rows of the product: at least 16, and 64 and more for the tensor cores of Hopper. REST is 64 or nothing.
    if small or not half:
        tile, rest = min(max(power_of_two(count), 16), 32 if small else 64), 0
        pack = 1 if small else 64 // tile
        block_r, block_d, warps = 32, 128 if half else 64, 4
    else:
        tile, rest = cover(count, ((128, 0), (128, 64))) if count > 64 else (max(power_of_two(count), 16), 0)
        pack = 1 if rest else 128 // tile
        block_r, block_d, warps = 64, 128, 8
    block_d = min(block_d, max(16, power_of_two(features)))
    items = {"PACK": pack, "TILE": tile, "REST": rest, "BLOCK_R": block_r, "BLOCK_D": block_d}
    launches = [(3, warps)] if small else [(1, 4), (2, warps)]
    result = []
    for parts, num_warps in launches:
        chosen = {"PARTS": parts, **common, **items, "num_warps": num_warps, "num_stages": 3}
        if parts & 1:  # room for 4 programs; unasked, the compiler spills to make it for 5 or 6
            chosen["maxnreg"] = 128
        chosen |= config or {}
        options = take_options(chosen)
        result.append((chosen, options))
    return result


def gradients(
    weights: int,
    items: Tensor,
    row_vectors: Tensor,
    grads: Tensor,
    indices: Tensor,
    *,
    k: int,
    tokens: int = 1,
    scale: float = 1.0,
    values: Tensor | None = None,
    lse: Tensor | None = None,
    positive: Tensor | None = None,
    image_ids: Tensor | None = None,
    config: dict[str, Any] | None = None,
) -> tuple[Tensor, Tensor]:
    """Gradients of items [B, N, D] and of row_vectors [Q * tokens, D]; indices [Q, B, tokens * k], -1 for no choice."""
    groups, count, features = items.shape
    rows = row_vectors.shape[0]
    item_grads, row_grads = torch.empty_like(items), torch.empty_like(row_vectors)
    if not indices.numel() or not features:
        return item_grads.zero_(), row_grads.zero_()
    unread = indices  # for arrays that this kind of weights has not
    tensors = [unread if each is None else each for each in (values, lse, positive, image_ids)]
    sizes = groups, count, tokens, rows, features, grads.stride(0), scale
    for constants, options in plan(items.dtype, rows, groups, count, features, k, config):
        row_programs = rows * ceil_div(features, constants["GATHER_D"]) if constants["PARTS"] != 2 else 0
        item_programs = (
            ceil_div(groups, constants["PACK"])
            * ceil_div(count, constants["TILE"] + constants["REST"])
            * ceil_div(features, constants["BLOCK_D"])
        )
        programs = row_programs + (item_programs if constants["PARTS"] != 1 else 0)
        _gradients_kernel[(programs,)](
            items, row_vectors, item_grads, row_grads, grads, indices, *tensors, *sizes, row_programs,
            K=k, WEIGHTS=weights, POSITIVE=positive is not None, MASKED=image_ids is not None,
            NORMALIZED=items.dtype is torch.float16, PRECISION=matmul_precision(items.dtype), INTERPRETED=INTERPRETED, **constants, **options,
        )  # fmt: skip
    return item_grads, row_grads


def _aot_cases() -> list[dict]:
    cases = []
    for weights, dtype, rows, groups, count, features, k in (
        (CONTRAST, torch.float32, 64, 64, 17, 512, 2),
        (CONTRAST, torch.bfloat16, 64, 64, 17, 512, 2),
        (CONTRAST, torch.bfloat16, 1024, 1024, 17, 512, 2),
        (CONTRAST, torch.bfloat16, 1024, 1024, 169, 512, 2),
        (CONTRAST, torch.float32, 1024, 1024, 169, 512, 2),
        (GRADS, torch.float16, 1024, 1024, 169, 512, 1),
        (SHARED, torch.bfloat16, 128 * 32, 128, 300, 128, 1),
    ):
        name = TYPES[dtype]
        types = dict.fromkeys(("items", "row_vectors", "item_grads", "row_grads"), f"*{name}")
        types |= dict.fromkeys(("grads", "values", "lse"), "*fp32") | dict.fromkeys(("positive", "image_ids"), "*i64")
        types |= dict.fromkeys(("groups", "count", "tokens", "rows", "row_programs"), "i32:1")
        types |= {
            "indices": "*i16" if weights == CONTRAST else "*i32",
            "features": "i32",
            "grad_stride": "i32:1",
            "scale": "fp32",
        }
        for constants, options in plan(dtype, rows, groups, count, features, k):
            constants |= {"K": k, "WEIGHTS": weights, "POSITIVE": True, "MASKED": False, "NORMALIZED": name == "fp16"}
            constants |= {"PRECISION": "ieee", "INTERPRETED": False}
            parts = ("", "rows", "items", "both")[constants["PARTS"]]
            title = f"gradients {parts} {name} {rows}x{groups}x{count}x{features}"
            instruction = None if name == "fp32" or parts == "rows" else "wgmma" if parts == "items" else "mma"
            cases.append(aot_case(title, _gradients_kernel, types, constants, options, instruction))
    return cases


AOT_CASES = _aot_cases()
