"""What the attention kernels share: products, scores under masks, the arguments of a launch.

Scores are kept in powers of two: exp(score - lse) is exp2(score * log2(e) - lse * log2(e)), one multiply-add and one
instruction of the card. A score is the product of q and k times FACTOR's value `scale`; where no number is added to it,
the multiplication waits until the maximum is subtracted.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._common import INTERPRETED

LOG2E = 1.4426950408889634
LARGEST_HEAD = 512  # bytes of a row; tiles of wider ones do not fit the registers

_LOG2E = tl.constexpr(LOG2E)


@triton.jit
def product(a, b, PRECISION: tl.constexpr, WIDEN: tl.constexpr):
    """a @ b in float32."""
    if WIDEN:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, input_precision=PRECISION)


@triton.jit
def load_rows(places, inside, width, BLOCK: tl.constexpr, EVEN: tl.constexpr):
    """Rows of `width` contiguous numbers from these places, [rows, BLOCK], 0 where there is none."""
    d = tl.arange(0, BLOCK)
    if EVEN:
        return tl.load(places[:, None] + d[None, :], mask=inside[:, None], other=0.0)
    return tl.load(places[:, None] + d[None, :], mask=inside[:, None] & (d < width)[None, :], other=0.0)


@triton.jit
def load_tile(base, positions, inside, stride, width, BLOCK: tl.constexpr, EVEN: tl.constexpr):
    """The rows at these positions."""
    return load_rows(base + positions.to(tl.int64) * stride, inside, width, BLOCK, EVEN)


@triton.jit
def chosen_rows(rows, places, inside, length):
    """The rows at these places, int32, and which of them are rows at all."""
    t = tl.load(rows + places, mask=inside, other=-1)
    inside = inside & (t >= 0) & (t < length)
    return tl.where(inside, t, 0).to(tl.int32), inside


@triton.jit
def hide(
    scores,
    t,
    s,
    inside,
    padding,
    mask,
    m_t,
    m_s,
    scale,
    PADDING: tl.constexpr,
    MASK: tl.constexpr,
    IS_CAUSAL: tl.constexpr,
    LATE: tl.constexpr,
):
    """Scores of the pairs (t, s), which broadcast against each other, with -inf at those that take no part.

    `inside`: the pairs that exist. LATE: scores are not multiplied by `scale` yet, and shall not be. MASK: 0 none,
    1 bool, 2 added numbers.
    """
    if not LATE:
        scores = scores * scale
    if MASK != 0:
        there = tl.load(mask + t.to(tl.int64) * m_t + s.to(tl.int64) * m_s, mask=inside, other=0)
        if MASK == 1:
            scores = tl.where(there != 0, scores, float("-inf"))
        else:
            scores += there.to(tl.float32) * _LOG2E
    if PADDING:
        scores = tl.where(tl.load(padding + s, mask=inside, other=1) == 0, scores, float("-inf"))
    if IS_CAUSAL:
        scores = tl.where(s <= t, scores, float("-inf"))
    return scores


@triton.jit
def factor(scale, LATE: tl.constexpr):
    """What scores are multiplied by in the exponent."""
    return scale if LATE else 1.0


class Masks(NamedTuple):
    """Masks and scale as kernels take them."""

    pointers: dict[str, Any]
    constants: dict[str, Any]


def masks_of(q: Tensor, key_padding_mask, attn_mask, is_causal: bool, scale: float) -> Masks:
    """attn_mask is [B, H, T, S] with any strides."""
    kind = 0 if attn_mask is None else 1 if attn_mask.dtype is torch.bool else 2
    mask = q if attn_mask is None else attn_mask.view(torch.uint8) if kind == 1 else attn_mask
    padding = q if key_padding_mask is None else key_padding_mask.view(torch.uint8)
    strides = (0, 0, 0, 0) if attn_mask is None else attn_mask.stride()
    pointers = {"padding": padding, "mask": mask, "scale": scale * LOG2E}
    pointers |= dict(zip(("m_b", "m_h", "m_t", "m_s"), strides))
    constants = {
        "PADDING": key_padding_mask is not None,
        "MASK": kind,
        "IS_CAUSAL": is_causal,
        # The largest product has the largest score only if the factor is positive.
        "LATE": kind != 2 and scale > 0,
    }
    return Masks(pointers, constants)


def precision(q: Tensor) -> dict[str, Any]:
    """float32 is multiplied in three parts of TF32, nearly exact, or in TF32 where torch is allowed to do that too."""
    allowed = q.dtype is torch.float32 and torch.backends.cuda.matmul.fp32_precision == "tf32"
    return {"PRECISION": "tf32" if allowed else "tf32x3", "WIDEN": INTERPRETED}


def widths(width: int, value_width: int | None = None) -> dict[str, Any]:
    """The constants that the widths of heads are rounded up to."""
    block = max(16, triton.next_power_of_2(width))
    found = {"BLOCK_D": block, "EVEN_D": block == width}
    if value_width is not None:
        block = max(16, triton.next_power_of_2(value_width))
        found |= {"BLOCK_E": block, "EVEN_E": block == value_width}
    return found


def strides(name: str, tensor: Tensor) -> dict[str, int]:
    """The first three strides of a tensor whose last dimension is contiguous."""
    return {f"{name}_{axis}": stride for axis, stride in zip("bht", tensor.stride())}


def aot_case(kernel, name: str, dtype: str, constants: dict[str, Any], num_warps: int, num_stages: int) -> dict:
    """A case for `tests/kernels/triton_aot.py`, with the divisibility that tensors of models have."""
    signature, divisible = {}, []
    whole = {"rows": "*i64", "slots": "*i32", "padding": "*u8", "mask": "*u8"}
    numbers = ("partial", "lse", "peaks", "delta", "maps", "grad_map")
    for index, argument in enumerate(kernel.arg_names):
        if argument in constants or argument == "m_s":
            signature[argument] = "constexpr"  # a stride of 1 is a constant to Triton
        elif argument == "scale":
            signature[argument] = "fp32"
        elif argument[1:2] == "_" or argument[2:3] == "_":
            signature[argument] = "i64"
        elif argument in ("q", "k", "v", "out", "grad_out", "grad_q", "grad_k", "grad_v"):
            signature[argument] = f"*{dtype}"
        elif argument == "scratch":
            signature[argument] = "*fp16" if dtype != "fp32" else "*fp32"
        else:
            signature[argument] = whole.get(argument, "*fp32" if argument in numbers else "i32")
        if signature[argument][0] == "*" or signature[argument] == "i64" or argument.endswith("pitch"):
            divisible.append(index)
    attrs = {(index,): [["tt.divisibility", 16]] for index in divisible}
    options = {"num_warps": num_warps, "num_stages": num_stages}
    return {
        "name": name,
        "kernel": kernel,
        "signature": signature,
        "constexprs": constants | ({"m_s": 1} if "m_s" in signature else {}),
        "attrs": attrs,
        "options": options,
    }
