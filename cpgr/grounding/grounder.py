"""What every grounder with a network shares: frames and cached features, batches of queries, answers in original pixels."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import torch
from torch import nn

from ..data.features import FeatureStore, load_frames
from ..data.records import Image
from ..errors import CpgrError
from ..labels import Label, LabelTable
from ..processes import joined, share
from ..progress import track
from ..regions import Frame, cell_coverage
from ..stages import Attention, Grounded, Images, Query
from ..training import TrainingConfig, parameter_groups, train
from ..vocabulary import batches, clean

ANSWERED = 64  # queries answered together: few enough for a CPU's cache
ENCODED = 16  # images encoded together


@dataclass
class GrounderConfig:
    """What every grounding model has.

    Attributes:
        visual: Visual branch: `builtin`, `darknet:FILE` (yolov3_coco.pth), or `transformers:NAME_OR_FOLDER` of an image backbone.
        image_size: Side of the network's frame in pixels (letterboxed); 0 takes the branch's own.
        freeze_visual: Keep the visual branch as it is; its output is then computed once an image.
        warm_start: Go on from the last cycle's weights instead of the pretrained ones.
        warm_rate: Learning rate of a training that goes on, as a share of the first one's: at the full rate a network
            that has seen the labels before learns their mistakes by heart.
        training: How it is trained.
        memory_mb: Memory for cached visual features; what goes beyond lies on disk.
    """

    visual: str = "builtin"
    image_size: int = 0
    freeze_visual: bool = True
    warm_start: bool = False
    warm_rate: float = 1.0
    training: TrainingConfig = field(default_factory=TrainingConfig)
    memory_mb: float = 1024.0


class NetworkGrounder:
    """`stages.Grounder` by a network. A model gives its `name`, and what the methods below raise for.

    The network has `grid` (cells a side of the map it answers with), `branch` (its visual branch) and
    `visual_levels(frames)`, whose output is cached where the branch is frozen.
    """

    name = ""

    def __init__(self, config: GrounderConfig, accelerator, work: Path):
        self.config, self.accelerator, self.work = config, accelerator, work
        self.network: nn.Module | None = None
        self.store: FeatureStore | None = None
        self._held: dict[str, torch.Tensor] = {}
        self.history = None

    # -- what a model gives -----------------------------------------------------------------------------------

    def _build(self, rows: Sequence[Label]) -> nn.Module:
        """A new network, its pretrained parts in place, that knows the words of the rows' expressions."""
        raise NotImplementedError

    def _restore(self, folder: Path) -> nn.Module:
        """The network whose words lie in an artefact's folder; its weights are loaded by `load`."""
        raise NotImplementedError

    def _keep_words(self, folder: Path) -> None:
        """Write what `_restore` needs."""
        raise NotImplementedError

    def _words(self, texts: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """Ids and mask of the texts, [N, T]."""
        raise NotImplementedError

    def _output(self, batch: dict, attend: bool) -> dict:
        """The network's answer to a batch: `boxes` [B, 4] corners in 0..1 of the frame, `score` [B], and if asked
        `attention` [B, grid * grid] whose rows sum to 1."""
        raise NotImplementedError

    def losses(self, output: dict, batch: dict) -> dict:
        """The losses of a training batch's output by name, their sum under `loss`."""
        raise NotImplementedError

    def _pretrained(self, name: str) -> bool:
        """Whether the parameter of this name learns at the rate of pretrained parts."""
        return "branch." in name

    # -- building and keeping ---------------------------------------------------------------------------------

    def _take(self, network: nn.Module) -> None:
        branch, config = network.branch, self.config
        branch.requires_grad_(not config.freeze_visual)
        self.network = network.to(self.accelerator.device).eval()
        self.size, self.fill = branch.size, getattr(branch, "fill", (0, 0, 0))
        if config.freeze_visual and self.store is None:
            self.store = FeatureStore(
                self._encode, self.size, "letterbox", memory_mb=config.memory_mb, folder=self.work / "features", fill=self.fill
            )

    def _encode(self, frames: torch.Tensor) -> torch.Tensor:
        with self.accelerator.autocast():
            return self.network.visual_levels(frames.to(self.accelerator.device)).bfloat16()

    def save(self, folder: Path) -> None:
        from safetensors.torch import save_file

        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps({"grounder": self.name, **dataclasses.asdict(self.config)}, indent=2))
        state = {name: tensor.detach().cpu().contiguous() for name, tensor in self.network.state_dict().items()}
        save_file(state, folder / "model.safetensors")
        self._keep_words(folder)

    def load(self, folder: Path) -> None:
        from safetensors.torch import load_file

        try:
            self._take(self._restore(folder))
            self.network.load_state_dict(load_file(folder / "model.safetensors"))
        except (OSError, RuntimeError, ValueError, KeyError) as error:
            raise CpgrError(f"{folder}: not a grounding model of this configuration: {error}") from error

    # -- inputs -----------------------------------------------------------------------------------------------

    def _visual(self, images: Sequence[Image]) -> torch.Tensor:
        if self.store is not None:
            self.store.add({image.image_id: image for image in images}, "visual features")
            return self.store[[image.image_id for image in images]].to(self.accelerator.device)
        return load_frames(images, self.size, "letterbox", self.fill).to(self.accelerator.device)

    def _cells(self, images: Sequence[Image]) -> torch.Tensor:
        """[B, cells] True where the picture, not its padding, lies."""
        grid = self.network.grid
        return torch.stack([content_cells(image.width, image.height, self.size, grid) for image in images])

    def _examples(self, rows: list[Label], images: Images) -> Examples:
        return Examples(rows, images, self)

    def _step(self) -> Step:
        return Step(self.network, self.config.freeze_visual, self._output, self.losses)

    # -- the contract -----------------------------------------------------------------------------------------

    def fit(self, labels: LabelTable, images: Images, work: Path, validate=None, length: float = 1.0) -> None:
        rows = [row for row in labels.kept if row.box is not None and clean(row.expression)]
        if not rows:
            raise CpgrError("Grounding has no labels to train on: Refinement kept none (see refined.parquet for the reasons)")
        training = self.config.training
        if self.network is None or not self.config.warm_start:
            self._take(self._build(rows))
        else:
            training = dataclasses.replace(training, learning_rate=training.learning_rate * self.config.warm_rate)
        if length != 1:
            training = dataclasses.replace(training, steps=max(1, round(length * training.step_count(len(rows)))))
        if self.store is not None:
            self.store.add({row.image_id: images[row.image_id] for row in rows}, "visual features")
        data, step = self._examples(rows, images), self._step()
        history = train(
            step, data, data.collate, training, self.accelerator, seed=torch.initial_seed(),
            work=work, what="Grounding", groups=parameter_groups(step, training, self._pretrained), validate=validate,
        )  # fmt: skip
        self.network.eval()
        self.history = history

    @torch.no_grad()
    def _run(self, queries: Sequence[Query], attend: bool, what: str):
        """Network outputs for this process's share of the queries, in batches, with the places of a batch's queries among them.

        The queries are taken image by image and an image's levels are held for the batches it is in, so that each image is
        decoded and encoded once, whatever the order and the number of its expressions.
        """
        if self.store is not None:
            self.store.add({q.image.image_id: q.image for q in queries}, "visual features")
        first: dict[str, int] = {}
        for query in queries:
            first.setdefault(query.image.image_id, len(first))
        order = sorted(range(len(queries)), key=lambda i: first[queries[i].image.image_id])
        self._held = {}
        try:
            for places in track(share(list(batches(order, ANSWERED))), what):
                with self.accelerator.autocast():
                    output = self._output(self._query_batch([queries[i] for i in places]), attend)
                yield places, output
        finally:
            self._held = {}

    def _query_batch(self, queries: Sequence[Query]) -> dict:
        """The network's inputs for queries: `levels`, `cells`, `word_ids` and `word_mask`."""
        unique = {q.image.image_id: q.image for q in queries}
        place = {image_id: i for i, image_id in enumerate(unique)}
        which = torch.tensor([place[q.image.image_id] for q in queries])
        levels = self._encoded(unique)
        word_ids, word_mask = self._words([q.text for q in queries])
        batch = {"cells": self._cells(list(unique.values()))[which], "word_ids": word_ids, "word_mask": word_mask}
        return {"levels": levels[which], **{name: value.to(self.accelerator.device) for name, value in batch.items()}}

    def _encoded(self, images: dict[str, Image]) -> torch.Tensor:
        """The levels of `images`, in their order: those held from the last batch as they are, the others encoded."""
        levels = {image_id: self._held[image_id] for image_id in images if image_id in self._held}
        for some in batches([image for image_id, image in images.items() if image_id not in levels], ENCODED):
            visual = self._visual(some)
            encoded = visual if self.store is not None else self.network.visual_levels(visual)
            levels |= {image.image_id: one for image, one in zip(some, encoded, strict=True)}
        self._held = levels
        return torch.stack([levels[image_id] for image_id in images])

    def ground(self, queries: Sequence[Query]) -> Grounded:
        answers = self._run(queries, False, "grounding")
        found = joined([(places, out["boxes"].float().cpu(), out["score"].float().cpu()) for places, out in answers])
        boxes, scores = torch.zeros(len(queries), 4), torch.zeros(len(queries))
        for places, frame_boxes, part in found:
            scores[places] = part
            for place, box in zip(places, frame_boxes.clamp(0, 1) * self.size, strict=True):
                image = queries[place].image
                boxes[place] = Frame(self.size, image.width, image.height).to_image(box)
        return Grounded(boxes, scores)

    def attend(self, queries: Sequence[Query]) -> Attention:
        answers = self._run(queries, True, "attention")
        found = joined([(places, out["attention"].float().cpu()) for places, out in answers])
        grid = self.network.grid
        maps = torch.zeros(len(queries), grid * grid)
        for places, part in found:
            maps[places] = part
        return Attention(maps, grid, self.size)


