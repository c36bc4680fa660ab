"""How much of a response falls into each of many masks."""

import torch
from torch import Tensor

from .precision import upcast


def mask_overlap(responses: Tensor, masks: Tensor, threshold: float) -> tuple[Tensor, ...]:
    """How much of each response lies in each mask of its sample.

    responses P [B, K, H, W], K maps a sample; masks m [B, N, H, W], of booleans, bytes (0: outside, else inside) or
    numbers. A response times a mask of numbers is a product; times a boolean mask it is the response inside and 0
    outside, so a NaN or an infinity outside does no harm. With sums and maxima over all H W pixels, returned are

        inter [B, K, N]     sum of P m
        response [B, K]     sum of P
        mask [B, N]         sum of m
        hard [B, K, N]      sum of m where P > threshold
        peak [B, K, N]      max of P m: 0 or more for a boolean mask that leaves a pixel out
        argmax [B, K, N]    the first pixel of it, int64, row by row; 0 where P m is 0 everywhere

    float64 if either is, else float32. A NaN in P m is the peak. B, K or N of zero gives empty results.
    """
    p, m, _ = _pixels(responses, masks)
    product = _times(p.unsqueeze(2), m.unsqueeze(1))
    peak, argmax = product.max(-1)
    size = m.to(p.dtype)
    hard = torch.where(p.unsqueeze(2) > threshold, size.unsqueeze(1), 0).sum(-1)
    return product.sum(-1), p.sum(-1), size.sum(-1), hard, peak, argmax


def mask_overlap_backward(
    grad_inter: Tensor | None,
    grad_response: Tensor | None,
    grad_mask: Tensor | None,
    grad_hard: Tensor | None,
    grad_peak: Tensor | None,
    responses: Tensor,
    masks: Tensor,
    argmax: Tensor,
    threshold: float,
) -> tuple[Tensor, Tensor]:
    """The gradients of both; None is a gradient of zero. Differentiable itself. That of boolean masks means nothing.

    A peak passes its gradient to one pixel, the one of argmax.
    """
    p, m, shapes = _pixels(responses, masks)
    size = m.to(p.dtype)
    to_p, to_m = torch.zeros_like(p), torch.zeros_like(size)
    if grad_inter is not None:
        to_p = to_p + grad_inter @ size
        to_m = to_m + grad_inter.transpose(1, 2) @ p
    if grad_response is not None:
        to_p = to_p + grad_response.unsqueeze(-1)
    if grad_mask is not None:
        to_m = to_m + grad_mask.unsqueeze(-1)
    if grad_hard is not None:
        to_m = to_m + grad_hard.transpose(1, 2) @ (p > threshold).to(p.dtype)
    if grad_peak is not None:
        across = argmax.transpose(1, 2)
        to_p = to_p.scatter_add(2, argmax, grad_peak * size.gather(2, across).transpose(1, 2))
        to_m = to_m.scatter_add(2, across, grad_peak.transpose(1, 2) * p.gather(2, argmax).transpose(1, 2))
    return to_p.view(shapes[0]), to_m.view(shapes[1])


def _pixels(responses: Tensor, masks: Tensor) -> tuple[Tensor, Tensor, tuple[torch.Size, torch.Size]]:
    """Both with their pixels in one dimension, numbers of one type, masks of bytes as booleans."""
    p = upcast(responses)
    if masks.is_floating_point():
        m = upcast(masks)
        common = torch.promote_types(p.dtype, m.dtype)
        p, m = p.to(common), m.to(common)
    else:
        m = masks != 0
    return p.flatten(2), m.flatten(2), (p.shape, m.shape)


def _times(response: Tensor, mask: Tensor) -> Tensor:
    return torch.where(mask, response, 0) if mask.dtype is torch.bool else response * mask
