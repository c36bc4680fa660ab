"""Attention whose chosen row can be read: what every fusion layer of the grounding networks is made of."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from cpgr_kernels import attention_map
from torch import nn


class CrossAttention(nn.Module):
    """Single-head attention between sets of very different sizes: some words and all cells.

    The same function as softmax((Wq x)(Wk y)^T / sqrt(D)) Wv y projected by Wo, but the projections of the larger set are
    carried over to the smaller one ((Wq x)(Wk y)^T = (Wq x Wk) y^T, and so on), so no product of all cells with a
    D x D matrix is left. A key's bias is the same for all keys of a query and falls out of the softmax.
    """

    def __init__(self, width: int, key_width: int, dropout: float = 0.0):
        super().__init__()
        self.dropout, self.scale = dropout, width**-0.5
        self.q, self.k = nn.Linear(width, width), nn.Linear(key_width, width, bias=False)
        self.v, self.out = nn.Linear(key_width, width), nn.Linear(width, width)

    def forward(self, query, key, mask):
        """query [B, T, D], key (and value) [B, S, E], mask [B, S] True at keys that count. Returns [B, T, D]."""
        few_queries = query.shape[1] < key.shape[1]
        if few_queries:
            scores = (self.q(query) @ self.k.weight) @ key.transpose(1, 2)
        else:
            keys = self.k(key)
            scores = query @ (keys @ self.q.weight).transpose(1, 2) + (keys @ self.q.bias)[:, None]
        scores = (scores * self.scale).masked_fill(~mask[:, None], torch.finfo(scores.dtype).min)
        weights = F.dropout(scores.softmax(-1), self.dropout, self.training)
        if few_queries:
            mixed = F.linear(weights.to(key.dtype) @ key, self.v.weight) + weights.sum(-1, keepdim=True) * self.v.bias
            return self.out(mixed)
        return weights @ F.linear(self.v(key), self.out.weight) + self.out.bias


class Attention(nn.Module):
    """Multi-head self-attention of the fusion layers.

    `kind` is `sdpa` (torch's fused one) or `eager`, matmul-softmax-matmul: at the built-in world's lengths the
    latter's backward is twice as fast on a CPU, at a GPU's lengths the former wins.
    """

    def __init__(self, width: int, heads: int, *, dropout: float = 0.0, kind: str = "sdpa"):
        super().__init__()
        self.heads, self.dropout, self.kind = heads, dropout, kind
        self.q, self.k, self.v, self.out = (nn.Linear(width, width) for _ in range(4))

    def _split(self, x: torch.Tensor) -> torch.Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def forward(self, query, key, value, mask=None) -> torch.Tensor:
        """query [B, T, D], key and value [B, S, D], mask [B, S] True at keys that count. Returns [B, T, D]."""
        q, k, v = self._split(self.q(query)), self._split(self.k(key)), self._split(self.v(value))
        bias = None if mask is None else mask[:, None, None, :]
        dropout = self.dropout if self.training else 0.0
        if self.kind == "sdpa":
            mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=dropout)
        else:
            mixed = F.dropout(_weights(q, k, bias), dropout) @ v
        return self.out(mixed.transpose(1, 2).flatten(2))

    def row(self, query, key, mask=None) -> torch.Tensor:
        """Head-mean attention of one query a sample: query [B, 1, D] over keys [B, S, D]. Returns [B, S]."""
        q, k = self._split(self.q(query)), self._split(self.k(key))
        return attention_map(q, k, key_padding_mask=None if mask is None else ~mask).squeeze(1)


def _weights(q, k, bias):
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
    if bias is not None:
        scores = scores.masked_fill(~bias, torch.finfo(scores.dtype).min)
    return scores.softmax(-1)
