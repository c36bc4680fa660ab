"""Attention whose chosen row can be read: what every fusion layer of the grounding networks is made of."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn


class Attention(nn.Module):
    """Multi-head attention with separate widths for queries and keys.

    `kind` is `sdpa` (torch's fused one) or `eager`, matmul-softmax-matmul: at the built-in world's lengths the
    latter's backward is twice as fast on a CPU, at a GPU's lengths the former wins.
    """

    def __init__(self, width: int, heads: int, *, key_width: int | None = None, dropout: float = 0.0, kind: str = "sdpa"):
        super().__init__()
        self.heads, self.dropout, self.kind = heads, dropout, kind
        self.q, self.k = nn.Linear(width, width), nn.Linear(key_width or width, width)
        self.v, self.out = nn.Linear(key_width or width, width), nn.Linear(width, width)

    def _split(self, x: torch.Tensor) -> torch.Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def forward(self, query, key, value, mask=None) -> torch.Tensor:
        """query [B, T, D], key and value [B, S, E], mask [B, S] True at keys that count. Returns [B, T, D]."""
        q, k, v = self._split(self.q(query)), self._split(self.k(key)), self._split(self.v(value))
        bias = None if mask is None else mask[:, None, None, :]
        dropout = self.dropout if self.training else 0.0
        if self.kind == "sdpa":
            mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=dropout)
        else:
            mixed = F.dropout(_weights(q, k, bias), dropout) @ v
        return self.out(mixed.transpose(1, 2).flatten(2))

    def row(self, query, key, mask=None) -> torch.Tensor:
        """Head-mean attention of one query a sample: query [B, 1, D] over keys [B, S, E]. Returns [B, S]."""
        q, k = self._split(self.q(query)), self._split(self.k(key))
        return _weights(q, k, None if mask is None else mask[:, None, None, :]).mean(1).squeeze(1)


def _weights(q, k, bias):
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
    if bias is not None:
        scores = scores.masked_fill(~bias, torch.finfo(scores.dtype).min)
    return scores.softmax(-1)
