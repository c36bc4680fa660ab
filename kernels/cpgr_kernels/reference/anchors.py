"""Anchors of images against queries: scores, RefCLIP's contrast, late interaction."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .precision import upcast


def anchor_scores(anchors: Tensor, queries: Tensor, k: int = 1) -> tuple[Tensor, Tensor]:
    """The k best anchors of every image for every query.

    anchors [B, N, D], queries [Q, D]. Returns scores [Q, B, k], descending, and the indices [Q, B, k] (int64) of the
    anchors that have them: S[q, b, n] = <queries[q], anchors[b, n]>. 1 <= k <= N. Which of several equal scores comes
    first is not defined; kernels take the lowest index. A NaN score comes first. Gradient: of the scores alone, to
    the chosen anchors and their queries.
    """
    anchors, queries = upcast(anchors), upcast(queries)
    scores = torch.einsum("bnd,qd->qbn", anchors, queries)
    values, indices = scores.topk(k, dim=-1)
    return values, indices


def anchor_scores_backward(grad: Tensor, anchors: Tensor, queries: Tensor, indices: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of anchors and queries from those of the scores [Q, B, k]. Differentiable itself."""
    anchors, queries = upcast(anchors), upcast(queries)
    dense = grad.new_zeros(*grad.shape[:2], anchors.shape[1]).scatter_add(-1, indices.long(), grad)
    return torch.einsum("qbn,qd->bnd", dense, queries), torch.einsum("qbn,bnd->qd", dense, anchors)


def anchor_contrast(
    anchors: Tensor,
    queries: Tensor,
    *,
    positive: Tensor | None = None,
    image_ids: Tensor | None = None,
    negatives_per_image: int = 2,
    temperature: float = 1.0,
    normalize: bool = False,
) -> Tensor:
    """RefCLIP's anchor-query contrastive loss (Jin et al., CVPR 2023, section 3.3), a scalar.

    anchors [B, N, D], queries [Q, D]. Query q belongs to image positive[q] ([Q], integers in 0..B-1; None: Q = B and
    query q to image q). With S[q, b, n] = <queries[q], anchors[b, n]> / temperature and M_j its j-th largest over n,

        Z_q  = log( exp M_1[q, positive[q]] + sum over b != positive[q], not masked, and j <= negatives_per_image
                    of exp M_j[q, b] )
        loss = mean over q of Z_q - M_1[q, positive[q]]

    so that the own image's other anchors are neither positive nor negative. image_ids [B] masks false negatives: an
    image with the id of the query's own image is no negative. `normalize` divides anchors and queries by their
    Euclidean length (at least 1e-12) first. 1 <= negatives_per_image <= N. Q = 0 gives NaN, as a mean of nothing; one
    image alone gives 0. A NaN among the scores of an image that counts gives NaN.
    """
    anchors, queries = upcast(anchors), upcast(queries)
    if normalize:
        anchors, queries = F.normalize(anchors, dim=-1), F.normalize(queries, dim=-1)
    if positive is None:
        positive = torch.arange(len(queries), device=queries.device)
    return anchor_contrast_terms(anchors, queries, positive, image_ids, negatives_per_image, 1 / temperature)[0].mean()


def anchor_contrast_terms(
    anchors: Tensor, queries: Tensor, positive: Tensor, image_ids: Tensor | None, k: int, scale: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What `anchor_contrast` averages, and what its gradient needs.

    Returns Z_q - M_1[q, positive[q]] and Z_q, both [Q]; the unscaled scores of the k best anchors and their indices,
    both [Q, B, k]. `scale` is one over the temperature.
    """
    values, indices = anchor_scores(anchors, queries, k)
    scaled = values * scale
    best = scaled[..., 0].gather(1, positive[:, None])
    negatives = scaled.masked_fill(_no_negatives(positive, image_ids, len(anchors)), -torch.inf).flatten(1)
    lse = torch.logsumexp(torch.cat([best, negatives], dim=1), dim=1)
    return lse - best.squeeze(1), lse, values, indices


def _no_negatives(positive: Tensor, image_ids: Tensor | None, images: int) -> Tensor:
    """[Q, B, 1]: True at the own image and those of its id."""
    if image_ids is None:
        image_ids = torch.arange(images, device=positive.device)
    return (image_ids == image_ids[positive][:, None]).unsqueeze(-1)


def anchor_contrast_backward(
    grad_losses: Tensor,
    anchors: Tensor,
    queries: Tensor,
    positive: Tensor,
    image_ids: Tensor | None,
    lse: Tensor,
    values: Tensor,
    indices: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """The gradients of anchors and queries from those of the [Q] losses; see `anchor_contrast_terms`.

    With P_j[q, b] = exp(M_j[q, b] - Z_q) of the negatives, and exp(M_1 - Z_q) - 1 of the positive, they are those of
    `anchor_scores` for P grad_losses scale.
    """
    shares = torch.exp(values * scale - lse[:, None, None])
    shares = shares.masked_fill(_no_negatives(positive, image_ids, len(anchors)), 0)
    rows = torch.arange(len(queries), device=queries.device)
    shares[rows, positive, 0] = torch.expm1(values[rows, positive, 0] * scale - lse)
    return anchor_scores_backward(shares * (grad_losses * scale)[:, None, None], anchors, queries, indices)


def maxsim(
    queries: Tensor, documents: Tensor, query_mask: Tensor | None = None, document_mask: Tensor | None = None
) -> Tensor:
    """Late interaction of token-level queries: score[q, b] = sum over t of max over n of <queries[q,t], documents[b,n]>.

    queries [Q, T, D], documents [B, N, D]; masks [Q, T] and [B, N] are True at tokens that count (None: all). Returns
    [Q, B]. A document without a token that counts scores 0, and so does a query without one. Gradient: of a maximum,
    to one of the tokens that reach it (kernels: the first).
    """
    return maxsim_terms(queries, documents, query_mask, document_mask)[0]


def maxsim_terms(
    queries: Tensor, documents: Tensor, query_mask: Tensor | None, document_mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    """`maxsim`, and which token of the document each token of the query meets best: [Q, B, T], -1 where none counts."""
    scores = torch.einsum("qtd,bnd->qbtn", upcast(queries), upcast(documents))
    if scores.shape[-1] == 0:
        return scores.sum((-1, -2)), torch.full(scores.shape[:-1], -1, dtype=torch.int32, device=scores.device)
    nothing = torch.zeros(scores.shape[:-1], dtype=torch.bool, device=scores.device)
    if document_mask is not None:
        scores = scores.masked_fill(~document_mask[None, :, None, :], -torch.inf)
        nothing = nothing | ~document_mask.any(-1)[None, :, None]
    if query_mask is not None:
        nothing = nothing | ~query_mask[:, None, :]
    best, indices = scores.max(-1)
    return best.masked_fill(nothing, 0).sum(-1), indices.masked_fill(nothing, -1).int()


def maxsim_backward(grad: Tensor, queries: Tensor, documents: Tensor, indices: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of queries and documents from those of the scores [Q, B]. Differentiable itself."""
    queries, documents = upcast(queries), upcast(documents)
    tokens = indices.clamp(min=0).long().unsqueeze(-1)
    shares = (grad.unsqueeze(-1) * (indices >= 0)).unsqueeze(-1)
    if documents.shape[1] == 0:
        return torch.zeros_like(queries), torch.zeros_like(documents)
    dense = shares.new_zeros(*indices.shape, documents.shape[1]).scatter_add(-1, tokens, shares)
    return torch.einsum("qbtn,bnd->qtd", dense, documents), torch.einsum("qbtn,qtd->bnd", dense, queries)
