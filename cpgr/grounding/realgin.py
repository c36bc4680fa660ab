"""RealGIN: one-stage grounding by text-chosen features, one round of global reasoning and a YOLO head (TNNLS 2021).

Written from the paper's abstract and the facts of its released network: adaptive feature selection (AFS), the global
attentive reasoning unit (GARAN), a head of three prior boxes a cell on the coarsest map, and the losses of YOLOv3 with
a cross-entropy on GARAN's attention.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F
from cpgr_kernels import box_iou
from torch import nn

from ..data.proposals.darknet import ConvBlock, Residuals
from ..errors import CpgrError
from ..regions import cxcywh_to_xyxy, xyxy_to_cxcywh
from ..training import TrainingConfig
from .backbones import map_branch
from .grounder import GrounderConfig
from .maps import Garan, Scales, TextGate, check_scales, pack, unpack
from .recurrent import RecurrentConfig, RecurrentEncoder
from .wordwise import CellGrounder

IGNORE = 0.5  # a box that meets the label's by more is no negative
SIGMA = 3.0  # of the smooth L1
PRIOR = 0.01  # confidence of every box at the start


@dataclass
class RealGINConfig(GrounderConfig):
    """RealGIN; the defaults are the published ones for RefCOCO (frames of 416 pixels, 45 epochs of 42,404 referents).

    Attributes:
        language: The bidirectional GRU.
        width: Channels of the selected features and of everything after.
        heads: Heads of GARAN.
        anchors: Width and height of the prior boxes in pixels of the frame, one box of each a cell.
        loss_attention: Weight of the cross-entropy of GARAN's attention.
        attention: The map that `attend` returns: `box`, the confidences the box is chosen by, or `garan`.
    """

    language: RecurrentConfig = field(default_factory=RecurrentConfig)
    width: int = 1024
    heads: int = 2
    anchors: list[tuple[float, float]] = field(default_factory=lambda: [(137.0, 256.0), (248.0, 272.0), (386.0, 271.0)])
    loss_attention: float = 0.5
    attention: Literal["box", "garan"] = "box"
    training: TrainingConfig = field(
        default_factory=lambda: TrainingConfig(
            steps=54_500, batch_size=35, learning_rate=1e-3, weight_decay=0.0, warmup=0, schedule="steps", falls=(30 / 45, 35 / 45, 40 / 45)
        )
    )

    def __post_init__(self):
        if not self.anchors or min(side for anchor in self.anchors for side in anchor) <= 0:
            raise CpgrError(f"realgin: anchors {self.anchors} must be one or more pairs of a width and a height, in pixels of the frame")


class FeatureSelection(nn.Module):
    """AFS: every map brought to the coarsest one's size, and their mean weighted by a softmax that the text gives."""

    def __init__(self, scales: Scales, text: int, width: int):
        super().__init__()
        coarse, self.layers = scales[-1], nn.ModuleList()
        for channels, side in scales[:-1]:
            self.layers.append(nn.Sequential(ConvBlock(channels, channels, 3, side // coarse[1]), nn.Conv2d(channels, width, 1)))
        self.layers.append(nn.Identity() if coarse[0] == width else nn.Conv2d(coarse[0], width, 1))
        self.choose = nn.Linear(text, len(scales))

    def forward(self, maps, text):
        """Maps fine to coarse, text [B, D] -> [B, width, H, W] of the coarsest."""
        weights = self.choose(text).softmax(-1)[:, :, None, None, None]
        return (torch.stack([layer(m) for layer, m in zip(self.layers, maps, strict=True)], 1) * weights).sum(1)


class RealGINNetwork(nn.Module):
    """Feature maps and an expression -> three boxes with a confidence a cell, and GARAN's attention."""

    def __init__(self, config: RealGINConfig, branch: nn.Module, words: int):
        super().__init__()
        check_scales(branch.scales)
        self.branch, self.scales, self.grid = branch, branch.scales, branch.scales[-1][1]
        self.language, text = RecurrentEncoder(config.language, words), 2 * config.language.width
        self.select = FeatureSelection(branch.scales, text, config.width)
        self.garan = Garan(text, config.width, config.heads)
        self.gate = TextGate(Residuals(config.width, 1), text, config.width)
        self.head = nn.Conv2d(config.width, 5 * len(config.anchors), 1)
        nn.init.constant_(self.head.bias.data[4::5], -math.log(1 / PRIOR - 1))
        self.register_buffer("anchors", torch.tensor(config.anchors) / branch.size, persistent=False)

    def visual_levels(self, frames: torch.Tensor) -> torch.Tensor:
        return pack(self.branch(frames))

    def forward(self, levels, word_ids, word_mask, cell_mask) -> dict:
        """levels as packed maps [B, N], word_ids and word_mask [B, T], cell_mask [B, cells] True inside the picture.

        Returns `raw` [B, cells, A, 5] (x, y, log w, log h, confidence as logits), `reasoning` [B, cells] (GARAN's logits),
        `boxes` [B, 4] corners in 0..1 of the frame (of the most confident one), `score` [B], `confidence` [B, cells].
        """
        text = self.language(word_ids, word_mask).vector
        maps = unpack(levels if torch.is_autocast_enabled(levels.device.type) else levels.float(), self.scales)
        x, reasoning = self.garan(self.select(maps, text), text)
        raw = self.head(self.gate(x, text)).flatten(2).unflatten(1, (-1, 5)).permute(0, 3, 1, 2).float()
        confidence = raw[..., 4].masked_fill(~cell_mask[..., None], float("-inf"))
        best = confidence.flatten(1).argmax(1)
        boxes = read_boxes(raw, self.anchors, self.grid).flatten(1, 2)
        picked = cxcywh_to_xyxy(boxes[torch.arange(len(best), device=best.device), best])
        score = confidence.flatten(1).amax(1).sigmoid()
        return {"raw": raw, "reasoning": reasoning.float(), "boxes": picked, "score": score, "confidence": confidence.amax(2)}


def read_boxes(raw: torch.Tensor, anchors: torch.Tensor, grid: int) -> torch.Tensor:
    """Logits [B, grid * grid, A, 5] -> boxes [B, grid * grid, A, 4], centre and size in 0..1 of the frame."""
    at = torch.arange(grid * grid, device=raw.device)
    corner = torch.stack([at % grid, at // grid], -1)[:, None]
    return torch.cat([(raw[..., :2].sigmoid() + corner) / grid, raw[..., 2:4].exp() * anchors], -1)


def assign(targets: torch.Tensor, anchors: torch.Tensor, grid: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The cell [B] that a box's centre lies in, and the anchor [B] whose shape, laid on that centre, meets it best.

    targets [B, 4] centre and size in 0..1, anchors [A, 2] sizes in 0..1.
    """
    column, row = (targets[:, :2] * grid).long().clamp(0, grid - 1).unbind(1)
    inside = torch.minimum(targets[:, None, 2:], anchors).prod(-1)
    iou = inside / (targets[:, 2:].prod(-1)[:, None] + anchors.prod(-1) - inside)
    return row * grid + column, iou.argmax(1)


def attention_target(targets: torch.Tensor, cells: torch.Tensor, grid: int) -> torch.Tensor:
    """[B, grid * grid]: the IoU that the label's box has with itself when its centre is moved to each cell.

    targets [B, 4] centre and size in 0..1, cells [B] where the centre lies. Centres are counted in whole cells, and a moved box
    is cut off at the frame, as in the released code.
    """
    at = torch.arange(grid * grid, device=targets.device)
    every = torch.stack([at % grid, at // grid], -1).float().expand(len(targets), -1, -1)
    home = torch.stack([cells % grid, cells // grid], -1).float()[:, None].expand_as(every)
    size = targets[:, None, 2:].expand_as(every) * grid
    moved = cxcywh_to_xyxy(torch.cat([every, size], -1)).clamp(0, grid)
    return box_iou(moved, cxcywh_to_xyxy(torch.cat([home, size], -1)), pairwise=False)


def realgin_losses(output: dict, targets: torch.Tensor, anchors: torch.Tensor, grid: int, attention: float) -> dict:
    """YOLOv3's losses for one box an image, summed over cells and averaged over the batch.

    targets [B, 4] corners in 0..1. Centre: cross-entropy of the place in the cell; size: half a smooth L1 of the log ratio to
    the anchor; both times 2 - w h. Confidence: cross-entropy, without the negatives whose box meets the label's by more than 0.5.
    Attention: `attention` times the cross-entropy of GARAN's logits with `attention_target`.
    """
    raw, boxes = output["raw"], xyxy_to_cxcywh(targets)
    batch = torch.arange(len(raw), device=raw.device)
    cell, anchor = assign(boxes, anchors, grid)
    mine = raw[batch, cell, anchor]
    scale = 2 - boxes[:, 2] * boxes[:, 3]
    place = (boxes[:, :2] * grid - torch.stack([cell % grid, cell // grid], -1)).clamp(0, 1)
    centre = F.binary_cross_entropy_with_logits(mine[:, :2], place, reduction="none").sum(-1) * scale
    ratio = (boxes[:, 2:].clamp(min=1e-6) / anchors[anchor]).log()
    size = F.smooth_l1_loss(mine[:, 2:4], ratio, reduction="none", beta=SIGMA**-2).sum(-1) * 0.5 * scale
    wanted = torch.zeros_like(raw[..., 4])
    wanted[batch, cell, anchor] = 1.0
    with torch.no_grad():
        every = cxcywh_to_xyxy(read_boxes(raw, anchors, grid))
        met = box_iou(every, targets[:, None, None].expand_as(every), pairwise=False) > IGNORE
    counted = (wanted > 0) | ~met
    confidence = (F.binary_cross_entropy_with_logits(raw[..., 4], wanted, reduction="none") * counted).sum((1, 2))
    reasoning = F.binary_cross_entropy_with_logits(output["reasoning"], attention_target(boxes, cell, grid), reduction="none").sum(1)
    parts = {"centre": centre, "size": size, "confidence": confidence, "attention": attention * reasoning}
    losses = {name: part.mean() for name, part in parts.items()}
    return {**losses, "loss": sum(losses.values())}


class RealGINGrounder(CellGrounder):
    """`stages.Grounder` by a `RealGINNetwork`."""

    name = "realgin"

    def _network(self) -> RealGINNetwork:
        return RealGINNetwork(self.config, map_branch(self.config.visual, self.config.image_size), len(self.words))

    def losses(self, output: dict, batch: dict) -> dict:
        return realgin_losses(output, batch["boxes"], self.network.anchors, self.network.grid, self.config.loss_attention)
