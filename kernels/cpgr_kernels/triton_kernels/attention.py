"""Attention with a readable map on a GPU: which kernels run, on which tiles. `reference.attention` says what it means.

double, and heads of more than 512 bytes (256 numbers of 16 bits), are computed by the reference.
"""

import torch
import triton
from torch import Tensor

from .. import reference
from . import attention_backward as backward_kernels
from . import attention_forward as forward_kernels
from ._attention import LARGEST_HEAD, aot_case, masks_of, precision, strides
from ._attention_tiles import backward_tiles, forward_tiles, map_tiles, scores_tiles
from ._common import multiprocessors

CHUNKS_OF_SUMS = 64


def attention_forward(
    q: Tensor,
    k: Tensor,
    v: Tensor | None,
    rows: Tensor | None,
    key_padding_mask: Tensor | None,
    attn_mask: Tensor | None,
    is_causal: bool,
    scale: float,
) -> tuple[Tensor | None, Tensor, Tensor]:
    """Output (None without v), map [B, R, S] and lse [B, H, T]; without v, lse is set at the chosen rows alone."""
    if _is_for_reference(q, v):
        return reference.attention.attend(q, k, v, rows, key_padding_mask, attn_mask, is_causal, scale)
    batch, heads, length, width = q.shape
    _, groups, keys, _ = k.shape
    chosen = length if rows is None else rows.shape[1]
    maps = q.new_empty(batch, chosen, keys, dtype=torch.float32)
    pointers, constants = masks_of(q, key_padding_mask, attn_mask, is_causal, scale)
    shared = {"q": q, "k": k, "rows": q if rows is None else rows, **pointers, **strides("q", q), **strides("k", k)}
    shared |= {"heads": heads, "groups": groups, "length": length, "chosen": chosen, "keys": keys, "width": width}
    constants |= {"ROWS": rows is not None, **precision(q)}
    if v is not None:
        out, lse = _output(q, v, shared, constants)
    elif _keeps_scores(q, k, chosen):
        return None, *_map_of_kept_scores(q, maps, shared, constants)
    else:
        out, lse = None, _sums(q, shared, constants)
    _map(maps, lse, shared, constants)
    return out, maps, lse


def _is_for_reference(q: Tensor, v: Tensor | None) -> bool:
    widest = max(q.shape[3], 0 if v is None else v.shape[3])
    return q.dtype is torch.float64 or widest * q.element_size() > LARGEST_HEAD


def _output(q: Tensor, v: Tensor, shared: dict, constants: dict) -> tuple[Tensor, Tensor]:
    batch, heads, length, _ = q.shape
    out = v.new_empty(batch, length, heads, v.shape[3]).transpose(1, 2)
    lse = q.new_empty(batch, heads, length, dtype=torch.float32)
    tiles = forward_tiles(q, length, v.shape[3], _masked(constants))
    arguments = shared | strides("v", v) | strides("o", out)
    arguments |= {
        "rows": q,
        "chosen": length,
        "value_width": v.shape[3],
        "chunk": shared["keys"],
        "chunks": 1,
        "pitch": 1,
    }
    forward_kernels.forward_kernel[(triton.cdiv(length, tiles["BLOCK_T"]) * heads * batch,)](
        v=v, out=out, lse=lse, VALUES=True, **arguments, **constants | {"ROWS": False}, **tiles
    )
    return out, lse


