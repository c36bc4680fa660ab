"""The visual branch of a grounding network: a detector's backbone and encoder, by name.

`builtin` is the built-in world's detector; `transformers:NAME_OR_FOLDER` a DETR-type detector (CPL starts from
DETR's ResNet-50 and encoder). Either gives one set of cell tokens a level of its encoder.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import nn

from ..data.proposals.tiny_detector import TinyDetector
from ..errors import CpgrError
from ..vocabulary import opened

BUILTIN = Path(__file__).parent.parent / "builtin"


class TinyBranch(nn.Module):
    """The built-in detector's stem and blocks."""

    def __init__(self, folder: str | Path):
        super().__init__()
        self.detector = TinyDetector.from_pretrained(folder)
        config = self.detector.config
        self.size, self.grid, self.width, self.count = config.image_size, config.grid, config.width, config.layers

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        """uint8 [B, 3, S, S] -> [B, levels, cells, width]."""
        return torch.stack(self.detector.levels(frames), 1)

    def box_head_state(self) -> dict | None:
        return self.detector.box_head.state_dict()


class DetrBranch(nn.Module):
    """DETR's backbone and transformer encoder: the outputs of all encoder layers."""

    def __init__(self, name: str, size: int):
        from transformers import AutoModelForObjectDetection

        super().__init__()
        with opened(name):
            detector = AutoModelForObjectDetection.from_pretrained(name, dtype=torch.float32)
        self.model = getattr(detector, "model", None)
        if not hasattr(getattr(self.model, "decoder", None), "layers") or not hasattr(detector.config, "encoder_layers"):
            raise CpgrError(f"the visual branch {name!r} is a {type(detector).__name__}; a DETR-type detector is needed")
        # the decoder is not part of the branch; without layers it costs nothing
        self.model.decoder.layers = self.model.decoder.layers[:0]
        for part in (self.model.decoder, self.model.query_position_embeddings):
            part.requires_grad_(False)
        self.size, self.width, self.count = size, detector.config.d_model, detector.config.encoder_layers
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406])[:, None, None] * 255, persistent=False)
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225])[:, None, None] * 255, persistent=False)
        with torch.no_grad():
            self.grid = math.isqrt(self.eval()(torch.zeros(1, 3, size, size)).shape[2])

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        """uint8 [B, 3, S, S] -> [B, levels, cells, width]."""
        pixels = (frames.to(self.mean.dtype) - self.mean) / self.std
        output = self.model(pixels, output_hidden_states=True, return_dict=True)
        return torch.stack(output.encoder_hidden_states[-self.count :], 1)

    def box_head_state(self) -> None:
        return None


def visual_branch(spec: str, size: int) -> nn.Module:
    """The branch named by `spec`, for frames of `size` pixels (0: the branch's own)."""
    kind, _, name = spec.partition(":")
    if kind == "builtin":
        return TinyBranch(name or BUILTIN / "detector")
    if kind == "transformers" and name:
        return DetrBranch(name, size or 640)
    raise CpgrError(f"unknown visual branch {spec!r}: give builtin or transformers:NAME_OR_FOLDER")
