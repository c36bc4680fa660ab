"""SimREC: one-stage grounding by text-gated maps, multi-scale fusion and an anchor-free head (Luo et al., 2022).

Written from the paper's and its released network's facts: every map is gated by the expression, the maps are fused over
the scales, GARAN reasons on the coarsest, and a YOLOX-style head gives a box and an objectness to each of its cells.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from cpgr_kernels import box_iou
from torch import nn

from ..language import LanguageConfig, LanguageEncoder, fill_vectors, read_vectors
from ..regions import cxcywh_to_xyxy
from ..training import TrainingConfig
from .backbones import map_branch
from .grounder import GrounderConfig
from .maps import Garan, MultiScale, TextGate, check_scales, pack, unpack
from .wordwise import CellGrounder

RADIUS = 2.5  # cells around a label's centre that may answer for it
CANDIDATES = 10  # of the best overlaps, whose sum says how many cells do
FAR = 1e5  # the cost of a cell that is not both in the box and near its centre
PRIOR = 0.01  # objectness of every cell at the start
LARGEST = 6.0  # log of the largest box in cells: what overflows learns nothing


@dataclass
class SimRECConfig(GrounderConfig):
    """SimREC; the defaults are the published ones for RefCOCO (25 epochs of 42,404 referents, 3 of them warm-up).

    Attributes:
        language: GRU, self-attention and attention pooling (one block of self-attention in SimREC).
        width: Channels of the gated and the fused maps.
        heads: Heads of GARAN.
        head_width: Channels of the head.
        loss_box: Weight of the box loss, 1 - IoU^2 (the objectness loss has weight 1).
        attention: The map that `attend` returns: `box`, the objectness the box is chosen by, or `garan`.
    """

    language: LanguageConfig = field(default_factory=lambda: LanguageConfig(layers=1))
    width: int = 512
    heads: int = 2
    head_width: int = 256
    loss_box: float = 5.0
    attention: Literal["box", "garan"] = "box"
    training: TrainingConfig = field(
        default_factory=lambda: TrainingConfig(
            steps=33_125, batch_size=32, learning_rate=1e-4, weight_decay=0.0, betas=(0.9, 0.98), epsilon=1e-9, warmup=3_975,
            final_rate=0.01, clip=0.15, ema=0.9997,
        )
    )  # fmt: skip


class SimRECNetwork(nn.Module):
    """Feature maps and an expression -> a box and an objectness a cell."""

    def __init__(self, config: SimRECConfig, branch: nn.Module, words: int, word_width: int | None = None):
        super().__init__()
        check_scales(branch.scales)
        self.branch, self.scales, self.grid = branch, branch.scales, branch.scales[-1][1]
        self.language = LanguageEncoder(config.language, words, word_width)
        text, width, inner = config.language.width, config.width, config.head_width
        self.gates = nn.ModuleList(
            TextGate(nn.Sequential(nn.Conv2d(c, width, 1), nn.BatchNorm2d(width), nn.LeakyReLU(0.1)), text, width) for c, _ in self.scales
        )
        self.fuse = MultiScale([(width, side) for _, side in self.scales], width)
        self.garan = Garan(text, width, config.heads)
        self.stem = nn.Sequential(*(layer for a, k in ((width, 1), (inner, 3), (inner, 3)) for layer in _smooth(a, inner, k)))
        self.box, self.objectness = nn.Conv2d(inner, 4, 1), nn.Conv2d(inner, 1, 1)
        nn.init.constant_(self.objectness.bias, -math.log(1 / PRIOR - 1))

    def visual_levels(self, frames: torch.Tensor) -> torch.Tensor:
        return pack(self.branch(frames))

    def forward(self, levels, word_ids, word_mask, cell_mask) -> dict:
        """levels as packed maps [B, N], word_ids and word_mask [B, T], cell_mask [B, cells] True inside the picture.

        Returns `cell_boxes` [B, cells, 4] corners in 0..1 of the frame, `confidence` (objectness) and `reasoning` (GARAN's), [B, cells]
        as logits, and of the cell with the greatest objectness inside the picture `boxes` [B, 4] and `score` [B].
        """
        _, text = self.language(word_ids)
        maps = unpack(levels if torch.is_autocast_enabled(levels.device.type) else levels.float(), self.scales)
        fused = self.fuse([gate(m, text) for gate, m in zip(self.gates, maps, strict=True)])
        x, reasoning = self.garan(fused, text)
        x = self.stem(x)
        cell_boxes = read_boxes(self.box(x).flatten(2).transpose(1, 2).float(), self.grid)
        objectness = self.objectness(x).flatten(1).float()
        score, best = objectness.masked_fill(~cell_mask, float("-inf")).max(1)
        boxes = cell_boxes[torch.arange(len(best), device=best.device), best]
        return {
            "cell_boxes": cell_boxes, "confidence": objectness, "reasoning": reasoning.float(), "boxes": boxes, "score": score.sigmoid(),
        }  # fmt: skip


def _smooth(inputs: int, outputs: int, kernel: int) -> list[nn.Module]:
    """YOLOX's convolution: batch norm and SiLU after it."""
    return [nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False), nn.BatchNorm2d(outputs), nn.SiLU()]


