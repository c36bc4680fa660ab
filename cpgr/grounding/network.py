"""The TransVG / CPL network: two encoders, multi-level cross-modality attention, a fusion encoder, a head.

Sections of the papers: TransVG 3.2 (visual-linguistic transformer, [REG] token), Pseudo-Q 3.3 and CPL
(multi-level cross-modality attention). CPL's released mask is a boolean added to the logits, which raises
padding instead of hiding it; here padding is hidden.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from cpgr_kernels import generalized_box_iou

from ..data.proposals.tiny_detector import box_head, read_boxes
from ..regions import cxcywh_to_xyxy
from .attention import Attention, CrossAttention

# Of a frame whose sides are 1: a predicted box without area still has a finite loss and gradient.
LEAST_AREA = 1e-7


@dataclass
class NetworkConfig:
    """Shape of the fusion network (reference: TransVG and CPL, width 256, 8 heads, 6 layers, FFN 2048).

    Attributes:
        fusion: `joint`: [REG], words and cells in one encoder, after CPL's multi-level attention, as published; `query`: [REG] and
            words ask the last level's cells, which stay as they are (`query_network`), for worlds learnt in minutes.
        head: `regression` is the paper's ([REG] -> MLP -> box). `pointer` reads the box through one attention row
            of [REG] over the image's cells, the box loss marginalised over cells; it learns in minutes where
            the former needs days, and that row is the attention Refinement reads.
        width: Width of the fusion layers.
        heads: Attention heads of the fusion layers.
        layers: Fusion layers.
        ffn: Width of the feed-forward parts.
        dropout: Dropout of the fusion layers.
        pool: Side of the square of cells averaged before the fusion layers (1: none, as published).
        attention_layer: Fusion layer whose [REG] row `attend` returns, counted from 1; 0 is the pointer's row.
        attention_kind: `sdpa` or `eager` (matmul and softmax written out, faster on a CPU at small sizes).
    """

    fusion: str = "joint"
    head: str = "regression"
    width: int = 256
    heads: int = 8
    layers: int = 6
    ffn: int = 2048
    dropout: float = 0.1
    pool: int = 1
    attention_layer: int = 3
    attention_kind: str = "sdpa"


class CrossModalLevels(nn.Module):
    """CPL's multi-level cross-modality attention: text and every visual level attend to each other.

    text' = LN(text + Attn(text, visual_i)), visual_i' = LN(visual_i + Attn(visual_i, text)), one head, weights
    shared over the levels; then the levels are concatenated and projected back.
    """

    def __init__(self, visual: int, text: int, levels: int, dropout: float):
        super().__init__()
        self.to_text = CrossAttention(text, visual, dropout)
        self.to_visual = CrossAttention(visual, text, dropout)
        self.text_norm, self.visual_norm = nn.LayerNorm(text), nn.LayerNorm(visual)
        self.text_merge, self.visual_merge = nn.Linear(levels * text, text), nn.Linear(levels * visual, visual)

    def forward(self, visual, text, visual_mask, text_mask):
        """visual [B, L, S, Dv], text [B, T, Dt] -> visual [B, L, S, Dv], still to be merged, and text [B, T, Dt]."""
        batch, levels = visual.shape[:2]
        flat = visual.flatten(0, 1)
        texts = text.repeat_interleave(levels, 0)
        new_text = self.text_norm(texts + self.to_text(texts, flat, visual_mask.repeat_interleave(levels, 0)))
        new_visual = self.visual_norm(flat + self.to_visual(flat, texts, text_mask.repeat_interleave(levels, 0)))

        return new_visual.unflatten(0, (batch, levels)), self.text_merge(_side_by_side(new_text.unflatten(0, (batch, levels))))

    def merge(self, visual):
        """The levels as one: [B, L, S, Dv] -> [B, S, Dv]."""
        return self.visual_merge(_side_by_side(visual))


def _side_by_side(levels):
    """[B, L, N, D] -> [B, N, L * D]."""
    return levels.transpose(1, 2).flatten(2)


class FusionLayer(nn.Module):
    """DETR's post-norm encoder layer: learned positions are added to queries and keys, not to values."""

    def __init__(self, config: NetworkConfig):
        super().__init__()
        self.attention = Attention(config.width, config.heads, dropout=config.dropout, kind=config.attention_kind)
        self.norm1, self.norm2 = nn.LayerNorm(config.width), nn.LayerNorm(config.width)
        self.ffn1, self.ffn2 = nn.Linear(config.width, config.ffn), nn.Linear(config.ffn, config.width)
        self.drop = nn.Dropout(config.dropout)

    def forward(self, x, positions, mask):
        at = x + positions
        x = self.norm1(x + self.drop(self.attention(at, at, x, mask)))
        return self.norm2(x + self.drop(self.ffn2(self.drop(F.relu(self.ffn1(x))))))

    def row(self, x, positions, mask):
        """Head-mean attention of token 0 over all tokens, [B, N]."""
        at = x + positions
        return self.attention.row(at[:, :1], at, mask)


