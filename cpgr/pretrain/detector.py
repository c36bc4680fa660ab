"""The detector with attributes: what VinVL and DETR are to the published systems."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from cpgr_kernels import generalized_box_iou

from ..data.proposals.tiny_detector import TinyDetector, TinyDetectorConfig
from ..data.scenes import vocabulary
from ..grounding.network import LEAST_AREA
from ..training import TrainingConfig, train
from .scenes import PIXELS, Drawn, Indices, as_is, attribute_indices, positive_cells, save_half


def train_detector(drawn: list[Drawn], out: Path, steps: int, accelerator) -> TinyDetector:
    config = TinyDetectorConfig(
        image_size=PIXELS, categories=vocabulary.CATEGORIES, colours=list(vocabulary.COLOURS),
        sizes=list(vocabulary.SIZES), patterns=vocabulary.PATTERNS,
    )  # fmt: skip
    model = TinyDetector(config).to(memory_format=torch.channels_last)
    step = _DetectorStep(model, drawn)
    settings = TrainingConfig(steps=steps, batch_size=32, learning_rate=2e-3, weight_decay=1e-3, warmup=100, clip=2.0)
    train(step, Indices(len(drawn)), as_is, settings, accelerator, seed=1, work=out / "detector.work", what="detector")
    save_half(model.eval(), out / "detector")
    return model.float()


class _DetectorStep(nn.Module):
    """Varifocal score (target: IoU), GIoU, and four cross-entropies at the cells in the middle of each box."""

    def __init__(self, model: TinyDetector, drawn: list[Drawn]):
        super().__init__()
        self.model, self.drawn = model, drawn

    def forward(self, indices: list[int]) -> dict:
        score, boxes, labels = self.model(torch.stack([self.drawn[i].image for i in indices]))
        rows, cells, targets, classes = [], [], [], []
        for row, i in enumerate(indices):
            picked, owner = positive_cells(self.drawn[i].boxes, self.model.config.grid)
            rows.append(torch.full_like(picked, row))
            cells.append(picked)
            targets.append(self.drawn[i].boxes[owner])
            classes.append(attribute_indices(self.drawn[i].scene.objects, self.model.config)[owner])
        at, cell, target, named = torch.cat(rows), torch.cat(cells), torch.cat(targets), torch.cat(classes)
        giou = generalized_box_iou(boxes[at, cell], target, pairwise=False, eps=LEAST_AREA)
        quality = torch.zeros_like(score, dtype=torch.float32)
        quality[at, cell] = giou.detach().clamp(min=0)
        focus = torch.where(quality > 0, quality, 0.75 * score.detach().float().sigmoid() ** 2)
        found = (F.binary_cross_entropy_with_logits(score.float(), quality, reduction="none") * focus).sum() / len(at)
        names = sum(F.cross_entropy(logits[at, cell].float(), named[:, i]) for i, logits in enumerate(labels))
        return {"score": found, "box": (1 - giou).mean(), "names": names, "loss": 1.5 * found + 2 * (1 - giou).mean() + 0.6 * names}


@torch.no_grad()
def cell_tokens(detector: TinyDetector, drawn: list[Drawn]) -> torch.Tensor:
    """The detector's last level of every scene, [N, cells, width] bf16: what words and image encoder are aligned to."""
    chunks = range(0, len(drawn), 16)
    return torch.cat([detector.levels(torch.stack([d.image for d in drawn[i : i + 16]]))[-1].bfloat16() for i in chunks])
