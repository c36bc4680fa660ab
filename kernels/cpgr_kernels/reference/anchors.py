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
    image alone gives 0. A NaN anywhere in a row's scores gives NaN.
    """
    anchors, queries = upcast(anchors), upcast(queries)
    if normalize:
        anchors, queries = F.normalize(anchors, dim=-1), F.normalize(queries, dim=-1)
    if positive is None:
        positive = torch.arange(len(queries), device=queries.device)
    values, _ = anchor_scores(anchors, queries, negatives_per_image)
    values = values / temperature
    images = torch.arange(len(anchors), device=anchors.device)
    own = images == positive[:, None]
    absent = own if image_ids is None else image_ids == image_ids[positive][:, None]
    best = values[..., 0].gather(1, positive[:, None]).squeeze(1)
    negatives = values.masked_fill(absent.unsqueeze(-1), -torch.inf).flatten(1)
    return (torch.logsumexp(torch.cat([best[:, None], negatives], dim=1), dim=1) - best).mean()


def maxsim(
    queries: Tensor, documents: Tensor, query_mask: Tensor | None = None, document_mask: Tensor | None = None
) -> Tensor:
    """Late interaction of token-level queries: score[q, b] = sum over t of max over n of <queries[q,t], documents[b,n]>.

    queries [Q, T, D], documents [B, N, D]; masks [Q, T] and [B, N] are True at tokens that count (None: all). Returns
    [Q, B]. A document without a token that counts scores 0, and so does a query without one. Gradient: of a maximum,
    to one of the tokens that reach it (kernels: the first).
    """
    scores = torch.einsum("qtd,bnd->qbtn", upcast(queries), upcast(documents))
    if document_mask is not None:
        scores = scores.masked_fill(~document_mask[None, :, None, :], -torch.inf)
    if scores.shape[-1] == 0:
        return scores.new_zeros(scores.shape[:2]) + scores.sum((-1, -2))
    best = scores.amax(-1) if not scores.requires_grad else scores.max(-1).values
    if document_mask is not None:
        best = best.masked_fill(~document_mask.any(-1)[None, :, None], 0)
    if query_mask is not None:
        best = best.masked_fill(~query_mask[:, None, :], 0)
    return best.sum(-1)