def read_boxes(raw: torch.Tensor, grid: int) -> torch.Tensor:
    """Offsets from each cell's corner and log sizes in cells, [B, grid * grid, 4] -> corners in 0..1 of the frame."""
    at = torch.arange(grid * grid, device=raw.device)
    centre = raw[..., :2] + torch.stack([at % grid, at // grid], -1)
    return cxcywh_to_xyxy(torch.cat([centre, raw[..., 2:].clamp(max=LARGEST).exp()], -1) / grid)


def assign(cell_boxes: torch.Tensor, targets: torch.Tensor, grid: int) -> torch.Tensor:
    """Which cells answer for the label, [B, cells] (YOLOX's SimOTA with one box an image).

    Candidates are the cells whose centre lies in the box or within 2.5 cells of its centre, both ways. Their cost is -3 log IoU, and
    1e5 more where only one of the two holds. The k cheapest answer, k being the sum of the ten best overlaps, at least 1.
    cell_boxes [B, cells, 4] and targets [B, 4] are corners in 0..1; raises nothing and has no gradient.
    """
    with torch.no_grad():
        at = torch.arange(grid * grid, device=targets.device)
        centre = (torch.stack([at % grid, at // grid], -1) + 0.5) / grid
        low, high = targets[:, None, :2], targets[:, None, 2:]
        inside = ((centre > low) & (centre < high)).all(-1)
        near = ((centre - (low + high) / 2).abs() < RADIUS / grid).all(-1)
        candidate = inside | near
        iou = box_iou(cell_boxes.float(), targets[:, None].expand_as(cell_boxes).float(), pairwise=False) * candidate
        cost = -3 * (iou + 1e-8).log() + FAR * ~(inside & near)
        cost = cost.masked_fill(~candidate, float("inf"))
        count = iou.topk(min(CANDIDATES, iou.shape[1]), 1).values.sum(1).long().clamp(min=1)
        rank = cost.argsort(dim=1, stable=True).argsort(dim=1)
        return (rank < count[:, None]) & candidate


def simrec_losses(output: dict, targets: torch.Tensor, grid: int, box_weight: float) -> dict:
    """box_weight * sum of (1 - IoU^2) over the cells that answer, and the objectness' cross-entropy summed over all cells; both divided
    by the number of cells that answer in the whole batch. targets [B, 4] corners in 0..1."""
    positive = assign(output["cell_boxes"], targets, grid)
    count = positive.sum().clamp(min=1)
    mine = output["cell_boxes"][positive]
    iou = box_iou(mine, targets[:, None].expand_as(output["cell_boxes"])[positive], pairwise=False)
    box = box_weight * (1 - iou**2).sum() / count
    objectness = F.binary_cross_entropy_with_logits(output["confidence"], positive.float(), reduction="sum") / count
    return {"box": box, "objectness": objectness, "loss": box + objectness}


class SimRECGrounder(CellGrounder):
    """`stages.Grounder` by a `SimRECNetwork`."""

    name = "simrec"

    def _network(self, word_width: int | None = None) -> SimRECNetwork:
        return SimRECNetwork(self.config, map_branch(self.config.visual, self.config.image_size), len(self.words), word_width)

    def _new_network(self) -> SimRECNetwork:
        language = self.config.language
        if not language.vectors:
            return self._network()
        vectors = read_vectors(Path(language.vectors))
        network = self._network(len(next(iter(vectors.values()))))
        fill_vectors(network.language.embedding, self.words, vectors, language)
        return network

    def _restored_network(self, folder: Path) -> SimRECNetwork:
        """The file of vectors may be gone: their width is the artefact's."""
        from safetensors import safe_open

        with safe_open(folder / "model.safetensors", "pt") as saved:
            return self._network(saved.get_slice("language.embedding.weight").get_shape()[1])

    def losses(self, output: dict, batch: dict) -> dict:
        return simrec_losses(output, batch["boxes"], self.network.grid, self.config.loss_box)
