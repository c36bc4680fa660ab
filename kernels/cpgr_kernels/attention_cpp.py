"""The C++ kernels of attention, called with addresses, sizes and strides. Arguments are those of `attention._arguments`."""

import torch
from torch import Tensor

from . import native

_TYPES = {torch.float32: "float32", torch.float64: "float64", torch.bfloat16: "bfloat16"}  # of q, k and v
_KINDS = {torch.bool: 1}  # of attn_mask: 0 none, 1 booleans, 2 numbers


def compute_type(q: Tensor) -> torch.dtype:
    """The type of sums, of maps and of lse."""
    return torch.float64 if q.dtype is torch.float64 else torch.float32


def empty_output(q: Tensor, v: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """[B, H, T, E] laid out [B, T, H, E], so that a model's transpose(1, 2) of it is contiguous."""
    batch, heads, length, _ = q.shape
    return v.new_empty(batch, length, heads, v.shape[3], dtype=dtype).transpose(1, 2)


def forward(q, k, v, rows, key_padding_mask, attn_mask, is_causal, scale):
    """(out or None, map, lse); half precision is computed in float32."""
    dtype, kept = compute_type(q), q.dtype
    q, k, v = _readable(q, k, v)
    attn_mask = _converted(attn_mask, dtype)
    batch, heads, length, _ = q.shape
    chosen, keys = length if rows is None else rows.shape[1], k.shape[2]
    out = None if v is None else empty_output(q, v, dtype)
    maps = q.new_empty(batch, chosen, keys, dtype=dtype)
    # Without v the kernel writes the chosen rows' alone.
    fresh = q.new_empty if v is not None or rows is None else q.new_zeros
    lse = fresh(batch, heads, length, dtype=dtype)
    native.cpu()[0].attention_forward(
        _TYPES[q.dtype],
        *_input(q, k, v, rows, key_padding_mask, attn_mask, is_causal, scale),
        _address(out),
        _strides(out),
        maps.data_ptr(),
        lse.data_ptr(),
        torch.get_num_threads(),
    )
    return None if out is None else out.to(kept), maps, lse


def backward(grad_out, grad_map, q, k, v, out, lse, rows, key_padding_mask, attn_mask, is_causal, scale):
    """(grad_q, grad_k, grad_v), of no elements for a v that is None."""
    dtype, kept = compute_type(q), q.dtype
    q, k, v, grad_out = _readable(q, k, v, grad_out)
    attn_mask = _converted(attn_mask, dtype)
    # A row that was chosen twice adds to its gradient twice; without grad_out other rows are not visited at all.
    grad_q = (torch.zeros_like if grad_out is None and rows is not None else torch.empty_like)(q, dtype=dtype)
    # A v whose output is not used has no gradient.
    grad_v = (
        q.new_empty(0) if v is None else (torch.zeros_like if grad_out is None else torch.empty_like)(v, dtype=dtype)
    )
    grad_k, used = torch.empty_like(k, dtype=dtype), None if grad_out is None else v
    native.cpu()[0].attention_backward(
        _TYPES[q.dtype],
        *_input(q, k, used, rows, key_padding_mask, attn_mask, is_causal, scale),
        tuple(_address(x) for x in (grad_out, grad_map)),
        tuple(_address(x) for x in (grad_q, grad_k, None if used is None else grad_v)),
        tuple(_strides(x) for x in (grad_out, grad_q, grad_k, None if used is None else grad_v)),
        torch.get_num_threads(),
    )
    return grad_q.to(kept), grad_k.to(kept), grad_v.to(kept)


def _readable(*tensors: Tensor | None) -> list[Tensor | None]:
    """Types that the kernels do not read become float32."""
    return [x if x is None or x.dtype in _TYPES else x.float() for x in tensors]


# Addresses outlive no tensor: what is converted is converted by the callers, which hold it while the kernel runs.
def _input(q, k, v, rows, key_padding_mask, attn_mask, is_causal, scale):
    (batch, heads, length, width), (_, groups, keys, _) = q.shape, k.shape
    chosen = length if rows is None else rows.shape[1]
    sizes = (batch, heads, groups, length, keys, width, 0 if v is None else v.shape[3], chosen)
    kind = 0 if attn_mask is None else _KINDS.get(attn_mask.dtype, 2)
    addresses = tuple(_address(x) for x in (q, k, v, rows, key_padding_mask, attn_mask))
    mask_strides = (0, 0, 0, 0) if attn_mask is None else attn_mask.stride()
    return addresses, sizes, (_strides(q), _strides(k), _strides(v)), mask_strides, kind, is_causal, scale


def _converted(expanded: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """The mask's numbers in the type of the computation; what is repeated stays one number in memory."""
    if expanded is None or expanded.dtype in (torch.bool, dtype):
        return expanded
    once = expanded[tuple(slice(0, 1) if stride == 0 else slice(None) for stride in expanded.stride())]
    return once.to(dtype).expand(expanded.shape)


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _strides(tensor: Tensor | None) -> tuple[int, int, int]:
    return (0, 0, 0) if tensor is None else tensor.stride()[:3]
