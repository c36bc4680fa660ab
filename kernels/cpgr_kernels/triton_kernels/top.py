"""The k best anchors of every image for every query.

One matrix product [Q, D] x [D, B*N] whose columns are aligned to images, so that a tile of anchors is read once for
BLOCK_Q queries, and whose tiles are reduced to the k best of each image in registers. No [Q, B, N] tensor exists.

A tile holds an image's N anchors as two powers of two, TILE + REST (17 <= 16 + 2; 169 <= 128 + 64), of which one image
or, where N is small, PACK images side by side are computed at once. Where N is larger than the largest tile, a program
walks an image's tiles and carries the k best along. A program computes several images for the same queries, and
programs of different queries walk the same images at the same time, so that anchors come from memory once and from L2
Q / BLOCK_Q times.

Bytes (elements of e bytes): reads e D (B N + Q), writes (4 + 2) k Q B (indices of 16 bits where N <= 32767). FLOPs:
2 Q B N D. Choosing costs about 13 integer operations a score for k = 2, or 0.2 cycles of a Hopper multiprocessor, where the D
products of a score take its tensor cores D / 2048 cycles: 0.25 at D = 512. So one program must not leave the other
idle: FLATTEN lets the next tile's loads run while this tile's best are chosen, and small tiles share a multiprocessor.

Order: by value, NaN first, then the lower index. Scores are compared as integers of the same order.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._common import (
    INTERPRETED,
    TYPES,
    aot_case,
    ceil_div,
    cover,
    dot,
    matmul_precision,
    multiprocessors,
    power_of_two,
    take_options,
)

_LOWEST = tl.constexpr(-(2**31))  # below the integer of every score
_NOWHERE = tl.constexpr(2**31 - 1)  # after every index


@triton.jit
def _ordered(scores, INTERPRETED: tl.constexpr):
    """float32 as integers of the same order: -0 equals 0, NaN is above all."""
    scores += 0.0  # -0 becomes 0, and on a GPU every NaN the same positive NaN
    if INTERPRETED:
        scores = tl.where(scores != scores, float("nan"), scores)  # noqa: PLR0124
    bits = scores.to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def _as_scores(keys):
    return (keys ^ ((keys >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def _first(keys, best, n):
    """The lowest n along the last axis whose key is the best."""
    return tl.min(tl.where(keys == best[:, :, None], n, _NOWHERE), 2)


@triton.jit
def _rows(anchors, first, start, images, count, features, PACK: tl.constexpr, SIZE: tl.constexpr):
    """Addresses of the anchors start .. start + SIZE of PACK images, and which of them exist."""
    row = tl.arange(0, PACK * SIZE)
    image = first + row // SIZE
    n = start + row % SIZE
    return anchors + (image.to(tl.int64) * count + n) * features, (image < images) & (n < count)


# Numbers that change from batch to batch compile nothing anew; features are divisible by 16 or not.
@triton.jit(do_not_specialize=["images", "count", "rows", "packs_per_program"])
def _top_kernel(
    anchors,
    queries,
    values,
    indices,
    images,
    count,
    features,
    rows,
    packs_per_program,
    K: tl.constexpr,
    SLOTS: tl.constexpr,
    PACK: tl.constexpr,
    TILE: tl.constexpr,
    REST: tl.constexpr,
    ONE_TILE: tl.constexpr,
    FULL: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_D: tl.constexpr,
    WHOLE_D: tl.constexpr,
    FLATTEN: tl.constexpr,
    PRECISION: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """values, indices [rows, images, K] of the K best of every image's `count` anchors.

    ONE_TILE: count <= TILE + REST. FULL: every anchor of the first part exists. WHOLE_D: BLOCK_D divides `features`.
    """
    query_blocks = tl.cdiv(rows, BLOCK_Q)
    q = (tl.program_id(0) % query_blocks) * BLOCK_Q + tl.arange(0, BLOCK_Q)
    d = tl.arange(0, BLOCK_D)
    query_at = queries + tl.minimum(q, rows - 1).to(tl.int64)[:, None] * features + d[None, :]
    slot = tl.arange(0, SLOTS)[None, None, :]
    STEP: tl.constexpr = TILE + REST
    tiles = 1 if ONE_TILE else tl.cdiv(count, STEP)
    first = (tl.program_id(0) // query_blocks) * packs_per_program * tiles
    last = tl.minimum(first + packs_per_program * tiles, tl.cdiv(images, PACK) * tiles)
    top = tl.full([BLOCK_Q, PACK, SLOTS], _LOWEST, tl.int32)
    top_n = tl.full([BLOCK_Q, PACK, SLOTS], _NOWHERE, tl.int32)
    for step in tl.range(first, last, flatten=FLATTEN):
        first_image = (step // tiles) * PACK
        start = (step % tiles) * STEP
        part, exists = _rows(anchors, first_image, start, images, count, features, PACK, TILE)
        part_at = part[:, None] + d[None, :]
        sums = tl.zeros([BLOCK_Q, PACK * TILE], tl.float32)
        if REST:
            rest, rest_exists = _rows(anchors, first_image, start + TILE, images, count, features, PACK, REST)
            rest_at = rest[:, None] + d[None, :]
            rest_sums = tl.zeros([BLOCK_Q, PACK * REST], tl.float32)
        for chunk in range(0, features, BLOCK_D):
            inside = True if WHOLE_D else (chunk + d < features)[None, :]
            x = tl.load(query_at + chunk, mask=None if WHOLE_D else inside, other=None if WHOLE_D else 0.0)
            y = tl.load(part_at + chunk, mask=exists[:, None] & inside, other=0.0)
            sums = dot(x, y.T, sums, PRECISION, INTERPRETED)
            if REST:
                z = tl.load(rest_at + chunk, mask=rest_exists[:, None] & inside, other=0.0)
                rest_sums = dot(x, z.T, rest_sums, PRECISION, INTERPRETED)

        keys = _ordered(tl.reshape(sums, [BLOCK_Q, PACK, TILE]), INTERPRETED)
        n = start + tl.arange(0, TILE)[None, None, :]
        if not FULL:
            keys = tl.where(n < count, keys, _LOWEST)
        if REST:
            rest_keys = _ordered(tl.reshape(rest_sums, [BLOCK_Q, PACK, REST]), INTERPRETED)
            rest_n = start + TILE + tl.arange(0, REST)[None, None, :]
            rest_keys = tl.where(rest_n < count, rest_keys, _LOWEST)
        if not ONE_TILE:
            top = tl.where(start == 0, _LOWEST, top)
        new_top = tl.full([BLOCK_Q, PACK, SLOTS], _LOWEST, tl.int32)
        new_n = tl.full([BLOCK_Q, PACK, SLOTS], _NOWHERE, tl.int32)
        for j in tl.static_range(K):
            best = tl.max(keys, 2)
            if REST:
                best = tl.maximum(best, tl.max(rest_keys, 2))
            if not ONE_TILE:
                best = tl.maximum(best, tl.max(top, 2))
            at = _first(keys, best, n)
            if REST:
                at = tl.minimum(at, _first(rest_keys, best, rest_n))
            if not ONE_TILE:
                at = tl.minimum(at, _first(top, best, top_n))
            if j + 1 < K:
                keys = tl.where(n == at[:, :, None], _LOWEST, keys)
                if REST:
                    rest_keys = tl.where(rest_n == at[:, :, None], _LOWEST, rest_keys)
                if not ONE_TILE:
                    top = tl.where(top_n == at[:, :, None], _LOWEST, top)
            new_top = tl.where(slot == j, best[:, :, None], new_top)
            new_n = tl.where(slot == j, at[:, :, None], new_n)
        top, top_n = new_top, new_n

        if ONE_TILE or start + STEP >= count:
            image = first_image + tl.arange(0, PACK)[None, :, None]
            out = (q.to(tl.int64)[:, None, None] * images + image) * K + slot
            is_result = (q[:, None, None] < rows) & (image < images) & (slot < K)
            tl.store(values + out, _as_scores(top), mask=is_result)
            tl.store(indices + out, tl.minimum(top_n, count - 1).to(indices.dtype.element_ty), mask=is_result)


def plan(
    dtype: torch.dtype,
    queries: int,
    images: int,
    count: int,
    features: int,
    k: int,
    processors: int,
    config: dict[str, Any] | None = None,
) -> tuple[int, dict[str, Any], dict[str, int]]:
    """Packs of images a program, the constants of `_top_kernel` that depend on sizes, and its options.

    `config` overrides constants and options.
    """
    half = dtype is not torch.float32
    pack, rest, flatten = 1, 0, False
    part = max(power_of_two(count), 4)
    small = queries * images * count < 128 * 128 * processors
    if small:
        # Too little for one large tile a multiprocessor: small tiles, one image each.
        block_q, tile, warps, stages = (16 if queries <= 16 else 32), min(max(part, 16), 128), 4, 4
        block_d = 64 if half else 32
    elif not half:
        # Without tensor cores: 64 x 64 products a program, 32 a thread.
        block_q, block_d, warps, stages = min(max(power_of_two(queries), 16), 64), 16, 4, 3
        tile = min(part, 64)
        pack = 64 // tile
    else:
        block_q, block_d, stages = min(max(power_of_two(queries), 16), 128), 64, 3
        tile, rest = min(part, 128), 0
        if 16 < count <= 192:  # one tile
            low = part // 2
            tile, rest = cover(
                count, ((part, 0), *((low, low // some) for some in (8, 4, 2)[: 3 if low == 128 else 2]))
            )
        pack = max(128 // tile, 1)
        warps = 8 if block_q == 128 else 4
        flatten = warps == 8 and k <= 4  # the next tile's loads begin before the k best of this one are chosen
        if flatten and rest == 0 and count <= 128 and queries >= 256 and k <= 2:
            block_q = 256  # 128 products a thread, and a quarter less read from L2 than with 128
    block_d = min(block_d, max(16, power_of_two(features)))
    chosen = {"K": k, "SLOTS": power_of_two(k), "PACK": pack, "TILE": tile, "REST": rest, "BLOCK_Q": block_q}
    if small:
        chosen["maxnreg"] = 128  # room for 4 programs; unasked, the compiler may spill to make it for more
    chosen |= {"BLOCK_D": block_d, "FLATTEN": flatten, "num_warps": warps, "num_stages": stages, **(config or {})}
    step = chosen["TILE"] + chosen["REST"]
    chosen["ONE_TILE"] = count <= step
    chosen["FULL"] = count % step == 0 or (count <= step and count >= chosen["TILE"])
    chosen["WHOLE_D"] = features > 0 and features % chosen["BLOCK_D"] == 0
    options = take_options(chosen)
    packs = ceil_div(images, chosen["PACK"])
    # One wave of programs that fill the card: as many of them walk different images as there is room for.
    residents = processors * (1 if options["num_warps"] == 8 else 4)
    walkers = max(1, residents // ceil_div(queries, chosen["BLOCK_Q"]))
    return ceil_div(packs, walkers), chosen, options


def best_anchors(
    anchors: Tensor, queries: Tensor, k: int, index_dtype: torch.dtype, config: dict[str, Any] | None
) -> tuple[Tensor, Tensor]:
    """Values (float32) and indices [Q, B, k] of the k best of anchors [B, N, D] for queries [Q, D]."""
    images, count, features = anchors.shape
    rows = queries.shape[0]
    values = torch.empty(rows, images, k, dtype=torch.float32, device=anchors.device)
    indices = torch.empty(rows, images, k, dtype=index_dtype, device=anchors.device)
    if not values.numel():
        return values, indices
    packs_per_program, constants, options = plan(
        anchors.dtype, rows, images, count, features, k, multiprocessors(anchors), config
    )
    walkers = ceil_div(ceil_div(images, constants["PACK"]), packs_per_program)
    grid = (ceil_div(rows, constants["BLOCK_Q"]) * walkers,)
    _top_kernel[grid](
        anchors, queries, values, indices, images, count, features, rows, packs_per_program,
        PRECISION=matmul_precision(anchors.dtype), INTERPRETED=INTERPRETED, **constants, **options,
    )  # fmt: skip
    return values, indices


def _aot_cases() -> list[dict]:
    cases = []
    for dtype, rows, images, count, features, k in (
        (torch.float32, 64, 64, 17, 512, 2),
        (torch.bfloat16, 64, 64, 17, 512, 2),
        (torch.float32, 1024, 1024, 17, 512, 2),
        (torch.bfloat16, 1024, 1024, 17, 512, 2),
        (torch.bfloat16, 1024, 1024, 169, 512, 2),
        (torch.bfloat16, 1024, 1024, 40, 512, 2),
        (torch.bfloat16, 1024, 1024, 128, 512, 2),
        (torch.bfloat16, 1024, 1024, 507, 512, 4),
        (torch.float16, 64, 64, 3549, 512, 2),
        (torch.bfloat16, 1024, 1024, 507, 512, 2),
        (torch.bfloat16, 1024, 1024, 507, 512, 8),
        (torch.float32, 1024, 1024, 169, 100, 1),
    ):
        name = TYPES[dtype]
        _, constants, options = plan(dtype, rows, images, count, features, k, 132)
        types = {"anchors": f"*{name}", "queries": f"*{name}", "values": "*fp32", "indices": "*i16", "features": "i32"}
        types |= dict.fromkeys(("images", "count", "rows", "packs_per_program"), "i32:1")
        constants |= {"PRECISION": "ieee", "INTERPRETED": False}
        title = f"top {k} {name} {rows}x{images}x{count}x{features}"
        instruction = None if name == "fp32" else "wgmma" if constants["BLOCK_Q"] >= 64 else "mma"
        cases.append(aot_case(title, _top_kernel, types, constants, options, instruction))
    return cases


AOT_CASES = _aot_cases()
