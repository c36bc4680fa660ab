"""Where anchors come from: frozen detectors that give every cell (or object query) a feature and a box.

A source is a module with `size`, `fill` (what a letterbox is padded with), `names` (of the classes), `side` (cells in a
row of its map; 0 for object queries), `forward(frames) -> Cells` and `fusion(width)`, the trained module that makes one feature a cell.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn

from ...data.proposals.coco import COCO_CLASSES
from ...data.proposals.darknet import BOXES, DarkNet, DarkNetConfig
from ...data.proposals.darknet_weights import read_darknet
from ...data.proposals.detections import first_line
from ...data.proposals.tiny_detector import TinyDetector
from ...errors import CpgrError
from ...regions import cxcywh_to_xyxy
from ...vocabulary import BUILTIN
from .fusion import CellFusion, MultiScaleFusion


class Cells(NamedTuple):
    """What a detector sees in B images: its maps [B, ...], and of each of N cells the best box [B, N, 4] (corners, frame
    pixels), how sure it is of it [B, N], how sure of all its boxes on average [B, N], and the box's class [B, N]."""

    maps: tuple[torch.Tensor, ...]
    boxes: torch.Tensor
    best: torch.Tensor
    mean: torch.Tensor
    classes: torch.Tensor


class DarkNetSource(nn.Module):
    """RefCLIP's own: the cells of stride 32, each with the most confident of its four boxes."""

    fill = (127, 127, 127)

    def __init__(self, network: DarkNet, size: int):
        super().__init__()
        if size % 32:
            raise CpgrError(f"refinement.image_size {size}: DarkNet's frames are a multiple of 32 pixels")
        self.network, self.size, self.side = network, size, size // 32
        classes = network.config.classes
        self.names = list(COCO_CLASSES) if classes == len(COCO_CLASSES) else [f"class {i}" for i in range(classes)]

    def forward(self, frames: torch.Tensor) -> Cells:
        maps, (cells, *_) = self.network(frames)
        best, which = cells.objectness.max(-1)
        boxes = cells.boxes.gather(2, which[..., None, None].expand(-1, -1, 1, 4)).squeeze(2)
        classes = cells.classes.argmax(-1).gather(2, which[..., None]).squeeze(2)
        return Cells(tuple(maps), boxes, best, cells.objectness.mean(-1), classes)

    def fusion(self, width: int) -> MultiScaleFusion:
        channels = self.network.config.channels
        return MultiScaleFusion(channels, width or channels[0])

    def described(self) -> dict:
        config = self.network.config
        return {"kind": "darknet", "width": config.width, "blocks": list(config.blocks), "classes": config.classes, "boxes": BOXES}


class TinySource(nn.Module):
    """The built-in world's detector: the cells of its grid, one box each."""

    fill = (0, 0, 0)

    def __init__(self, detector: TinyDetector):
        super().__init__()
        self.detector = detector
        self.size, self.side, self.names = detector.config.image_size, detector.config.grid, detector.config.categories

    def forward(self, frames: torch.Tensor) -> Cells:
        levels = self.detector.levels(frames)
        score, boxes, labels = self.detector.heads(levels[-1])
        sure = score.float().sigmoid()
        return Cells((torch.cat(levels, -1),), boxes.float() * self.size, sure, sure, labels[0].argmax(-1))

    def fusion(self, width: int) -> CellFusion:
        config = self.detector.config
        return CellFusion(config.width * config.layers, width or config.width)

    def described(self) -> dict:
        return {"kind": "builtin", "config": self.detector.config.to_dict()}


class TransformersSource(nn.Module):
    """An object-detection model of Hugging Face: its object queries stand for cells (as QueryMatch has it)."""

    side = 0

    def __init__(self, model: nn.Module, size: int, mean, std):
        super().__init__()
        self.model, self.size, self.mean_std = model, size, (list(mean), list(std))
        self.fill = tuple(round(255 * v) for v in mean)  # what normalisation makes 0 of
        self.names = [str(model.config.id2label[i]) for i in range(model.config.num_labels)]
        for name, values in (("mean", mean), ("std", std)):
            self.register_buffer(name, torch.tensor(values, dtype=torch.float32)[:, None, None] * 255, persistent=False)

    def forward(self, frames: torch.Tensor) -> Cells:
        output = self.model(pixel_values=(frames.to(self.mean.dtype) - self.mean) / self.std)
        logits, queries = output.logits.float(), output.pred_boxes.shape[1]
        # DETR's softmax has a last class for no object; later models have a sigmoid a class
        chances = logits.softmax(-1)[..., :-1] if logits.shape[-1] > len(self.names) else logits.sigmoid()
        sure, classes = chances.max(-1)
        features = output.last_hidden_state[:, -queries:]  # YOLOS keeps its patches before them
        return Cells((features,), cxcywh_to_xyxy(output.pred_boxes.float()) * self.size, sure, sure, classes)

    def fusion(self, width: int) -> CellFusion:
        inside = getattr(self.model.config, "d_model", None) or self.model.config.hidden_size
        return CellFusion(inside, width or inside)

    def described(self) -> dict:
        return {"kind": "transformers", "config": self.model.config.to_dict(), "mean": self.mean_std[0], "std": self.mean_std[1]}


