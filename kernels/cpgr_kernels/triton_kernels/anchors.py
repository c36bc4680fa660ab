"""anchor_scores and RefCLIP's contrastive loss: the k best anchors of `top`, the gradients of `gradients`.

The loss is made from the [Q, B, k] values by a small kernel of its own: one program a query, whose row is contiguous.
In the kernel of the products a program would have to walk all images of its queries, and Q / 128 programs do not fill
a card: at B = Q = 1024 that is 8 of 132 multiprocessors. Bytes: 4 k Q B, from L2, where they were just written.

What is kept for the gradient are values and indices, (4 + 2) k Q B bytes, and lse.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .. import reference
from . import gradients
from ._common import TYPES, aot_case, power_of_two
from .top import best_anchors

MAX_K = 8  # the k best of a tile are kept in registers; the reference chooses more, and computes in float64


@triton.jit(do_not_specialize=["images"])
def _loss_kernel(
    values,
    positive,
    image_ids,
    losses,
    lse,
    images,
    scale,
    K: tl.constexpr,
    POSITIVE: tl.constexpr,
    MASKED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One query: the log of the sum of the exponentials of its positive and its negatives, and the loss.

    A `positive` that is no image gives NaN.
    """
    query = tl.program_id(0)
    own = query.to(tl.int64)
    if POSITIVE:
        own = tl.load(positive + query)
    is_image = (own >= 0) & (own < images)
    own = tl.where(is_image, own, 0)
    row = values + query.to(tl.int64) * images * K
    positive_score = tl.load(row + own * K) * scale
    if MASKED:
        own_id = tl.load(image_ids + own)
    highest = positive_score
    base = tl.where(tl.abs(highest) == float("inf"), 0.0, highest)
    total = tl.exp(positive_score - base)
    for start in range(0, images * K, BLOCK):
        entry = start + tl.arange(0, BLOCK)
        image = entry // K
        counts = (image < images) & (image != own)
        if MASKED:
            counts &= tl.load(image_ids + image, mask=image < images, other=0) != own_id
        scores = tl.where(counts, tl.load(row + entry, mask=image < images, other=0.0) * scale, -float("inf"))
        new_highest = tl.maximum(highest, tl.max(scores, 0))
        base = tl.where(tl.abs(new_highest) == float("inf"), 0.0, new_highest)
        total = total * tl.exp(highest - base) + tl.sum(tl.exp(scores - base), 0)
        highest = new_highest
    log = tl.log(total)
    # Not as lse minus the positive's score: log(total) is near 0 where the loss is.
    tl.store(losses + query, tl.where(is_image, log + (base - positive_score), float("nan")))
    tl.store(lse + query, tl.where(is_image, log + base, float("nan")))


def _by_reference(anchors: Tensor, k: int) -> bool:
    return k > MAX_K or anchors.dtype not in TYPES


def anchor_scores_forward(
    anchors: Tensor,
    queries: Tensor,
    k: int,
    *,
    index_dtype: torch.dtype = torch.int32,
    config: dict[str, Any] | None = None,
) -> tuple[Tensor, Tensor]:
    """The k best anchors [B, N, D] of every image for every query [Q, D]: values and indices [Q, B, k].

    Types float32, float16, bfloat16; values are float32.
    """
    if _by_reference(anchors, k):
        values, indices = reference.anchor_scores(anchors, queries, k)
        return values, indices.to(index_dtype)
    return best_anchors(anchors, queries, k, index_dtype, config)


def anchor_scores_backward(
    grad: Tensor, anchors: Tensor, queries: Tensor, indices: Tensor, *, config: dict[str, Any] | None = None
) -> tuple[Tensor, Tensor]:
    """Gradients of anchors and queries, in their type, from grad [Q, B, k] of the values and their indices."""
    k = indices.shape[2]
    if _by_reference(anchors, k):
        return _in_type(anchors, *reference.anchor_scores_backward(grad, anchors, queries, indices))
    return gradients.gradients(gradients.GRADS, anchors, queries, grad.contiguous(), indices, k=k, config=config)


def _in_type(like: Tensor, *results: Tensor) -> tuple[Tensor, ...]:
    return tuple(result.to(like.dtype) for result in results)


def _positive(positive: Tensor | None, queries: Tensor) -> Tensor:
    return torch.arange(len(queries), device=queries.device) if positive is None else positive


def anchor_contrast_forward(
    anchors: Tensor,
    queries: Tensor,
    positive: Tensor | None,
    image_ids: Tensor | None,
    k: int,
    scale: float,
    *,
    config: dict[str, Any] | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """RefCLIP's loss of every query: losses [Q], and for the backward pass lse [Q], values and indices [Q, B, k].

    Values are unscaled; indices are int16 where they fit. positive [Q] (None: query q belongs to image q) and
    image_ids [B] are int64. A `positive` that is no image gives NaN.
    """
    images, count, _ = anchors.shape
    rows = queries.shape[0]
    index_dtype = torch.int16 if count <= 32767 else torch.int32
    if _by_reference(anchors, k):
        where = _positive(positive, queries)
        *results, indices = reference.anchor_contrast_terms(anchors, queries, where, image_ids, k, scale)
        return *results, indices.to(index_dtype)
    values, indices = anchor_scores_forward(anchors, queries, k, index_dtype=index_dtype, config=config)
    losses = torch.empty(rows, dtype=torch.float32, device=anchors.device)
    lse = torch.empty_like(losses)
    if values.numel():
        block = min(1024, max(16, power_of_two(images * k)))
        _loss_kernel[(rows,)](
            values, *(indices if each is None else each for each in (positive, image_ids)), losses, lse, images, scale,
            K=k, POSITIVE=positive is not None, MASKED=image_ids is not None, BLOCK=block,
            num_warps=4 if block > 128 else 1, enable_fp_fusion=True,
        )  # fmt: skip
    return losses, lse, values, indices


def anchor_contrast_backward(
    grad_losses: Tensor,
    anchors: Tensor,
    queries: Tensor,
    positive: Tensor | None,
    image_ids: Tensor | None,
    lse: Tensor,
    values: Tensor,
    indices: Tensor,
    scale: float,
    *,
    config: dict[str, Any] | None = None,
) -> tuple[Tensor, Tensor]:
    """Gradients of anchors and queries, in their type, from grad_losses [Q] and what the forward pass returned.

    grad_losses may have any stride: the gradient of a mean, expanded, is not copied first.
    """
    if _by_reference(anchors, indices.shape[2]):
        where = _positive(positive, queries)
        saved = lse, values, indices
        grads = reference.anchor_contrast_backward(grad_losses, anchors, queries, where, image_ids, *saved, scale)
        return _in_type(anchors, *grads)
    return gradients.gradients(
        gradients.CONTRAST,
        anchors,
        queries,
        grad_losses,
        indices,
        k=indices.shape[2],
        scale=scale,
        values=values,
        lse=lse,
        positive=positive,
        image_ids=image_ids,
        config=config,
    )


_AOT_TYPES = {"values": "*fp32", "positive": "*i64", "image_ids": "*i64", "losses": "*fp32", "lse": "*fp32"}
_AOT_TYPES |= {"images": "i32:1", "scale": "fp32"}
AOT_CASES = [
    aot_case(
        "loss", _loss_kernel, _AOT_TYPES, {"K": 2, "POSITIVE": True, "MASKED": True, "BLOCK": 1024}, {"num_warps": 4}
    )
]
