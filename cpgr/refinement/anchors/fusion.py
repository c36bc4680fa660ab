"""The trained part of the anchors' features: RefCLIP's multi-scale fusion, and a small one for other detectors."""

from __future__ import annotations

import torch
from torch import nn

from ...data.proposals.darknet import ConvBlock


class MultiScaleFusion(nn.Module):
    """The three maps of a DarkNet, each joined to the next, up and down again (RefCLIP, section 3.2).

    Only the coarsest of the published three results is made: nothing reads the others.
    """

    def __init__(self, channels: tuple[int, int, int], width: int):
        """channels: of the maps of stride 32, 16 and 8."""
        super().__init__()
        coarse, middle, fine = channels
        half = width // 2

        def way(change: nn.Module, inside: int) -> nn.Sequential:
            return nn.Sequential(change, ConvBlock(inside, half, 1), ConvBlock(half, half, 3))

        def up() -> nn.Module:
            return nn.Upsample(scale_factor=2, mode="nearest")

        # in the published order: the finer way first
        self.up_modules = nn.ModuleList([way(up(), middle + half), way(up(), coarse)])
        self.down_modules = nn.ModuleList([way(nn.AvgPool2d(2), fine + half), way(nn.AvgPool2d(2), middle + width)])
        self.top_proj = ConvBlock(coarse + half, width, 1)
        self.width = width

    def forward(self, maps: tuple[torch.Tensor, ...], chosen: torch.Tensor) -> torch.Tensor:
        """Maps of stride 32, 16 and 8 -> features [B, K, width] of the cells chosen [B, K] of stride 32.

        All cells are fused: batch norm's statistics are over all of them.
        """
        coarse, middle, fine = maps
        middle = torch.cat([self.up_modules[1](coarse), middle], 1)
        fine = torch.cat([self.up_modules[0](middle), fine], 1)
        middle = torch.cat([self.down_modules[0](fine), middle], 1)
        coarse = torch.cat([self.down_modules[1](middle), coarse], 1)
        return gather_cells(self.top_proj(coarse).flatten(2).transpose(1, 2), chosen)


class CellFusion(nn.Module):
    """For one feature a cell: the feature itself and what two layers add to it."""

    def __init__(self, inside: int, width: int):
        super().__init__()
        self.norm, self.skip = nn.LayerNorm(inside), nn.Linear(inside, width)
        self.body = nn.Sequential(nn.Linear(inside, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
        self.width = width

    def forward(self, maps: tuple[torch.Tensor, ...], chosen: torch.Tensor) -> torch.Tensor:
        """([B, N, inside],) -> features [B, K, width] of the cells chosen [B, K]."""
        x = self.norm(gather_cells(maps[0], chosen).to(self.skip.weight.dtype))
        return self.skip(x) + self.body(x)


def gather_cells(features: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    """[B, N, D] at the cells [B, K] -> [B, K, D]."""
    return features.gather(1, chosen[..., None].expand(-1, -1, features.shape[-1]))