class GroundingNetwork(nn.Module):
    """Cell tokens of an image and an expression -> a box in the frame, and [REG]'s attention over the cells."""

    def __init__(self, config: NetworkConfig, branch: nn.Module, text_encoder: nn.Module, max_words: int):
        super().__init__()
        self.config, self.branch, self.text_encoder = config, branch, text_encoder
        self.grid, text_width = branch.grid, text_encoder.config.hidden_size
        self.cross = CrossModalLevels(branch.width, text_width, branch.count, config.dropout)
        self.visual_in, self.text_in = nn.Linear(branch.width, config.width), nn.Linear(text_width, config.width)
        self.reg = nn.Parameter(torch.randn(1, 1, config.width) * 0.02)
        cells = (self.grid // config.pool) ** 2
        self.positions = nn.Parameter(torch.randn(1, 1 + max_words + cells, config.width) * 0.02)
        self.fusion = nn.ModuleList(FusionLayer(config) for _ in range(config.layers))
        if config.head == "pointer":
            self.pointer_query = nn.Linear(config.width, config.width)
            self.pointer_key = nn.Linear(config.width, config.width, bias=False)
            self.pointer_skip = nn.Linear(branch.width, config.width, bias=False)
            self.boxes = box_head(branch.width)
            if branch.box_head_state() is not None:
                self.boxes.load_state_dict(branch.box_head_state())
        else:
            width = config.width
            self.boxes = nn.Sequential(
                nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 4)
            )

    def visual_levels(self, frames: torch.Tensor) -> torch.Tensor:
        return self.branch(frames)

    def forward(self, levels, word_ids, word_mask, cell_mask, attention_layer: int | None = None, attention_only: bool = False):
        """levels [B, L, cells, D], word_ids and word_mask [B, T], cell_mask [B, cells] True inside the picture.

        Returns a dict: `boxes` [B, 4] corners in 0..1 of the frame (the answer), `score` [B]; with the pointer head
        also `weights` [B, cells] and `cell_boxes` [B, cells, 4]; with `attention_layer`, `attention` [B, cells]. With
        `attention_only` the layers beyond that of the map are left out, and so is the answer.
        """
        word_mask = word_mask.bool()
        text = self.text_encoder(input_ids=word_ids, attention_mask=word_mask.long()).last_hidden_state
        if not torch.is_autocast_enabled(levels.device.type):
            levels = levels.to(text.dtype)
        visual, text = self.cross(levels, text, cell_mask, word_mask)
        words = self.text_in(text)
        # averaging commutes with the linear maps: they are applied to the few cells that are left of it
        pooled, pooled_mask = self._pool(visual, cell_mask)
        tokens = self.visual_in(self.cross.merge(pooled))
        batch = len(words)
        x = torch.cat([self.reg.expand(batch, -1, -1), words, tokens], 1)
        mask = torch.cat([word_mask.new_ones(batch, 1), word_mask, pooled_mask], 1)
        before = 1 + words.shape[1]
        positions = torch.cat([self.positions[:, :before], self.positions[:, -tokens.shape[1] :]], 1)
        out = {}
        for number, layer in enumerate(self.fusion, 1):
            if attention_layer == number:
                row = layer.row(x, positions, mask)[:, before:].float()
                out["attention"] = self._unpool(row[..., None]).squeeze(-1) * cell_mask
                if attention_only:
                    return {"attention": shares(out["attention"])}
            x = layer(x, positions, mask)
        if self.config.head == "pointer":
            out |= self._point(x[:, 0], x[:, before:], visual, levels, cell_mask)
        else:
            out["boxes"] = cxcywh_to_xyxy(self.boxes(x[:, 0]).float().sigmoid())
            out["score"] = out["boxes"].new_ones(batch)
        if attention_layer == 0:
            if "weights" not in out:
                raise ValueError("attention_layer 0 is the pointer's row; the regression head has none (take 1 or more)")
            out["attention"] = out["weights"]
        if "attention" in out:
            out["attention"] = shares(out["attention"])
        return out

    def _point(self, reg, fused, visual, levels, cell_mask):
        """Scores q . k(unpool(fused) + skip(merge(visual))) / sqrt(width) of the cells, their softmax, and the boxes.

        As in `CrossAttention`, the one query is carried over to the cells' side, so that no product of all cells with a square
        matrix is left; what a bias adds is the same for all cells and falls out of the softmax.
        """
        query = self.pointer_query(reg) @ self.pointer_key.weight  # [B, width]
        merged = (query @ self.pointer_skip.weight @ self.cross.visual_merge.weight).unflatten(1, (visual.shape[1], 1, -1))  # [B, L, 1, Dv]
        scores = self._unpool(fused @ query[:, :, None]).squeeze(-1) + (visual @ merged.transpose(2, 3)).sum(1).squeeze(-1)
        return point_at(scores / math.sqrt(reg.shape[-1]), self.boxes(levels[:, -1]), self.grid, cell_mask)

    def _pool(self, levels, mask):
        """[B, L, cells, D] and [B, cells] -> the same of squares of cells."""
        if self.config.pool == 1:
            return levels, mask
        side, pool = self.grid, self.config.pool
        cells = levels.flatten(0, 1).transpose(1, 2).unflatten(2, (side, side))  # a view whose channels lie innermost, as the pooling likes them
        kept = F.max_pool2d(mask.float().unflatten(1, (side, side))[:, None], pool)
        return F.avg_pool2d(cells, pool).flatten(2).transpose(1, 2).unflatten(0, levels.shape[:2]), kept.flatten(1) > 0

    def _unpool(self, tokens):
        if self.config.pool == 1:
            return tokens
        side = self.grid // self.config.pool
        cells = tokens.transpose(1, 2).unflatten(2, (side, side))
        return F.interpolate(cells, scale_factor=self.config.pool).flatten(2).transpose(1, 2)


