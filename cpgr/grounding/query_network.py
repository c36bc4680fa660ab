"""A small grounding network whose words ask the image: [REG] and the words attend to each other and to the cells, and the cells
stay what the frozen visual branch made them (the order of DETR's decoder, pre-norm).

TransVG's joint encoder has to learn everything in the cells' own updates; on the built-in world it had learnt no position or relation after 1,600
steps, this one has after 400 at half the time a step (docs/results.md).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

from ..data.proposals.tiny_detector import box_head, sine_positions
from .attention import Attention
from .network import NetworkConfig, point_at, shares


class CellAttention(nn.Module):
    """Multi-head attention of a few queries over many cells, the cells' projections carried over to the queries (as `CrossAttention`):
    no product of all cells with a square matrix is left."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.q, self.k = nn.Linear(width, width), nn.Linear(width, width, bias=False)
        self.v, self.out = nn.Linear(width, width), nn.Linear(width, width)

    def weights(self, query, cells, positions, mask):
        """query [B, T, D], cells [B, S, D], positions [S, D] added to the keys, mask [B, S] True at cells that count -> [B, H, T, S]."""
        batch, count, width = query.shape
        split = self.q(query).unflatten(-1, (self.heads, -1))
        carried = torch.einsum("bthd,hdw->bhtw", split, self.k.weight.unflatten(0, (self.heads, -1))).reshape(batch, -1, width)
        scores = (carried @ cells.transpose(1, 2) + carried @ positions.t()) / math.sqrt(width / self.heads)
        scores = scores.masked_fill(~mask[:, None], torch.finfo(scores.dtype).min)
        return scores.softmax(-1).unflatten(1, (self.heads, count))

    def forward(self, query, cells, positions, mask):
        """-> [B, T, D]."""
        weights = self.weights(query, cells, positions, mask)
        mixed = (weights.flatten(1, 2) @ cells).unflatten(1, weights.shape[1:3])
        values = torch.einsum("bhtw,hdw->bthd", mixed, self.v.weight.unflatten(0, (self.heads, -1))).flatten(2)
        return self.out(values + self.v.bias)


class QueryLayer(nn.Module):
    """Self-attention of the queries, attention to the cells, feed-forward; each pre-norm with a residual."""

    def __init__(self, config: NetworkConfig):
        super().__init__()
        width = config.width
        self.words = Attention(width, config.heads, dropout=config.dropout, kind=config.attention_kind)
        self.cells = CellAttention(width, config.heads)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(width) for _ in range(3))
        self.ffn1, self.ffn2 = nn.Linear(width, config.ffn), nn.Linear(config.ffn, width)
        self.drop = nn.Dropout(config.dropout)

    def forward(self, x, order, word_mask, cells, positions, cell_mask):
        x = self._read(x, order, word_mask)
        x = x + self.drop(self.cells(self.norm2(x) + order, cells, positions, cell_mask))
        return x + self.drop(self.ffn2(self.drop(F.relu(self.ffn1(self.norm3(x))))))

    def _read(self, x, order, word_mask):
        normed = self.norm1(x)
        return x + self.drop(self.words(normed + order, normed + order, normed, word_mask))

    def row(self, x, order, word_mask, cells, positions, cell_mask):
        """Head-mean attention of token 0 over the cells, [B, S]."""
        x = self._read(x, order, word_mask)
        return self.cells.weights(self.norm2(x[:, :1]) + order[:, :1], cells, positions, cell_mask).mean(1).squeeze(1)


class QueryNetwork(nn.Module):
    """Cell tokens of an image and an expression -> a box through the pointer; the contract of `GroundingNetwork`."""

    def __init__(self, config: NetworkConfig, branch: nn.Module, text_encoder: nn.Module, max_words: int):
        super().__init__()
        self.config, self.branch, self.text_encoder, self.grid = config, branch, text_encoder, branch.grid
        width = config.width
        self.text_in = nn.Linear(text_encoder.config.hidden_size, width)
        self.cells_in = nn.Identity() if branch.width == width else nn.Linear(branch.width, width)
        self.cells_norm = nn.LayerNorm(width, elementwise_affine=False)  # the layers' own projections scale
        self.reg = nn.Parameter(torch.randn(1, 1, width) * 0.02)
        self.order = nn.Parameter(torch.randn(1, 1 + max_words, width) * 0.02)
        self.register_buffer("places", sine_positions(self.grid, width), persistent=False)
        self.fusion = nn.ModuleList(QueryLayer(config) for _ in range(config.layers))
        self.last = nn.LayerNorm(width)
        self.pointer_query = nn.Linear(width, width)
        self.pointer_key, self.pointer_place = (nn.Linear(width, width, bias=False) for _ in range(2))
        self.boxes = box_head(branch.width)
        if branch.box_head_state() is not None:
            self.boxes.load_state_dict(branch.box_head_state())

    def visual_levels(self, frames: torch.Tensor) -> torch.Tensor:
        return self.branch(frames)

    def forward(self, levels, word_ids, word_mask, cell_mask, attention_layer: int | None = None, attention_only: bool = False):
        """As `GroundingNetwork.forward`; of the levels the last is read."""
        word_mask = word_mask.bool()
        text = self.text_encoder(input_ids=word_ids, attention_mask=word_mask.long()).last_hidden_state
        level = levels[:, -1]
        if not torch.is_autocast_enabled(level.device.type):
            level = level.to(text.dtype)
        cells, batch = self.cells_norm(self.cells_in(level)), len(text)
        x = torch.cat([self.reg.expand(batch, -1, -1), self.text_in(text)], 1)
        seen = torch.cat([word_mask.new_ones(batch, 1), word_mask], 1)
        order, places = self.order[:, : x.shape[1]], self.places.to(cells.dtype)
        out = {}
        for number, layer in enumerate(self.fusion, 1):
            if attention_layer == number:
                out["attention"] = shares(layer.row(x, order, seen, cells, places, cell_mask).float())
                if attention_only:
                    return out
            x = layer(x, order, seen, cells, places, cell_mask)
        query = self.pointer_query(self.last(x[:, 0]))
        scores = (cells @ (query @ self.pointer_key.weight)[:, :, None]).squeeze(-1) + query @ self.pointer_place.weight @ places.t()
        out |= point_at(scores / math.sqrt(query.shape[-1]), self.boxes(level), self.grid, cell_mask)
        if attention_layer == 0:
            out["attention"] = out["weights"]
        return out
