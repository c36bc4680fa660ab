"""Layers over feature maps that RealGIN and SimREC are made of; a map is [B, C, H, W], row-major cells."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import nn

from ..data.proposals.darknet import ConvBlock
from ..errors import CpgrError

Scales = Sequence[tuple[int, int]]  # channels and side of each map


def pack(maps: Sequence[torch.Tensor]) -> torch.Tensor:
    """Maps of several sizes as one row a sample, [B, sum of C * H * W]: what a feature store keeps of an image."""
    return torch.cat([m.flatten(1) for m in maps], 1)


def unpack(packed: torch.Tensor, scales: Scales) -> list[torch.Tensor]:
    """The maps that `pack` put together."""
    parts = packed.split([channels * side * side for channels, side in scales], 1)
    return [part.view(-1, channels, side, side) for part, (channels, side) in zip(parts, scales, strict=True)]


class TextGate(nn.Module):
    """A map times a projection of the expression's vector (the simple fusion of MCN, RealGIN and SimREC)."""

    def __init__(self, visual: nn.Module, text: int, width: int):
        super().__init__()
        self.visual, self.text = visual, nn.Linear(text, width)
        self.text_norm, self.norm = nn.BatchNorm1d(width), nn.BatchNorm2d(width)

    def forward(self, x, text):
        """x [B, C, H, W], text [B, D] -> [B, width, H, W]."""
        gate = F.leaky_relu(self.text_norm(self.text(text)), 0.1)
        return F.leaky_relu(self.norm(self.visual(x) * gate[:, :, None, None]), 0.1)


class Garan(nn.Module):
    """RealGIN's global attentive reasoning unit: the text collects from all cells, and gives back to each cell.

    For each head: f = sum_i softmax_i(q . c_i / sqrt(d)) v_i, and cell i receives sigmoid(q . s_i / sqrt(d)) f.
    """

    def __init__(self, text: int, width: int, heads: int = 2):
        super().__init__()
        if heads < 1 or width % heads:
            raise CpgrError(f"GARAN's {heads} heads do not part a width of {width} evenly; set the student's width and heads")
        self.heads, self.query = heads, nn.Linear(text, width)
        self.collect, self.spread, self.value = (nn.Conv2d(width, width, 1) for _ in range(3))
        self.norm = nn.BatchNorm2d(width)

    def forward(self, x, text):
        """x [B, C, H, W], text [B, D] -> [B, C, H, W] and the collecting logits' head mean [B, H * W]."""
        query = self.query(text).unflatten(1, (self.heads, 1, -1))  # [B, h, 1, d]
        collect, spread, value = (f(x).flatten(2).unflatten(1, (self.heads, -1)) for f in (self.collect, self.spread, self.value))
        scale = math.sqrt(query.shape[-1])
        logits = (query @ collect).squeeze(2) / scale  # [B, h, cells]
        gathered = value @ logits.softmax(-1)[..., None]  # [B, h, d, 1]
        given = gathered * torch.sigmoid(query @ spread / scale)  # [B, h, d, cells]
        out = F.leaky_relu(self.norm(given.flatten(1, 2).view_as(x) + x), 0.1)
        return out, logits.mean(1)


class MultiScale(nn.Module):
    """SimREC's multi-scale fusion: from coarse to fine and back, each step joined to what was there by concatenation.

    Only the coarsest map is returned: the published head reads no other.
    """

    def __init__(self, scales: Scales, width: int):
        super().__init__()
        half, channels = width // 2, [c for c, _ in scales]
        self.up, self.down = nn.ModuleList(), nn.ModuleList()

        def step(inputs: int) -> nn.Sequential:
            return nn.Sequential(ConvBlock(inputs, half, 1), ConvBlock(half, half, 3))

        joined = [*channels]  # channels of each map once something has come down or up to it
        for place in range(len(scales) - 2, -1, -1):
            self.up.append(step(joined[place + 1]))
            joined[place] = channels[place] + half
        for place in range(1, len(scales)):
            self.down.append(step(joined[place - 1]))
            joined[place] += half
        self.out = ConvBlock(joined[-1], width, 1)

    def forward(self, maps: Sequence[torch.Tensor]) -> torch.Tensor:
        """Maps fine to coarse, each side half the last -> [B, width, H, W] of the coarsest."""
        maps = list(maps)
        for layer, place in zip(self.up, range(len(maps) - 2, -1, -1), strict=True):
            above = F.interpolate(maps[place + 1], size=maps[place].shape[-2:], mode="bilinear", align_corners=True)
            maps[place] = torch.cat([layer(above), maps[place]], 1)
        for layer, place in zip(self.down, range(1, len(maps)), strict=True):
            maps[place] = torch.cat([layer(F.avg_pool2d(maps[place - 1], 2)), maps[place]], 1)
        return self.out(maps[-1])


def check_scales(scales: Scales) -> None:
    """Raises CpgrError where the sides are not each half the last."""
    if any(a != 2 * b for (_, a), (_, b) in pairwise(scales)):
        raise CpgrError(f"the visual branch gives maps of {[side for _, side in scales]} cells a side; each must be half the last")
