"""RefCLIP's detector: DarkNet-53, spatial pyramid pooling and heads of guided anchors (YOLOv3's form).

Written from a description (RefCLIP's paper, section 4.2; Guided Anchoring, CVPR 2019; YOLOv3); the names of its
parameters are those of the published weights `yolov3_coco.pth`, so that they load as they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from ...regions import cxcywh_to_xyxy

STRIDES = (32, 16, 8)
# Width and height of the prior boxes in pixels, by stride; the fourth box of a cell has the side 4 * stride.
PRIORS = {
    32: ((116, 90), (156, 198), (121, 240)),
    16: ((30, 61), (62, 45), (42, 119)),
    8: ((10, 13), (16, 30), (33, 23)),
}
BOXES = 4  # of a cell
TAPS = 9  # of a 3 x 3 kernel
GROUPS = 4  # of the deformable convolution
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass
class DarkNetConfig:
    """Size of the detector; the defaults are the published ones.

    Attributes:
        width: Channels of the first convolution; every other width is a multiple of it.
        blocks: Residual blocks of each of the five stages.
        classes: Object classes.
        heads: Strides whose head is there and computed. RefCLIP reads that of stride 32 alone.
    """

    width: int = 32
    blocks: tuple[int, ...] = (1, 2, 8, 8, 4)
    classes: int = 80
    heads: tuple[int, ...] = (32,)

    @property
    def channels(self) -> tuple[int, int, int]:
        """Of the maps of stride 32, 16 and 8."""
        return 32 * self.width, 16 * self.width, 8 * self.width


class CellBoxes(NamedTuple):
    """The boxes of H * W cells, row-major: corners [B, H * W, 4, 4] in frame pixels, objectness [B, H * W, 4] and
    class probabilities [B, H * W, 4, C], both in 0..1."""

    boxes: torch.Tensor
    objectness: torch.Tensor
    classes: torch.Tensor


class DarkNet(nn.Module):
    """Frames -> feature maps of three strides, and the boxes of those strides whose head is there."""

    def __init__(self, config: DarkNetConfig | None = None):
        super().__init__()
        self.config = config = config or DarkNetConfig()
        self.module_list = nn.ModuleList(_layers(config))
        self.register_buffer("mean", torch.tensor(MEAN)[:, None, None] * 255, persistent=False)
        self.register_buffer("std", torch.tensor(STD)[:, None, None] * 255, persistent=False)

    def forward(self, frames: torch.Tensor) -> tuple[list[torch.Tensor], list[CellBoxes]]:
        """frames uint8 [B, 3, S, S], S a multiple of 32.

        Returns the inputs of the three heads, [B, 32w, S/32, S/32], [B, 16w, S/16, S/16] and [B, 8w, S/8, S/8] with w the
        config's width, and the boxes of the heads that are there, in the order of `STRIDES`.
        """
        x = (frames.to(self.mean.dtype) - self.mean) / self.std
        kept, maps, boxes = {}, [], []
        for index, layer in enumerate(self.module_list):
            if index in HEADS:
                maps.append(x)
                if not isinstance(layer, nn.Identity):
                    boxes.append(layer(x))
                continue
            if index in BRANCHES:  # the way up goes on from before the last convolution
                x = kept[BRANCHES[index]]
            x = layer(x)
            if index in MERGES:
                x = torch.cat([x, kept[MERGES[index]]], 1)
            if index in KEPT:
                kept[index] = x
        return maps, boxes


# Places in the list of layers: the heads, where a branch goes on from, and what an upsampled map is joined to.
HEADS = {19: 32, 28: 16, 37: 8}
BRANCHES = {20: 17, 29: 26}
MERGES = {21: 8, 30: 6}
KEPT = {*BRANCHES.values(), *MERGES.values()}


def _layers(config: DarkNetConfig) -> list[nn.Module]:
    """The 38 layers. Those at 16, 24 and 33 are the published list's DropBlocks, which drop nothing."""
    w, b = config.width, config.blocks
    out: list[nn.Module] = [ConvBlock(3, w, 3)]
    for stage in range(5):
        out += [ConvBlock(w << stage, w << stage + 1, 3, stride=2), Residuals(w << stage + 1, b[stage])]
    out += [
        Residuals(32 * w, 1, shortcut=False), ConvBlock(32 * w, 16 * w, 1), PyramidPool(),
        ConvBlock(64 * w, 16 * w, 1), ConvBlock(16 * w, 32 * w, 3), nn.Identity(), ConvBlock(32 * w, 16 * w, 1),
        ConvBlock(16 * w, 32 * w, 3), _head(config, 32),
    ]  # fmt: skip
    for stride, c in ((16, 16 * w), (8, 8 * w)):  # c: channels of the map that this branch gives
        out += [
            ConvBlock(c, c // 2, 1), nn.Upsample(scale_factor=2, mode="nearest"), ConvBlock(c // 2 + c, c // 2, 1),
            ConvBlock(c // 2, c, 3), nn.Identity(), Residuals(c, 1, shortcut=False), ConvBlock(c, c // 2, 1),
            ConvBlock(c // 2, c, 3), _head(config, stride),
        ]  # fmt: skip
    return out


def _head(config: DarkNetConfig, stride: int) -> nn.Module:
    channels = config.channels[STRIDES.index(stride)]
    return GuidedHead(channels, config.classes, stride) if stride in config.heads else nn.Identity()


class ConvBlock(nn.Module):
    """Convolution, batch norm, leaky ReLU of 0.1; the side stays (or is halved)."""

    def __init__(self, inside: int, outside: int, kernel: int, stride: int = 1):
        super().__init__()
        self.conv = nn.Conv2d(inside, outside, kernel, stride, kernel // 2, bias=False)
        self.batch_norm = nn.BatchNorm2d(outside)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.leaky_relu(self.batch_norm(self.conv(x)), 0.1)


class Residuals(nn.Module):
    """Blocks of a 1 x 1 and a 3 x 3 convolution, each added to its input where there are shortcuts."""

    def __init__(self, channels: int, count: int, shortcut: bool = True):
        super().__init__()
        self.shortcut = shortcut
        self.module_list = nn.ModuleList(
            nn.Sequential(ConvBlock(channels, channels // 2, 1), ConvBlock(channels // 2, channels, 3)) for _ in range(count)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.module_list:
            x = x + block(x) if self.shortcut else block(x)
        return x


class PyramidPool(nn.Module):
    """The map beside its maxima over windows of 5, 9 and 13 cells."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([x, *(F.max_pool2d(x, side, 1, side // 2) for side in (5, 9, 13))], 1)


class GuidedHead(nn.Module):
    """The four boxes of every cell: their shapes are predicted first and guide where the features are looked up."""

    def __init__(self, channels: int, classes: int, stride: int):
        super().__init__()
        self.stride = stride
        self.guide_wh = nn.Conv2d(channels, 2 * BOXES, 1)
        self.Feature_adaption = _Adaption(channels)  # a name of the published weights
        self.conv = nn.Conv2d(channels, BOXES * (5 + classes), 1)
        priors = [*PRIORS[stride], (4 * stride, 4 * stride)]
        self.register_buffer("priors", torch.tensor(priors, dtype=torch.float32), persistent=False)

    def forward(self, x: torch.Tensor) -> CellBoxes:
        """[B, c, H, W] -> the boxes of H * W cells."""
        height, width = x.shape[-2:]
        guide = self.guide_wh(x)
        raw = self.conv(self.Feature_adaption(x, guide.detach()))

        def by_cell(values):  # [B, 4 * n, H, W] -> [B, H * W, 4, n]
            return values.float().unflatten(1, (BOXES, -1)).flatten(3).permute(0, 3, 1, 2)

        shape = by_cell(guide).exp() * self.priors
        offset, size, objectness, classes = by_cell(raw).split([2, 2, 1, raw.shape[1] // BOXES - 5], -1)
        rows, columns = torch.meshgrid(torch.arange(height, device=x.device), torch.arange(width, device=x.device), indexing="ij")
        corner = torch.stack([columns, rows], -1).reshape(1, -1, 1, 2)
        boxes = torch.cat([(offset.sigmoid() + corner) * self.stride, size.exp() * shape], -1)
        return CellBoxes(cxcywh_to_xyxy(boxes), objectness.squeeze(-1).sigmoid(), classes.sigmoid())


class _Adaption(nn.Module):
    """A deformable 3 x 3 convolution whose offsets come from the guided shapes."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv_offset = nn.Conv2d(2 * BOXES, GROUPS * TAPS * 2, 1, groups=GROUPS)
        self.dconv = _DeformableWeights(channels)

    def forward(self, x: torch.Tensor, guide: torch.Tensor) -> torch.Tensor:
        return deformable_conv(x, self.conv_offset(guide), self.dconv.weight, self.dconv.bias)


class _DeformableWeights(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        bound = (channels * TAPS) ** -0.5
        self.weight = nn.Parameter(torch.empty(channels, channels, 3, 3).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.zeros(channels))


def deformable_conv(x: torch.Tensor, offset: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """A 3 x 3 convolution, stride 1, padding 1, whose taps are moved by `offset` (Dai et al., ICCV 2017).

    x [B, C, H, W], weight [O, C, 3, 3], bias [O]. offset [B, G * 9 * 2, H, W] in cells: G groups of C / G channels, of each
    the nine taps row by row, of each tap dy, then dx. Values between cells are bilinear, those outside are 0.
    Returns [B, O, H, W]; the memory for the moved taps is 9 times that of x.
    """
    batch, channels, height, width = x.shape
    groups = offset.shape[1] // (2 * TAPS)
    exact = torch.promote_types(x.dtype, torch.float32)  # places in half precision would be off by a tenth of a cell
    moved = offset.to(exact).view(batch * groups, TAPS, 2, height, width)
    tap = torch.arange(TAPS, device=x.device)
    y = moved[:, :, 0] + (tap // 3 - 1)[:, None, None] + torch.arange(height, device=x.device)[:, None]
    x_at = moved[:, :, 1] + (tap % 3 - 1)[:, None, None] + torch.arange(width, device=x.device)
    # grid_sample counts from -1 to 1 over the cells' outer edges
    grid = torch.stack([(2 * x_at + 1) / width - 1, (2 * y + 1) / height - 1], -1).flatten(1, 2)
    cells = x.reshape(batch * groups, -1, height, width).to(exact)
    taps = F.grid_sample(cells, grid, padding_mode="zeros", align_corners=False)
    taps = taps.view(batch, channels * TAPS, height * width).to(x.dtype)
    return torch.baddbmm(bias[:, None], weight.flatten(1).expand(batch, -1, -1), taps).view(batch, -1, height, width)
