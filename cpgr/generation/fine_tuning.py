"""What Generation is fine-tuned on, and a step of it."""

from __future__ import annotations

import random

import torch
from torch import nn

from ..labels import Label, LabelTable
from ..processes import Rowwise
from ..vocabulary import clean
from .objectives import latent_losses, region_losses

PASSES = ("read", "regions", "text_features", "text_log_likelihood", "language_loss")  # row by row: R rows in, R rows out


class Groups(torch.utils.data.Dataset):
    """Refined labels by image: regions with texts, and expressions with a weight for each region of the image."""

    def __init__(self, labels: LabelTable, generator):
        self.generator = generator
        latent = generator.config.latent
        self.groups = []
        for image_id, rows in labels.by_image().items():
            candidates: dict[str, list[Label]] = {}
            for row in rows:
                if row.expression_id and "posterior" in row.scores:
                    candidates.setdefault(row.expression_id, []).append(row)
            labelled = [row for row in rows.kept if row.box is not None and clean(row.expression)]
            if labelled or (latent and candidates):
                self.groups.append((image_id, labelled, list(candidates.values()) if latent else []))

    def __len__(self) -> int:
        return len(self.groups)

    def __getitem__(self, index: int) -> int:
        return index

    def collate(self, indices: list[int]) -> dict:
        g, per_image = self.generator, self.generator.config.per_image
        rows: list[Label] = []
        expressions: list[list[Label]] = []
        for index in indices:
            _, labelled, candidates = self.groups[index]
            rows += random.sample(labelled, min(per_image, len(labelled)))
            expressions += random.sample(candidates, min(2, len(candidates)))
        batch = {}
        if rows:
            keys = [(row.image_id, row.region_id) for row in rows]
            words = [clean(row.expression) for row in rows]
            same = [[a == b or s == t for b, t in zip(keys, words, strict=True)] for a, s in zip(keys, words, strict=True)]
            weights = torch.tensor([row.weight for row in rows], device=g.accelerator.device)
            batch["regions"] = {
                **g.region_inputs(rows)._asdict(), "texts": g.qformer_texts(words),
                "prompt": g.prompts(rows), "target": g.targets(words), "same": torch.tensor(same, device=g.accelerator.device),
                "weights": weights / weights.mean().clamp(min=1e-6),
            }  # fmt: skip
        if expressions:
            batch["latent"] = self._latent(expressions)
        return batch

    def _latent(self, expressions: list[list[Label]]) -> dict:
        g = self.generator
        ids = list(dict.fromkeys(rows[0].image_id for rows in expressions))
        most = max(len(rows) for rows in expressions)
        regions, prior = torch.full((len(ids), most), -1), torch.zeros(len(expressions), most)
        shown: list[Label] = []  # an image's regions once, however many of its expressions are here
        for i, rows in enumerate(expressions):
            at = ids.index(rows[0].image_id)
            if regions[at, 0] < 0:
                regions[at, : len(rows)] = torch.arange(len(shown), len(shown) + len(rows))
                shown += rows
            prior[i, : len(rows)] = torch.tensor([row.scores["posterior"] for row in rows])
        device = g.accelerator.device
        image, boxes, owner = g.region_inputs(shown)
        return {
            "image": image, "boxes": boxes, "regions": regions.to(device), "prior": prior.to(device),
            "texts": g.qformer_texts([rows[0].expression for rows in expressions]),
            "owner": (g.owners([rows[0] for rows in expressions], ids), owner),
        }  # fmt: skip


class FineTuning(nn.Module):
    """A training step of Generation: the weighted sum of its objectives. Frozen parts stay in eval mode."""

    def __init__(self, generator):
        super().__init__()
        self.model, self.config = generator.model, generator.config
        # A row's loss hangs on the others (contrast, negatives), so every process has all of a batch and shares the passes.
        self.shared = Rowwise(self.model, PASSES)

    def train(self, mode: bool = True):
        super().train(False)  # RegionBLIP keeps the frozen base's dropout off; LoRA's own stays
        for name, module in self.model.named_modules():
            if "lora_dropout" in name:
                module.train(mode)
        return self

    def forward(self, batch: dict) -> dict:
        losses = {}
        if "regions" in batch:
            losses |= region_losses(self.shared, **batch["regions"])
        if "latent" in batch:
            losses |= latent_losses(self.shared, **batch["latent"])
        config = self.config
        weight = {"itg_latent": config.loss_latent, "itc_latent": config.loss_latent}
        total = sum(value * weight.get(name, getattr(config, f"loss_{name}", 1.0)) for name, value in losses.items())
        return {**losses, "loss": total}
