"""The Grounding stage of CPGR: TransVG with CPL's multi-level cross-attention, trained on refined labels."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import torch
from torch import nn

from ..data.features import FeatureStore, load_frames
from ..data.records import Image
from ..errors import CpgrError
from ..labels import LabelTable
from ..progress import track
from ..regions import Frame, cell_coverage
from ..stages import Attention, Grounded, Images, Query
from ..training import TrainingConfig, parameter_groups, train
from ..vocabulary import batches, clean, extend, located
from .backbones import visual_branch
from .network import GroundingNetwork, NetworkConfig, box_loss, pointer_loss

log = logging.getLogger("cpgr")

ANSWERED = 64  # queries answered together: few enough for a CPU's cache


@dataclass
class TransVGConfig:
    """The grounding model.

    Attributes:
        visual: Visual branch: `builtin`, or `transformers:NAME_OR_FOLDER` of a DETR-type detector.
        text: Text encoder: `builtin`, or the name or folder of a BERT-type model.
        image_size: Side of the network's frame in pixels (letterboxed); 0 takes the branch's own.
        max_words: Longest expression in tokens, [CLS] and [SEP] counted (20; 40 for RefCOCOg).
        freeze_visual: Keep the visual branch as it is; its output is then computed once an image.
        vocabulary: `extend` adds the training expressions' words that the tokenizer breaks up, `keep` does not.
        warm_start: Go on from the last cycle's weights instead of the pretrained ones.
        warm_rate: Learning rate of a training that goes on, as a share of the first one's: at the full rate a network
            that has seen the labels before learns their mistakes by heart.
        loss_l1: Weight of the L1 term (1 as published; 5 suits the pointer head).
        loss_giou: Weight of the GIoU term (1 as published; 2 suits the pointer head).
        weighting: `none`; `weight`: each loss times its label's weight, over the batch's mean weight; `cpl`: each batch's
            losses weighted by softmax(label weight / 8).
        network: Shape of the fusion network.
        training: How it is trained.
        memory_mb: Memory for cached visual features; what goes beyond lies on disk.
    """

    visual: str = "transformers:facebook/detr-resnet-50"
    text: str = "bert-base-uncased"
    image_size: int = 640
    max_words: int = 20
    freeze_visual: bool = False
    vocabulary: str = "keep"
    warm_start: bool = False
    warm_rate: float = 1.0
    loss_l1: float = 1.0
    loss_giou: float = 1.0
    weighting: str = "none"
    network: NetworkConfig = field(default_factory=NetworkConfig)
    training: TrainingConfig = field(default_factory=lambda: TrainingConfig(epochs=20, batch_size=128, learning_rate=1e-4, warmup=0))
    memory_mb: float = 1024.0


class TransVGGrounder:
    """`stages.Grounder` by a `GroundingNetwork`."""

    def __init__(self, config: TransVGConfig, accelerator, work: Path):
        if config.weighting not in ("none", "weight", "cpl"):
            raise CpgrError(f"grounding.weighting: {config.weighting!r} is none of none, weight, cpl")
        self.config, self.accelerator, self.work = config, accelerator, work
        self.network: GroundingNetwork | None = None
        self.tokenizer = None
        self.store: FeatureStore | None = None

    # -- building and keeping ---------------------------------------------------------------------------------

    def build(self, texts: Sequence[str] = ()) -> None:
        """A network from the pretrained branches, and a tokenizer that knows the words of `texts`."""
        from transformers import AutoModel, AutoTokenizer

        name = located(self.config.text, "bert")
        self._make(AutoTokenizer.from_pretrained(name), AutoModel.from_pretrained(name, dtype=torch.float32), texts)

    def _make(self, tokenizer, encoder, texts: Sequence[str]) -> None:
        config = self.config
        self.tokenizer = tokenizer
        if getattr(encoder, "pooler", None) is not None:
            encoder.pooler = None  # nothing reads it, and it would be trained for nothing
        if config.vocabulary == "extend" and extend(tokenizer, texts):
            encoder.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        branch = visual_branch(config.visual, config.image_size)
        branch.requires_grad_(not config.freeze_visual)
        if config.freeze_visual:
            branch.eval()
        self.network = GroundingNetwork(config.network, branch, encoder, config.max_words).to(self.accelerator.device)
        self.network.eval()
        self.size = branch.size
        if config.freeze_visual and self.store is None:
            self.store = FeatureStore(
                self._levels, branch.size, "letterbox", memory_mb=config.memory_mb, folder=self.work / "features"
            )

    def _levels(self, frames: torch.Tensor) -> torch.Tensor:
        with self.accelerator.autocast():
            return self.network.visual_levels(frames.to(self.accelerator.device)).bfloat16()

    def save(self, folder: Path) -> None:
        from safetensors.torch import save_file

        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps({"grounder": "transvg", **dataclasses.asdict(self.config)}, indent=2))
        state = {name: tensor.detach().cpu().contiguous() for name, tensor in self.network.state_dict().items()}
        save_file(state, folder / "model.safetensors")
        self.network.text_encoder.config.save_pretrained(folder / "text")
        self.tokenizer.save_pretrained(folder / "text")

    def load(self, folder: Path) -> None:
        from safetensors.torch import load_file
        from transformers import AutoConfig, AutoModel, AutoTokenizer

        try:
            text = AutoModel.from_config(AutoConfig.from_pretrained(folder / "text"))
            self._make(AutoTokenizer.from_pretrained(folder / "text"), text, ())
            self.network.load_state_dict(load_file(folder / "model.safetensors"))
        except (OSError, RuntimeError, ValueError) as error:
            raise CpgrError(f"{folder}: not a grounding model of this configuration: {error}") from error

    # -- inputs -----------------------------------------------------------------------------------------------

    def _visual(self, images: Sequence[Image]) -> torch.Tensor:
        if self.store is not None:
            self.store.add({image.image_id: image for image in images}, "visual features")
            return self.store[[image.image_id for image in images]].to(self.accelerator.device)
        return load_frames(images, self.size, "letterbox").to(self.accelerator.device)

    def _words(self, texts: Sequence[str]):
        out = self.tokenizer(
            [clean(t) for t in texts], padding=True, truncation=True, max_length=self.config.max_words, return_tensors="pt"
        )
        return out["input_ids"], out["attention_mask"]

    def _cells(self, images: Sequence[Image]) -> torch.Tensor:
        """[B, cells] True where the picture, not its padding, lies."""
        grid = self.network.grid
        return torch.stack([_content_cells(image.width, image.height, self.size, grid) for image in images])

    # -- the contract -----------------------------------------------------------------------------------------

    def fit(self, labels: LabelTable, images: Images, work: Path, validate=None, length: float = 1.0) -> None:
        rows = [row for row in labels.kept if row.box is not None and clean(row.expression)]
        if not rows:
            raise CpgrError("Grounding has no labels to train on: Refinement kept none (see refined.parquet for the reasons)")
        training = self.config.training
        if self.network is None or not self.config.warm_start:
            self.build([row.expression for row in rows])
        else:
            training = dataclasses.replace(training, learning_rate=training.learning_rate * self.config.warm_rate)
        if length != 1:
            training = dataclasses.replace(training, steps=max(1, round(length * training.step_count(len(rows)))))
        if self.store is not None:
            self.store.add({row.image_id: images[row.image_id] for row in rows}, "visual features")
        data = _Examples(rows, images, self)
        step = _Step(self.network, self.config)
        groups = parameter_groups(step, training, lambda name: "branch." in name or "text_encoder." in name)
        history = train(
            step, data, data.collate, training, self.accelerator, seed=torch.initial_seed(),
            work=work, what="Grounding", groups=groups, validate=validate,
        )  # fmt: skip
        self.network.eval()
        self.history = history

    def _run(self, queries: Sequence[Query], attention_layer: int | None, what: str):
        """Network outputs for the queries, in batches, images of a batch encoded once."""
        device = self.accelerator.device
        for chunk in track(list(batches(list(queries), ANSWERED)), what):
            unique = list({q.image.image_id: q.image for q in chunk}.values())
            place = {image.image_id: i for i, image in enumerate(unique)}
            which = torch.tensor([place[q.image.image_id] for q in chunk])
            word_ids, word_mask = self._words([q.text for q in chunk])
            with torch.no_grad(), self.accelerator.autocast():
                visual = self._visual(unique)
                levels = visual if self.store is not None else self.network.visual_levels(visual)
                cells = self._cells(unique).to(device)
                output = self.network(levels[which], word_ids.to(device), word_mask.to(device), cells[which], attention_layer)
            yield chunk, output

    def ground(self, queries: Sequence[Query]) -> Grounded:
        boxes, scores = [], []
        for chunk, output in self._run(queries, None, "grounding"):
            frame_boxes = output["boxes"].float().cpu().clamp(0, 1) * self.size
            for query, box in zip(chunk, frame_boxes, strict=True):
                boxes.append(Frame(self.size, query.image.width, query.image.height).to_image(box))
            scores.append(output["score"].float().cpu())
        return Grounded(torch.stack(boxes) if boxes else torch.zeros(0, 4), torch.cat(scores) if scores else torch.zeros(0))

    def attend(self, queries: Sequence[Query]) -> Attention:
        maps = [o["attention"].float().cpu() for _, o in self._run(queries, self.config.network.attention_layer, "attention")]
        grid = self.network.grid
        return Attention(torch.cat(maps) if maps else torch.zeros(0, grid * grid), grid, self.size)


@lru_cache(maxsize=4096)
def _content_cells(image_width: int, image_height: int, size: int, grid: int) -> torch.Tensor:
    left, top, width, height = Frame(size, image_width, image_height).content
    box = torch.tensor([[left, top, left + width, top + height]], dtype=torch.float32)
    return cell_coverage(box, size, grid)[0] > 0


class _Examples(torch.utils.data.Dataset):
    """Labels as tensors; a batch brings its images' cached features, or their decoded frames."""

    def __init__(self, rows, images: Images, grounder: TransVGGrounder):
        self.grounder, self.images = grounder, [images[row.image_id] for row in rows]
        self.word_ids, self.word_mask = grounder._words([row.expression for row in rows])
        self.weights = torch.tensor([row.weight for row in rows])
        self.boxes = torch.stack(
            [
                Frame(grounder.size, row.width, row.height).to_frame(torch.tensor(row.box, dtype=torch.float32)) / grounder.size
                for row in rows
            ]
        )

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> int:
        return index

    def collate(self, indices: list[int]) -> dict:
        device = self.grounder.accelerator.device
        images, pick = [self.images[i] for i in indices], torch.tensor(indices)
        longest = int(self.word_mask[pick].sum(1).max())
        batch = {
            "visual": self.grounder._visual(images),
            "cells": self.grounder._cells(images),
            "word_ids": self.word_ids[pick, :longest],
            "word_mask": self.word_mask[pick, :longest],
            "boxes": self.boxes[pick],
            "weights": self.weights[pick],
        }
        return {name: value.to(device) for name, value in batch.items()}


class _Step(nn.Module):
    """A training step: the network's loss on a batch (reference section 3.1; CPL's weighting, section 2.3)."""

    def __init__(self, network: GroundingNetwork, config: TransVGConfig):
        super().__init__()
        self.network, self.config = network, config

    def train(self, mode: bool = True):
        super().train(mode)
        if self.config.freeze_visual:
            self.network.branch.eval()
        return self

    def forward(self, batch: dict) -> dict:
        config = self.config
        levels = batch["visual"] if config.freeze_visual else self.network.visual_levels(batch["visual"])
        output = self.network(levels, batch["word_ids"], batch["word_mask"], batch["cells"])
        if config.network.head == "pointer":
            losses = pointer_loss(output, batch["boxes"], config.loss_l1, config.loss_giou)
        else:
            losses = box_loss(output["boxes"], batch["boxes"], config.loss_l1, config.loss_giou)
        if config.weighting == "cpl":
            return {"loss": ((batch["weights"] / 8).softmax(0) * losses).sum()}
        if config.weighting == "weight":
            return {"loss": (batch["weights"] * losses).sum() / batch["weights"].sum().clamp(min=1e-6)}
        return {"loss": losses.mean()}
