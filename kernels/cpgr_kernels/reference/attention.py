"""Attention whose weights can be seen, and what of them lies in a region."""

import torch
from torch import Tensor

from .precision import upcast


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
) -> tuple[Tensor, Tensor]:
    """Scaled dot-product attention, and the mean over heads of its weights in chosen rows.

    q [B, H, T, D], k [B, G, S, D], v [B, G, S, E] with H a multiple of G (grouped-query attention: query head h reads
    key head h // (H / G)). rows: [R] or [B, R], integers in 0..T-1, which rows of the map are wanted (None: all T).
    key_padding_mask [B, S]: True at keys to leave out, as in torch.nn.MultiheadAttention. attn_mask: broadcastable to
    [B, H, T, S]; True at pairs that take part, or numbers that are added to the scaled scores, as in
    torch.nn.functional.scaled_dot_product_attention. is_causal: row t sees keys 0..t (T = S). scale: 1 / sqrt(D)
    unless given.

    Returns the output [B, H, T, E] in v's type and the map [B, R, S] (float32; float64 if q is). A row of the map sums
    to 1; a row that sees no key is 0 in both. Both are differentiable.
    """
    out, maps, _ = attend(q, k, v, rows, key_padding_mask, attn_mask, is_causal, scale)
    return out, maps


def attention_map(
    q: Tensor,
    k: Tensor,
    *,
    rows: Tensor | None = None,
    key_padding_mask: Tensor | None = None,
    attn_mask: Tensor | None = None,
    is_causal: bool = False,
    scale: float | None = None,
) -> Tensor:
    """The map of `attention_with_map` alone."""
    return attend(q, k, None, rows, key_padding_mask, attn_mask, is_causal, scale)[1]


def attend(q, k, v, rows, key_padding_mask, attn_mask, is_causal, scale) -> tuple[Tensor | None, Tensor, Tensor]:
    """Output (None if v is), map, and the logarithm of every row's sum of exponentials, [B, H, T].

    The last is +inf for a row that sees no key, so that exp(score - it) is the weight there too.
    """
    weights, total = _weights(q, k, key_padding_mask, attn_mask, is_causal, scale)
    maps = _rows_of(weights.mean(1), rows)
    if v is None:
        return None, maps, total
    return (weights @ _of_every_head(v, q)).to(v.dtype), maps, total


