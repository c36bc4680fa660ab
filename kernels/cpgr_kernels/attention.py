"""Attention whose weights can be read: the output, and the head mean of chosen rows. `reference.attention_with_map` says
what it means. No [B, H, T, S] tensor is made, neither forward nor backward.
"""

import torch
from torch import Tensor

from . import attention_cpp, dispatch, reference
from .arguments import check_device
from .attention_cpp import compute_type, empty_output
from .library import define, differentiable

OP = "attention_with_map"


def attention_with_map(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    rows: Tensor | None = None,
    key_padding_mask: Tensor | None = None,
    attn_mask: Tensor | None = None,
    is_causal: bool = False,
    scale: float | None = None,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Scaled dot-product attention, and the mean over heads of its weights, with gradient through both.

    Args:
        q: [B, H, T, D], of a floating-point type that k and v share. Any strides will do: a transposed view is not
            copied as long as its last dimension is contiguous.
        k: [B, G, S, D], G a divisor of H: query head h reads key head h // (H / G).
        v: [B, G, S, E].
        rows: [R] or [B, R], integers in 0..T-1: the rows of the map that are wanted; one may come twice. None: all.
        key_padding_mask: [B, S], True at keys to leave out, as in torch.nn.MultiheadAttention.
        attn_mask: broadcastable to [B, H, T, S]. True at pairs that take part, or numbers added to the scaled scores, as
            in torch.nn.functional.scaled_dot_product_attention. It gets no gradient.
        is_causal: row t sees keys 0..t; T = S.
        scale: factor of the scores, 1 / sqrt(D) unless given.
        backend: "cpp", "triton", "reference", or None for the best that can run.

    Returns:
        The output [B, H, T, E] in v's type, laid out [B, T, H, E] in memory, and the map [B, R, S] (float32; float64 if
        q is), whose rows sum to 1. A row that sees no key is 0 in both. Sums are made in float32 (float64).

    Raises:
        IndexError: a row outside 0..T-1 (on a GPU, where it would cost a synchronisation, its map is 0 instead).

    Example:
        >>> q, k, v = torch.rand(1, 8, 5, 64), torch.rand(1, 8, 99, 64), torch.rand(1, 8, 99, 64)
        >>> out, first = attention_with_map(q, k, v, rows=torch.tensor([0]))
        >>> out.shape, first.shape
        (torch.Size([1, 8, 5, 64]), torch.Size([1, 1, 99]))
    """
    scale = q.shape[-1] ** -0.5 if scale is None else float(scale)
    return _with_map_op(q, k, v, rows, key_padding_mask, attn_mask, bool(is_causal), scale, backend)[:2]


def attention_map(
    q: Tensor,
    k: Tensor,
    *,
    rows: Tensor | None = None,
    key_padding_mask: Tensor | None = None,
    attn_mask: Tensor | None = None,
    is_causal: bool = False,
    scale: float | None = None,
    backend: str | None = None,
) -> Tensor:
    """The map of `attention_with_map` alone, [B, R, S]: only the chosen rows are computed. Same arguments without v.

    Example:
        >>> attention_map(torch.rand(1, 12, 577, 64), torch.rand(1, 12, 577, 64), rows=torch.tensor([0])).shape
        torch.Size([1, 1, 577])
    """
    scale = q.shape[-1] ** -0.5 if scale is None else float(scale)
    return _map_op(q, k, rows, key_padding_mask, attn_mask, bool(is_causal), scale, backend)[0]


def _check(op, q, k, v, rows, key_padding_mask, attn_mask, is_causal) -> None:
    shapes = ", ".join(f"{name} {list(x.shape)}" for name, x in (("q", q), ("k", k), ("v", v)) if x is not None)
    fit = q.dim() == k.dim() == 4 and k.shape[0] == q.shape[0] and k.shape[3] == q.shape[3]
    if v is not None:
        fit = fit and v.dim() == 4 and v.shape[:3] == k.shape[:3]
    if not fit:
        raise ValueError(f"{op}: q, k and v must be [B, H, T, D], [B, G, S, D] and [B, G, S, E], got {shapes}")
    (batch, heads, length, width), (_, groups, keys, _) = q.shape, k.shape
    if width < 1:
        raise ValueError(f"{op}: heads must be at least 1 wide, got {shapes}")
    if groups < 1 or heads < 1 or heads % groups:
        raise ValueError(f"{op}: the heads of q must be a multiple of those of k, got {shapes}")
    for name, x in (("q", q), ("k", k), ("v", v)):
        if x is not None and (not x.is_floating_point() or x.dtype is not q.dtype):
            raise TypeError(f"{op}: q, k and v must be of one floating-point type, q is {q.dtype} and {name} {x.dtype}")
    check_device(op, q=q, k=k, v=v, rows=rows, key_padding_mask=key_padding_mask, attn_mask=attn_mask)
    if is_causal and length != keys:
        raise ValueError(f"{op}: is_causal needs as many queries as keys, got {shapes}")
    if rows is not None:
        if rows.dim() not in (1, 2) or (rows.dim() == 2 and rows.shape[0] != batch):
            raise ValueError(f"{op}: rows must be [R] or [B, R] with B = {batch}, got {list(rows.shape)}")
        if rows.dtype is torch.bool or rows.is_floating_point() or rows.is_complex():
            raise TypeError(f"{op}: rows must be integers, got {rows.dtype}")
    if key_padding_mask is not None:
        if tuple(key_padding_mask.shape) != (batch, keys):
            raise ValueError(f"{op}: key_padding_mask must be [{batch}, {keys}], got {list(key_padding_mask.shape)}")
        if key_padding_mask.dtype is not torch.bool:
            raise TypeError(f"{op}: key_padding_mask must be bool, True at keys left out, got {key_padding_mask.dtype}")
    if attn_mask is not None:
        _check_attn_mask(op, attn_mask, (batch, heads, length, keys))


def _check_attn_mask(op: str, mask: Tensor, shape: tuple) -> None:
    if mask.dim() > 4 or any(size not in (1, wanted) for size, wanted in zip(reversed(mask.shape), reversed(shape))):
        raise ValueError(f"{op}: attn_mask must broadcast to {list(shape)}, got {list(mask.shape)}")
    if mask.dtype is not torch.bool and not mask.is_floating_point():
        raise TypeError(f"{op}: attn_mask must be bool or of a floating-point type, got {mask.dtype}")
    if torch.is_grad_enabled():
        _check_mask_needs_no_gradient(op, mask)


def _check_mask_needs_no_gradient(op: str, mask: Tensor | None) -> None:
    if mask is not None and mask.requires_grad:
        raise ValueError(f"{op}: attn_mask gets no gradient; detach it, or use torch's own attention where it must")


def _check_rows(op: str, rows: Tensor | None, length: int) -> None:
    # On a GPU the kernels leave such rows out: to look would wait for the device.
    if rows is not None and rows.device.type == "cpu" and rows.numel():
        least, most = rows.aminmax()
        if least < 0 or most >= length:
            raise IndexError(f"{op}: rows must be in 0..{length - 1}, got {int(least)}..{int(most)}")


def _arguments(q, k, v, rows, key_padding_mask, attn_mask):
    """Tensors as the kernels take them: last dimension contiguous, rows [B, R] int64, attn_mask expanded to 4 dimensions."""
    q, k, v = (None if x is None else x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v))
    if rows is not None:
        rows = rows.long().expand(q.shape[0], rows.shape[-1]).contiguous()
    if key_padding_mask is not None:
        key_padding_mask = key_padding_mask.contiguous()
    if attn_mask is not None:
        attn_mask = attn_mask.expand(q.shape[0], q.shape[1], q.shape[2], k.shape[2])
    return q, k, v, rows, key_padding_mask, attn_mask


def _laid_out_as(wanted: Tensor, found: Tensor) -> Tensor:
    """`found` in the memory layout that the fake kernels promise; a copy only where a backend chose another."""
    return found if found.stride() == wanted.stride() else wanted.copy_(found)


def _forward(op, q, k, v, rows, key_padding_mask, attn_mask, is_causal, scale, backend):
    _check(op, q, k, v, rows, key_padding_mask, attn_mask, is_causal)
    _check_rows(op, rows, q.shape[2])
    run = dispatch.choose(op, q.device.type, backend)
    if not (q.numel() and k.numel() and (v is None or v.numel()) and (rows is None or rows.numel())):
        run = _reference  # nothing to compute but zeros
    return run(*_arguments(q, k, v, rows, key_padding_mask, attn_mask), is_causal, scale)


def _with_map(q, k, v, rows, key_padding_mask, attn_mask, is_causal, scale, backend=None):
    out, maps, lse = _forward(OP, q, k, v, rows, key_padding_mask, attn_mask, is_causal, scale, backend)
    return _laid_out_as(empty_output(q, v), out), maps, lse


def _map(q, k, rows, key_padding_mask, attn_mask, is_causal, scale, backend=None):
    _, maps, lse = _forward("attention_map", q, k, None, rows, key_padding_mask, attn_mask, is_causal, scale, backend)
    return maps, lse


def _map_fake(q, k, rows, key_padding_mask, attn_mask, is_causal, scale, backend=None):
    _check("attention_map", q, k, None, rows, key_padding_mask, attn_mask, is_causal)
    dtype, chosen = compute_type(q), q.shape[2] if rows is None else rows.shape[-1]
    return q.new_empty(q.shape[0], chosen, k.shape[2], dtype=dtype), q.new_empty(q.shape[:3], dtype=dtype)


def _with_map_fake(q, k, v, rows, key_padding_mask, attn_mask, is_causal, scale, backend=None):
    _check(OP, q, k, v, rows, key_padding_mask, attn_mask, is_causal)
    return empty_output(q, v), *_map_fake(q, k, rows, key_padding_mask, attn_mask, is_causal, scale)


def _backward(grad_out, grad_map, q, k, v, out, lse, rows, key_padding_mask, attn_mask, is_causal, scale, backend=None):
    op = "attention_backward"
    _check(op, q, k, v, rows, key_padding_mask, attn_mask, is_causal)
    _check_rows(op, rows, q.shape[2])
    dtype, chosen = compute_type(q), q.shape[2] if rows is None else rows.shape[-1]
    wanted = {"lse": q.shape[:3], "grad_map": (q.shape[0], chosen, k.shape[2])}
    if v is not None:
        wanted["out"] = wanted["grad_out"] = (*q.shape[:3], v.shape[3])
    found = {"lse": lse, "grad_map": grad_map, "out": out, "grad_out": grad_out}
    check_device(op, q=q, **found)
    for name, tensor in found.items():
        if tensor is not None and (name not in wanted or tuple(tensor.shape) != tuple(wanted[name])):
            given = list(wanted[name]) if name in wanted else "None where v is"
            raise ValueError(f"{op}: {name} must be {given}, got {list(tensor.shape)}")
    if lse.dtype is not dtype or (v is not None and (out is None or out.dtype is not q.dtype)):
        raise TypeError(f"{op}: lse must be {dtype} and out of q's type, as attention_with_map returns them")
    run = dispatch.choose(op, q.device.type, backend)
    if not (q.numel() and k.numel() and (v is None or v.numel())) or (grad_out is None and grad_map is None):
        run = _reference_backward
    if grad_out is not None:
        grad_out = grad_out.to(q.dtype)
        grad_out = grad_out if grad_out.stride(-1) == 1 else grad_out.contiguous()
    if grad_map is not None:
        grad_map = grad_map.to(dtype).contiguous()
        grad_map = None if not grad_map.numel() else grad_map
    masked = _arguments(q, k, v, rows, key_padding_mask, attn_mask)
    grads = run(grad_out, grad_map, *masked[:3], out, lse.contiguous(), *masked[3:], is_causal, scale)
    return tuple(_laid_out_as(w, g) for w, g in zip(_backward_fake(grad_out, grad_map, q, k, v), grads))


def _backward_fake(grad_out, grad_map, q, k, v, *others):
    return torch.empty_like(q), torch.empty_like(k), q.new_empty(0) if v is None else torch.empty_like(v)


def _reference(q, k, v, rows, *others):
    out, maps, lse = reference.attention.attend(q, k, v, rows, *others)
    return out, maps.contiguous(), lse


def _reference_backward(grad_out, grad_map, q, k, v, out, lse, rows, key_padding_mask, attn_mask, is_causal, scale):
    masks = {"key_padding_mask": key_padding_mask, "attn_mask": attn_mask, "is_causal": is_causal}
    grads = reference.attention_backward(grad_out, grad_map, q, k, v, rows=rows, scale=scale, **masks)
    return grads if v is not None else (*grads[:2], q.new_empty(0))


def _triton(*arguments):
    from .triton_kernels.attention import attention_forward

    return attention_forward(*arguments)


def _triton_backward(*arguments):
    from .triton_kernels.attention import attention_backward

    return attention_backward(*arguments)


# Every backend is called with what `_arguments` returns and gives what attention_forward is said to give:
#   forward(q, k, v or None, rows [B, R] or None, key_padding_mask or None, attn_mask [B, H, T, S] or None, is_causal,
#           scale) -> (out in v's type or None, map [B, R, S], lse [B, H, T])
#   backward(grad_out or None, grad_map or None, q, k, v, out, lse, rows, key_padding_mask, attn_mask, is_causal, scale)
#           -> (grad_q, grad_k, grad_v) in the types of q, k and v; of no elements for a v that is None
# lse is the logarithm of a row's sum of exponentials, +inf for a row without a key; without v it need be set for the
# chosen rows alone. The map and lse are contiguous; out and the gradients may have any layout, but those of `empty_output`
# and `torch.empty_like` are not copied again.
dispatch.register(OP, cpp=attention_cpp.forward, triton=_triton, reference=_reference)
dispatch.register("attention_map", cpp=attention_cpp.forward, triton=_triton, reference=_reference)
dispatch.register(
    "attention_backward", cpp=attention_cpp.backward, triton=_triton_backward, reference=_reference_backward
)

_MASKS = "Tensor? rows, Tensor? key_padding_mask, Tensor? attn_mask, bool is_causal, float scale, str? backend=None"
_backward_op = define(
    "attention_backward(Tensor? grad_out, Tensor? grad_map, Tensor q, Tensor k, Tensor? v, Tensor? out, Tensor lse, "
    f"{_MASKS}) -> (Tensor, Tensor, Tensor)",
    _backward,
    _backward_fake,
)


def _remember(ctx, q, k, v, masks, out, lse):
    rows, key_padding_mask, attn_mask, *ctx.settings = masks
    _check_mask_needs_no_gradient(OP, attn_mask)  # the kernel runs with gradients switched off
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(lse)
    ctx.save_for_backward(q, k, v, out, lse, rows, key_padding_mask, attn_mask)


def _gradients(ctx, grad_out, grad_map):
    q, k, v, out, lse, rows, key_padding_mask, attn_mask = ctx.saved_tensors
    is_causal, scale, backend = ctx.settings
    if grad_out is None and grad_map is None:
        return None, None, None
    if torch.is_grad_enabled():  # a second derivative is wanted: the reference is differentiable
        masks = {"rows": rows, "key_padding_mask": key_padding_mask, "attn_mask": attn_mask, "is_causal": is_causal}
        return reference.attention_backward(grad_out, grad_map, q, k, v, scale=scale, **masks)
    masks = rows, key_padding_mask, attn_mask, is_causal, scale, backend
    return _backward_op(grad_out, grad_map, q, k, v, out, lse, *masks)


def _setup_with_map(ctx, inputs, output):
    _remember(ctx, *inputs[:3], inputs[3:], output[0], output[2])


def _setup_map(ctx, inputs, output):
    _remember(ctx, *inputs[:2], None, inputs[2:], None, output[1])


def _gradient_with_map(ctx, grad_out, grad_map, _):
    return *_gradients(ctx, grad_out, grad_map), *[None] * 6


def _gradient_map(ctx, grad_map, _):
    return *_gradients(ctx, None, grad_map)[:2], *[None] * 6


_with_map_op = differentiable(
    define(
        f"attention_with_map(Tensor q, Tensor k, Tensor v, {_MASKS}) -> (Tensor, Tensor, Tensor)",
        _with_map,
        _with_map_fake,
    ),
    _setup_with_map,
    _gradient_with_map,
    tensors=3,
)
_map_op = differentiable(
    define(f"attention_map(Tensor q, Tensor k, {_MASKS}) -> (Tensor, Tensor)", _map, _map_fake),
    _setup_map,
    _gradient_map,
    tensors=2,
)