def build_source(spec: str, size: int) -> nn.Module:
    """The detector that `spec` names, with its weights. Raises CpgrError where there are none: a detector of random weights
    is never taken without being asked for."""
    kind, _, name = spec.partition(":")
    if kind == "builtin":
        folder = name or BUILTIN / "detector"
        try:
            return TinySource(TinyDetector.from_pretrained(str(folder)))
        except (OSError, ValueError) as error:
            raise CpgrError(f"refinement.detector {spec!r}: no built-in detector in {folder}: {first_line(error)}") from error
    if kind == "darknet" and name == "random":
        return DarkNetSource(DarkNet(), size or 416)
    if kind == "darknet" and name:
        return DarkNetSource(read_darknet(name), size or 416)
    if kind == "transformers" and name:
        return _transformers(name, size or 640)
    raise CpgrError(
        f"refinement.detector {spec!r} names no detector: write darknet:FILE, builtin, builtin:FOLDER or transformers:NAME_OR_FOLDER"
    )


def _transformers(name: str, size: int) -> TransformersSource:
    from transformers import AutoImageProcessor, AutoModelForObjectDetection

    try:
        model, info = AutoModelForObjectDetection.from_pretrained(name, output_loading_info=True)
        processor = AutoImageProcessor.from_pretrained(name)
    except (OSError, ValueError, ImportError) as error:
        raise CpgrError(f"refinement.detector transformers:{name}: no object-detection model could be loaded: {first_line(error)}") from error
    if info["missing_keys"]:
        missing = sorted(info["missing_keys"])
        raise CpgrError(f"refinement.detector transformers:{name}: its weights lack {len(missing)} of the model's, such as {missing[0]}")
    normal = getattr(processor, "do_normalize", True)
    return TransformersSource(model, size, processor.image_mean if normal else [0.0] * 3, processor.image_std if normal else [1.0] * 3)


def rebuild_source(about: dict, size: int) -> nn.Module:
    """A source of the form that `described` gave, for weights that are loaded next."""
    kind = about["kind"]
    if kind == "darknet":
        return DarkNetSource(DarkNet(DarkNetConfig(about["width"], tuple(about["blocks"]), about["classes"])), size)
    if kind == "builtin":
        return TinySource(TinyDetector(TinyDetector.config_class.from_dict(about["config"])))
    if kind != "transformers":
        raise CpgrError(f"the model's detector is of the unknown kind {kind!r}")
    from transformers import AutoConfig, AutoModelForObjectDetection

    config = dict(about["config"])
    model = AutoModelForObjectDetection.from_config(AutoConfig.for_model(config.pop("model_type"), **config))
    return TransformersSource(model, size, about["mean"], about["std"])


class Packing:
    """Cells as one row of bytes an image, for a store of features: maps in `dtype`, the rest as they are."""

    def __init__(self, dtype: torch.dtype):
        self.dtype = dtype
        self.parts: list[tuple[torch.dtype, torch.Size]] = []

    def pack(self, cells: Cells) -> torch.Tensor:
        """uint8 [B, bytes]."""
        maps, *rest = cells
        values = [m.to(self.dtype) for m in maps] + [r.float() if r.is_floating_point() else r.int() for r in rest]
        self.parts = [(v.dtype, v.shape[1:]) for v in values]
        return torch.cat([v.contiguous().flatten(1).view(torch.uint8) for v in values], 1)

    def unpack(self, rows: torch.Tensor) -> Cells:
        """The cells of [B, bytes]."""
        sizes = [shape.numel() * dtype.itemsize for dtype, shape in self.parts]
        values = [
            part.contiguous().view(dtype).view(len(rows), *shape) for part, (dtype, shape) in zip(rows.split(sizes, 1), self.parts, strict=True)
        ]
        return Cells(tuple(values[:-4]), values[-4], values[-3], values[-2], values[-1].long())