def attention_backward(
    grad_out: Tensor | None,
    grad_map: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor | None,
    *,
    rows: Tensor | None = None,
    key_padding_mask: Tensor | None = None,
    attn_mask: Tensor | None = None,
    is_causal: bool = False,
    scale: float | None = None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The gradients to q, k and v of `attention_with_map` (of `attention_map`, where v is None); None is a zero gradient.

    A row that was chosen twice adds twice. attn_mask has no gradient.
    """
    batch, heads, length, width = q.shape
    weights, _ = _weights(q, k, key_padding_mask, attn_mask, is_causal, scale)
    grad_weights, grad_v = torch.zeros_like(weights), None
    if grad_map is not None:
        grad_map = grad_map.to(weights.dtype) / heads
        if rows is not None:
            index = rows.expand(batch, rows.shape[-1]).unsqueeze(-1).expand_as(grad_map)
            grad_map = weights.new_zeros(batch, length, k.shape[2]).scatter_add(1, index, grad_map)
        grad_weights = grad_weights + grad_map.unsqueeze(1)
    if v is not None and grad_out is not None:
        grad_out = grad_out.to(weights.dtype)
        grad_weights = grad_weights + grad_out @ _of_every_head(v, q).transpose(-1, -2)
        grad_v = _of_shared_head(weights.transpose(-1, -2) @ grad_out, v)
    elif v is not None:
        grad_v = torch.zeros_like(v)
    grad_scores = weights * (grad_weights - (weights * grad_weights).sum(-1, keepdim=True))
    grad_scores = grad_scores * (width**-0.5 if scale is None else scale)
    grad_q = (grad_scores @ _of_every_head(k, q)).to(q.dtype)
    return grad_q, _of_shared_head(grad_scores.transpose(-1, -2) @ upcast(q), k), grad_v


def _of_every_head(shared: Tensor, q: Tensor) -> Tensor:
    """[B, G, S, D] -> [B, H, S, D] in the type of the computation."""
    return upcast(shared).repeat_interleave(q.shape[1] // shared.shape[1], dim=1)


def _of_shared_head(grad: Tensor, shared: Tensor) -> Tensor:
    """Sums gradients [B, H, S, D] over the query heads that share a head: [B, G, S, D]."""
    return grad.unflatten(1, (shared.shape[1], -1)).sum(2).to(shared.dtype)


def _weights(q, k, key_padding_mask, attn_mask, is_causal, scale) -> tuple[Tensor, Tensor]:
    scores = upcast(q) @ _of_every_head(k, q).transpose(-1, -2) * (q.shape[-1] ** -0.5 if scale is None else scale)
    if attn_mask is not None and attn_mask.dtype is not torch.bool:
        scores = scores + attn_mask.to(scores.dtype)
    seen = torch.ones(scores.shape, dtype=torch.bool, device=scores.device)
    if attn_mask is not None and attn_mask.dtype is torch.bool:
        seen = seen & attn_mask
    if key_padding_mask is not None:
        seen = seen & ~key_padding_mask[:, None, None, :]
    if is_causal:
        seen = seen.tril()
    scores = scores.masked_fill(~seen, -torch.inf)
    # A row without a key would be 0/0.
    blind = (scores == -torch.inf).all(-1, keepdim=True)
    total = scores.logsumexp(-1).masked_fill(blind.squeeze(-1), torch.inf)
    return scores.masked_fill(blind, 0).softmax(-1).masked_fill(blind, 0), total


def _rows_of(weights: Tensor, rows: Tensor | None) -> Tensor:
    if rows is None:
        return weights
    rows = rows.expand(len(weights), rows.shape[-1])
    return weights.gather(1, rows.unsqueeze(-1).expand(-1, -1, weights.shape[-1]))


def region_attention(
    maps: Tensor,
    boxes: Tensor,
    grid: tuple[int, int],
    gamma: float = 0.5,
    size: tuple[float, float] = (1.0, 1.0),
    least_area: float = 1e-6,
) -> Tensor:
    """The mass of attention maps in boxes, over the boxes' area to the power gamma.

    maps [..., Q, rows * columns], the cells of a `grid` of (rows, columns), row by row; boxes [..., R, 4] as x1, y1, x2,
    y2 in a frame of `size` (width, height), which the grid fills. A cell counts by the share of it that the box
    covers; area is the box's share of the frame, taken as at least `least_area`. Returns [..., Q, R]: gamma 0
    is the mass inside, 1 the density. Parts of a box outside the frame hold no cell but count in its area. Boxes
    turned inside out cover nothing. Differentiable in maps.
    """
    dtype = torch.promote_types(upcast(maps).dtype, upcast(boxes).dtype)
    maps, boxes = maps.to(dtype), boxes.to(dtype)
    height, width = grid
    across = _covered(boxes[..., 0], boxes[..., 2], width, size[0])
    down = _covered(boxes[..., 1], boxes[..., 3], height, size[1])
    coverage = (down.unsqueeze(-1) * across.unsqueeze(-2)).flatten(-2)
    sides = (boxes[..., 2:] - boxes[..., :2]).clamp(min=0)
    area = (sides[..., 0] / size[0] * (sides[..., 1] / size[1])).clamp(min=least_area)
    return maps @ coverage.transpose(-1, -2) / (area**gamma).unsqueeze(-2)


def _covered(low: Tensor, high: Tensor, cells: int, size: float) -> Tensor:
    """The share of each of `cells` equal parts of 0..size between low and high: [..., cells]."""
    step = size / cells
    start = torch.arange(cells, dtype=low.dtype, device=low.device) * step
    low, high = low.unsqueeze(-1), high.unsqueeze(-1)
    return (torch.minimum(high, start + step) - torch.maximum(low, start)).clamp(min=0) / step
