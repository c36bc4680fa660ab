"""The C++ kernels of attention, called with addresses, sizes and strides. Arguments are those of `attention._arguments`."""

import torch
from torch import Tensor

from . import native

_KINDS = {torch.bool: 1}  # of attn_mask: 0 none, 1 booleans, 2 numbers


def forward(q, k, v, rows, key_padding_mask, attn_mask, is_causal, scale):
    """(out or None, map, lse); half precision is computed in float32."""
    from .attention import compute_type, empty_output

    dtype, kept = compute_type(q), q.dtype
    q, k, v = (None if x is None else x.to(dtype) for x in (q, k, v))
    batch, heads, length, _ = q.shape
    chosen, keys = length if rows is None else rows.shape[1], k.shape[2]
    out = None if v is None else empty_output(q, v)
    maps = q.new_empty(batch, chosen, keys)
    # Without v the kernel writes the chosen rows' alone.
    lse = q.new_empty(batch, heads, length) if v is not None or rows is None else q.new_zeros(batch, heads, length)
    native.cpu()[0].attention_forward(
        dtype is torch.float64,
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
    from .attention import compute_type

    dtype, kept = compute_type(q), q.dtype
    q, k, v, grad_out = (None if x is None else x.to(dtype) for x in (q, k, v, grad_out))
    # A row that was chosen twice adds to its gradient twice; without grad_out other rows are not visited at all.
    grad_q = torch.zeros_like(q) if grad_out is None and rows is not None else torch.empty_like(q)
    # A v whose output is not used has no gradient.
    grad_v = q.new_empty(0) if v is None else torch.zeros_like(v) if grad_out is None else torch.empty_like(v)
    grad_k, used = torch.empty_like(k), None if grad_out is None else v
    native.cpu()[0].attention_backward(
        dtype is torch.float64,
        *_input(q, k, used, rows, key_padding_mask, attn_mask, is_causal, scale),
        tuple(_address(x) for x in (grad_out, grad_map)),
        tuple(_address(x) for x in (grad_q, grad_k, None if used is None else grad_v)),
        tuple(_strides(x) for x in (grad_out, grad_q, grad_k, None if used is None else grad_v)),
        torch.get_num_threads(),
    )
    return grad_q.to(kept), grad_k.to(kept), grad_v.to(kept)


def _input(q, k, v, rows, key_padding_mask, attn_mask, is_causal, scale):
    (batch, heads, length, width), (_, groups, keys, _) = q.shape, k.shape
    chosen = length if rows is None else rows.shape[1]
    sizes = (batch, heads, groups, length, keys, width, 0 if v is None else v.shape[3], chosen)
    if attn_mask is not None and attn_mask.dtype is not torch.bool and attn_mask.dtype is not q.dtype:
        attn_mask = _converted(attn_mask, q.dtype)
    kind = 0 if attn_mask is None else _KINDS.get(attn_mask.dtype, 2)
    addresses = tuple(_address(x) for x in (q, k, v, rows, key_padding_mask, attn_mask))
    mask_strides = (0, 0, 0, 0) if attn_mask is None else attn_mask.stride()
    return addresses, sizes, (_strides(q), _strides(k), _strides(v)), mask_strides, kind, is_causal, scale


def _converted(expanded: Tensor, dtype: torch.dtype) -> Tensor:
    """`expanded` in another type; what is repeated stays one number in memory."""
    once = expanded[tuple(slice(0, 1) if stride == 0 else slice(None) for stride in expanded.stride())]
    return once.to(dtype).expand(expanded.shape)


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _strides(tensor: Tensor | None) -> tuple[int, int, int]:
    return (0, 0, 0) if tensor is None else tensor.stride()[:3]