def point_at(scores: torch.Tensor, raw_boxes: torch.Tensor, grid: int, cell_mask: torch.Tensor) -> dict:
    """The pointer's answer: scores [B, cells], raw boxes [B, cells, 4] of the box head, cell_mask True inside the picture."""
    weights = scores.float().masked_fill(~cell_mask, float("-inf")).softmax(-1)
    cell_boxes = read_boxes(raw_boxes, grid)
    best = weights.argmax(-1)
    picked = cell_boxes[torch.arange(len(best), device=best.device), best]
    return {"weights": weights, "cell_boxes": cell_boxes, "boxes": picked, "score": weights.amax(-1)}


def shares(maps: torch.Tensor) -> torch.Tensor:
    """Maps [B, cells] that sum to 1."""
    return maps / maps.sum(-1, keepdim=True).clamp(min=1e-12)


def box_loss(boxes: torch.Tensor, targets: torch.Tensor, l1: float, giou: float) -> torch.Tensor:
    """l1 * sum |cxcywh difference| + giou * (1 - GIoU), elementwise: [..., 4] corners in 0..1 -> [...]."""
    from ..regions import xyxy_to_cxcywh

    distance = (xyxy_to_cxcywh(boxes) - xyxy_to_cxcywh(targets)).abs().sum(-1)
    return l1 * distance + giou * (1 - generalized_box_iou(boxes, targets, pairwise=False, eps=LEAST_AREA))


def pointer_loss(output: dict, targets: torch.Tensor, l1: float = 5.0, giou: float = 2.0) -> torch.Tensor:
    """-log sum_i a_i exp(-l_i): the box loss marginalised over cells, [B]. No cell is ever labelled."""
    losses = box_loss(output["cell_boxes"], targets[:, None].expand_as(output["cell_boxes"]), l1, giou)
    return -torch.logsumexp(output["weights"].clamp(min=1e-9).log() - losses, -1)