def _sums(q: Tensor, shared: dict, constants: dict) -> Tensor:
    """lse of the chosen rows, in as many chunks of keys as it takes to fill a card."""
    batch, heads, _, width = q.shape
    chosen, keys = shared["chosen"], shared["keys"]
    tiles = forward_tiles(q, chosen, width, _masked(constants))
    programs = triton.cdiv(chosen, tiles["BLOCK_T"]) * heads * batch
    chunks = max(1, min(triton.cdiv(2 * multiprocessors(q), programs), keys // (4 * tiles["BLOCK_S"])))
    chunk = triton.cdiv(triton.cdiv(keys, chunks), tiles["BLOCK_S"]) * tiles["BLOCK_S"]
    chunks = triton.cdiv(keys, chunk)
    partial = q.new_empty(batch, heads, chosen, _pitch(chunks), dtype=torch.float32)
    unused = dict.fromkeys(("v_b", "v_h", "v_t", "o_b", "o_h", "o_t"), 0)
    forward_kernels.forward_kernel[(programs * chunks,)](
        v=q, out=q, lse=partial, value_width=width, chunk=chunk, chunks=chunks, pitch=partial.shape[3], VALUES=False,
        **shared, **unused, **constants, **tiles,
    )  # fmt: skip
    return _settled(q, partial, chunks, shared, constants)


def _masked(constants: dict) -> bool:
    return constants["PADDING"] or constants["MASK"] != 0


def _pitch(count: int) -> int:
    """Rows of scratch begin where vectors do."""
    return triton.cdiv(count, 16) * 16


def _settled(q: Tensor, partial: Tensor, blocks: int, shared: dict, constants: dict) -> Tensor:
    batch, heads, length, _ = q.shape
    chosen, pitch = partial.shape[2:]
    lse = q.new_full((batch, heads, length), torch.inf, dtype=torch.float32)
    tiles = {"BLOCK_R": 16, "BLOCK_C": min(CHUNKS_OF_SUMS, max(2, triton.next_power_of_2(blocks)))}
    forward_kernels.sums_kernel[(triton.cdiv(chosen, 16) * heads * batch,)](
        shared["rows"], partial, lse, heads, length, chosen, blocks, pitch, ROWS=constants["ROWS"], **tiles
    )
    return lse


def _map(maps: Tensor, lse: Tensor, shared: dict, constants: dict) -> None:
    batch, chosen, keys = maps.shape
    q = shared["q"]
    tiles = map_tiles(q, chosen, keys, shared["groups"])
    programs = triton.cdiv(chosen, tiles["BLOCK_R"]) * triton.cdiv(keys, tiles["BLOCK_S"]) * batch
    forward_kernels.map_kernel[(programs,)](lse=lse, maps=maps, **shared, **constants, **tiles)


def _keeps_scores(q: Tensor, k: Tensor, chosen: int) -> bool:
    """Whether writing and reading the chosen rows' exponentials takes no more bytes than reading K a second time."""
    return 2 * chosen * q.shape[1] * _scratch_type(q).itemsize <= k.shape[1] * k.shape[3] * k.element_size()


def _scratch_type(q: Tensor) -> torch.dtype:
    # Numbers in 0..1: float16 keeps 11 bits of them, more than a product of 16-bit weights would.
    return torch.float32 if q.dtype is torch.float32 else torch.float16


def _map_of_kept_scores(q: Tensor, maps: Tensor, shared: dict, constants: dict) -> tuple[Tensor, Tensor]:
    batch, heads, length, _ = q.shape
    chosen, keys = maps.shape[1:]
    tiles = scores_tiles(q, chosen * heads // shared["groups"])
    blocks = triton.cdiv(keys, tiles["BLOCK_S"])
    row_pitch, pitch = _pitch(keys), _pitch(blocks)
    scratch = q.new_empty(batch, heads, chosen, row_pitch, dtype=_scratch_type(q))
    peaks, partial = q.new_empty(2, batch, heads, chosen, pitch, dtype=torch.float32)
    pitches = {"row_pitch": row_pitch, "pitch": pitch}
    forward_kernels.scores_kernel[(blocks * shared["groups"] * batch,)](
        scratch=scratch, peaks=peaks, partial=partial, **pitches, **shared, **constants, **tiles
    )
    lse = _settled(q, partial, blocks, shared, constants)
    block = min(1024, max(128, triton.next_power_of_2(keys * chosen * batch // (4 * multiprocessors(q)))))
    forward_kernels.mean_kernel[(triton.cdiv(keys, block) * chosen * batch,)](
        shared["rows"], scratch, peaks, lse, maps, heads, length, chosen, keys, **pitches,
        ROWS=constants["ROWS"], BLOCK=tiles["BLOCK_S"], BLOCK_H=8, BLOCK_S=block, num_warps=4,
    )  # fmt: skip
    return maps, lse


def attention_backward(
    grad_out: Tensor | None,
    grad_map: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor | None,
    out: Tensor | None,
    lse: Tensor,
    rows: Tensor | None,
    key_padding_mask: Tensor | None,
    attn_mask: Tensor | None,
    is_causal: bool,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients to q, k and v (of no elements without v); grad_out and grad_map are not both None."""
    if _is_for_reference(q, v):
        masks = {"key_padding_mask": key_padding_mask, "attn_mask": attn_mask, "is_causal": is_causal}
        grads = reference.attention_backward(grad_out, grad_map, q, k, v, rows=rows, scale=scale, **masks)
        return grads if v is not None else (*grads[:2], q.new_empty(0))
    batch, heads, length, width = q.shape
    _, groups, keys, _ = k.shape
    slots = None
    if grad_map is not None and rows is not None:
        rows, slots, grad_map = _merged(rows, grad_map, length)
    alone = grad_out is None and rows is not None  # then only the chosen rows have a gradient
    lines = rows.shape[1] if alone else length
    grad_q = torch.zeros_like(q) if alone else torch.empty_like(q)
    grad_k = torch.empty_like(k)
    grad_v = q.new_empty(0) if v is None else torch.empty_like(v) if grad_out is not None else torch.zeros_like(v)
    delta = q.new_empty(batch, heads, lines, dtype=torch.float32)

    pointers, constants = masks_of(q, key_padding_mask, attn_mask, is_causal, scale)
    shared = {"q": q, "k": k, "lse": lse, "delta": delta, **pointers, **strides("q", q), **strides("k", k)}
    shared |= {"grad_out": _or(grad_out, q), "grad_map": _or(grad_map, lse), **_strides_or_none("do", grad_out)}
    shared |= {"rows": rows if alone else q, "slots": _or(slots, q)}
    shared |= {"heads": heads, "groups": groups, "length": length, "lines": lines, "keys": keys, "width": width}
    shared |= {"chosen": 0 if grad_map is None else grad_map.shape[1]}
    value_width = width if grad_out is None else v.shape[3]
    constants |= {
        "VALUES": grad_out is not None,
        "MAP": grad_map is not None,
        "ROWS": alone,
        "SLOTS": slots is not None and not alone,
        **precision(q),
    }
    values = {"v": q if grad_out is None else v, **_strides_or_none("v", None if grad_out is None else v)}
    tiles, of_key = backward_tiles(q, lines, value_width)
    per_lines = (triton.cdiv(lines, tiles["BLOCK_T"]) * heads * batch,)
    backward_kernels.delta_kernel[per_lines](
        out=_or(out, q), value_width=value_width, **_strides_or_none("o", out), **shared, **constants, **tiles
    )
    backward_kernels.query_kernel[per_lines](
        grad_q=grad_q, grad_scale=scale, value_width=value_width, **strides("dq", grad_q),
        **values, **shared, **constants, **tiles,
    )  # fmt: skip
    backward_kernels.key_kernel[(triton.cdiv(keys, of_key["BLOCK_S"]) * groups * batch,)](
        grad_k=grad_k, grad_v=grad_v, grad_scale=scale, value_width=value_width,
        **strides("dk", grad_k), **_strides_or_none("dv", None if grad_out is None else grad_v),
        **values, **shared, **constants, **of_key,
    )  # fmt: skip
    return grad_q, grad_k, grad_v


def _or(tensor: Tensor | None, unused: Tensor) -> Tensor:
    return unused if tensor is None else tensor


def _strides_or_none(name: str, tensor: Tensor | None) -> dict[str, int]:
    return strides(name, tensor) if tensor is not None else {f"{name}_{axis}": 0 for axis in "bht"}


def _merged(rows: Tensor, grad_map: Tensor, length: int) -> tuple[Tensor, Tensor, Tensor]:
    """A row that was chosen twice, once: rows [B, R] with -1 in the place of repetitions and of rows outside 0..T-1; the
    place in it of each of the T rows, -1 of none, int32; grad_map with the repetitions' added to the first, in order.
    """
    batch, chosen = rows.shape
    order = torch.arange(chosen, device=rows.device)
    place = torch.where((rows >= 0) & (rows < length), rows, length)
    first = rows.new_full((batch, length + 1), chosen)
    first.scatter_reduce_(1, place, order.expand(batch, chosen), "amin")
    owner = first.gather(1, place)
    # index_put_ adds in the order of the indices, also on a GPU.
    at = (owner + torch.arange(batch, device=rows.device).unsqueeze(1) * chosen).flatten()
    merged = torch.zeros_like(grad_map).flatten(0, 1)
    merged = merged.index_put_((at,), grad_map.flatten(0, 1), accumulate=True).view_as(grad_map)
    slots = first[:, :length]
    slots = torch.where(slots < chosen, slots, -1).int()
    return torch.where((owner == order) & (place < length), rows, -1), slots.contiguous(), merged


def _aot_cases() -> list[dict]:
    """What models run: heads of 64 and 128 in bfloat16, and of 64 in float32; one with all masks."""
    cases = []
    plain = {"PADDING": False, "MASK": 0, "IS_CAUSAL": False, "LATE": True, "ROWS": False, "WIDEN": False}
    masked = plain | {"PADDING": True, "MASK": 1, "IS_CAUSAL": True}
    forward, backward = forward_kernels, backward_kernels

    def add(kernel, dtype, name, settings, cores="wgmma"):
        constants = {name: value for name, value in settings.items() if name in kernel.arg_names}
        name = f"{kernel.fn.__name__}, {dtype}, {name}"
        case = aot_case(kernel, name, dtype, constants, settings["num_warps"], settings["num_stages"])
        cases.append(case | {"tensor_cores": cores})

    for dtype, torch_dtype, width in (
        ("bf16", torch.bfloat16, 64),
        ("bf16", torch.bfloat16, 128),
        ("fp32", torch.float32, 64),
    ):
        q = torch.empty(1, 32, 4096, width, dtype=torch_dtype, device="meta")
        common = plain | {"VALUES": True, "MAP": True, "SLOTS": True, "PRECISION": "tf32x3"}
        of_query, of_key = backward_tiles(q, 4096, width)
        add(forward.forward_kernel, dtype, f"{width}", common | forward_tiles(q, 4096, width, False))
        cores = "mma" if dtype == "fp32" else "wgmma"
        add(backward.key_kernel, dtype, f"{width}", common | of_key, cores)
        if width == 128 or dtype == "fp32":
            add(backward.query_kernel, dtype, f"{width}", common | of_query, cores)
        if width == 128:
            add(forward.forward_kernel, dtype, f"{width}, masks", common | masked | forward_tiles(q, 4096, width, True))
            add(forward.map_kernel, dtype, f"{width}, all rows", common | map_tiles(q, 4096, 4096, 32))
            add(forward.map_kernel, dtype, f"{width}, 4 x 16 rows", common | masked | map_tiles(q, 16, 1 << 20, 8))
            add(forward.scores_kernel, dtype, f"{width}", common | masked | scores_tiles(q, 64), "mma")
    options = {"ROWS": True, "num_warps": 4, "num_stages": 1}
    add(forward.sums_kernel, "bf16", "", {"BLOCK_R": 16, "BLOCK_C": CHUNKS_OF_SUMS, **options}, None)
    add(forward.mean_kernel, "bf16", "", {"BLOCK": 128, "BLOCK_H": 8, "BLOCK_S": 1024, **options}, None)
    return cases


AOT_CASES = _aot_cases()