@lru_cache(maxsize=4096)
def content_cells(image_width: int, image_height: int, size: int, grid: int) -> torch.Tensor:
    """[cells] True where the picture lies in a letterboxed frame of `size` pixels cut into `grid` x `grid` cells."""
    left, top, width, height = Frame(size, image_width, image_height).content
    box = torch.tensor([[left, top, left + width, top + height]], dtype=torch.float32)
    return cell_coverage(box, size, grid)[0] > 0


def framed(box: Sequence[float], width: int, height: int, size: int) -> torch.Tensor:
    """A box in original pixels of an image of `width` x `height` -> corners in 0..1 of its letterboxed frame."""
    return Frame(size, width, height).to_frame(torch.tensor(box, dtype=torch.float32)) / size


class Examples(torch.utils.data.Dataset):
    """Labels as tensors; a batch brings its images' cached features, or their decoded frames."""

    def __init__(self, rows: Sequence[Label], images: Images, grounder: NetworkGrounder):
        self.grounder, self.images = grounder, [images[row.image_id] for row in rows]
        self.word_ids, self.word_mask = grounder._words([row.expression for row in rows])
        self.weights = torch.tensor([row.weight for row in rows])
        self.boxes = torch.stack([framed(row.box, row.width, row.height, grounder.size) for row in rows])

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> int:
        return index

    def collate(self, indices: list[int]) -> dict:
        """The batch of these labels, on the device."""
        device = self.grounder.accelerator.device
        return {name: value.to(device) for name, value in self.batch(indices).items()}

    def batch(self, indices: list[int]) -> dict:
        images, pick = [self.images[i] for i in indices], torch.tensor(indices)
        longest = int(self.word_mask[pick].sum(1).max())
        return {
            "visual": self.grounder._visual(images),
            "cells": self.grounder._cells(images),
            "word_ids": self.word_ids[pick, :longest],
            "word_mask": self.word_mask[pick, :longest],
            "boxes": self.boxes[pick],
            "weights": self.weights[pick],
        }


class Step(nn.Module):
    """A training step: `answer`'s output for a batch and the losses `losses(output, batch)` of it."""

    def __init__(self, network: nn.Module, freeze_visual: bool, answer: Callable, losses: Callable):
        super().__init__()
        self.network, self.freeze_visual, self.answer, self.losses = network, freeze_visual, answer, losses

    def train(self, mode: bool = True):
        super().train(mode)
        if self.freeze_visual:
            self.network.branch.eval()
        return self

    def forward(self, batch: dict) -> dict:
        levels = batch["visual"] if self.freeze_visual else self.network.visual_levels(batch["visual"])
        return self.losses(self.answer({**batch, "levels": levels}, False), batch)
