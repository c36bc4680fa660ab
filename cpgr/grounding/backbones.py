"""The visual branch of a grounding network, by name.

`visual_branch` gives cell tokens, one set a level of an encoder: `builtin` is the built-in world's detector,
`transformers:NAME_OR_FOLDER` a DETR-type detector (CPL starts from DETR's ResNet-50 and encoder).
`map_branch` gives feature maps of several strides: `builtin`, `darknet:FILE` (RefCLIP's detector), or
`transformers:NAME_OR_FOLDER` of an image backbone.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import nn

from ..data.proposals.darknet import HEADS, STRIDES
from ..data.proposals.darknet_weights import read_darknet
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


class TinyMaps(nn.Module):
    """The built-in detector's maps: its stem at stride 4, its last block at stride 8."""

    def __init__(self, folder: str | Path):
        super().__init__()
        self.detector = TinyDetector.from_pretrained(folder)
        config = self.detector.config
        self.size = config.image_size
        self.scales = [(config.width // 2, 2 * config.grid), (config.width, config.grid)]

    def forward(self, frames: torch.Tensor) -> list[torch.Tensor]:
        """uint8 [B, 3, S, S] -> maps, fine to coarse."""
        return self.detector.maps(frames)


class BackboneMaps(nn.Module):
    """The last three stages of an image backbone (ResNet, ConvNeXt, Swin, ...): strides 8, 16 and 32."""

    def __init__(self, name: str, size: int):
        from transformers import MODEL_FOR_BACKBONE_MAPPING, AutoConfig

        super().__init__()
        try:
            config = AutoConfig.from_pretrained(name, out_indices=[-3, -2, -1])
            kind = MODEL_FOR_BACKBONE_MAPPING[type(config)]
            self.model, info = kind.from_pretrained(name, config=config, dtype=torch.float32, output_loading_info=True)
        except (OSError, ValueError, KeyError) as error:
            raise CpgrError(f"the visual branch {name!r} is no image backbone with maps of several strides: {error}") from error
        if info["missing_keys"]:
            missing = sorted(info["missing_keys"])
            raise CpgrError(f"the visual branch {name!r} lacks {len(missing)} of the backbone's weights, such as {missing[0]}")
        self.size = size
        mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
        self.register_buffer("mean", mean[:, None, None] * 255, persistent=False)
        self.register_buffer("std", std[:, None, None] * 255, persistent=False)
        with torch.no_grad():
            self.scales = [(m.shape[1], m.shape[-1]) for m in self.eval()(torch.zeros(1, 3, size, size))]

    def forward(self, frames: torch.Tensor) -> list[torch.Tensor]:
        """uint8 [B, 3, S, S] -> maps, fine to coarse."""
        return list(self.model((frames.to(self.mean.dtype) - self.mean) / self.std).feature_maps)


class DarkNetMaps(nn.Module):
    """RefCLIP's DarkNet-53 by the file of its weights: what its three heads read. The heads are not computed."""

    fill = (127, 127, 127)

    def __init__(self, file: str, size: int):
        super().__init__()
        if size % 32:
            raise CpgrError(f"image_size {size}: DarkNet's frames are a multiple of 32 pixels")
        self.network = read_darknet(file)
        for place in HEADS:
            self.network.module_list[place] = nn.Identity()
        self.size = size
        self.scales = [(c, size // stride) for c, stride in zip(self.network.config.channels, STRIDES, strict=True)][::-1]

    def forward(self, frames: torch.Tensor) -> list[torch.Tensor]:
        """uint8 [B, 3, S, S] -> maps, fine to coarse."""
        return self.network(frames)[0][::-1]


def map_branch(spec: str, size: int) -> nn.Module:
    """The branch named by `spec`, for frames of `size` pixels (0: the branch's own, or 416).

    It has `size`, and `scales`: channels and side of each of its maps, fine to coarse, each side half the last.
    """
    kind, _, name = spec.partition(":")
    if kind == "builtin":
        return TinyMaps(name or BUILTIN / "detector")
    if kind == "transformers" and name:
        return BackboneMaps(name, size or 416)
    if kind == "darknet" and name:
        return DarkNetMaps(name, size or 416)
    raise CpgrError(f"unknown visual branch {spec!r}: give builtin, darknet:FILE or transformers:NAME_OR_FOLDER")
