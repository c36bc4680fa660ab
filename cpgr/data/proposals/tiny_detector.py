"""The built-in world's detector: a small dense one, in two minutes of training on two cores.

It stands where the published systems have VinVL (proposals with classes and attributes) and DETR (the start of
the grounding network's visual branch): a convolutional stem of stride 8, sine positions, and transformer
blocks whose outputs are the visual levels that CPL's cross-attention reads.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel


class TinyDetectorConfig(PretrainedConfig):
    model_type = "cpgr_tiny_detector"

    def __init__(
        self, image_size=128, stride=8, width=128, layers=2, heads=4,
        categories=(), colours=(), sizes=(), patterns=(), **kwargs,
    ):  # fmt: skip
        self.image_size, self.stride, self.width, self.layers, self.heads = image_size, stride, width, layers, heads
        self.categories, self.colours = list(categories), list(colours)
        self.sizes, self.patterns = list(sizes), list(patterns)
        super().__init__(**kwargs)

    @property
    def grid(self) -> int:
        return self.image_size // self.stride


class _Residual(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width),
        )  # fmt: skip

    def forward(self, x):
        return F.relu(x + self.body(x))


class _Block(nn.Module):
    """A pre-norm transformer block. The softmax is written out: at 256 tokens its backward on a CPU is twice
    as fast as `scaled_dot_product_attention`'s."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.ffn = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x):
        batch, cells, width = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(batch, cells, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).softmax(-1)
        x = x + self.out((weights @ v).transpose(1, 2).reshape(batch, cells, width))
        return x + self.ffn(self.norm2(x))


class TinyDetector(PreTrainedModel):
    """Per-cell score, box, category, colour, size and pattern over a grid of stride 8."""

    config_class = TinyDetectorConfig
    main_input_name = "images"

    def __init__(self, config: TinyDetectorConfig):
        super().__init__(config)
        width = config.width

        def down(i, o, k):
            return nn.Sequential(nn.Conv2d(i, o, k, 2, k // 2, bias=False), nn.BatchNorm2d(o), nn.ReLU())

        self.stem = nn.Sequential(
            down(3, width // 4, 5), _Residual(width // 4), down(width // 4, width // 2, 3), _Residual(width // 2),
            down(width // 2, width, 3), _Residual(width),
        )  # fmt: skip
        self.blocks = nn.ModuleList(_Block(width, config.heads) for _ in range(config.layers))
        self.box_head = box_head(width)
        self.label_head = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 1 + sum(self._counts)))
        self.post_init()

    @property
    def _counts(self) -> list[int]:
        c = self.config
        return [len(c.categories), len(c.colours), len(c.sizes), len(c.patterns)]

    def levels(self, images: torch.Tensor) -> list[torch.Tensor]:
        """uint8 images [B, 3, S, S] -> the blocks' outputs, each [B, grid * grid, width]."""
        return self._blocks_of(self.stem(self._pixels(images)))

    def maps(self, images: torch.Tensor) -> list[torch.Tensor]:
        """uint8 images [B, 3, S, S] -> the stem's map at half the stride, [B, width / 2, 2 * grid, 2 * grid], and the
        last block's output as a map, [B, width, grid, grid]."""
        fine = self.stem[:4](self._pixels(images))
        last = self._blocks_of(self.stem[4:](fine))[-1]
        return [fine, last.transpose(1, 2).unflatten(2, (self.config.grid, self.config.grid))]

    def _pixels(self, images):
        return ((images.to(self.dtype) - 117.0) / 58.0).contiguous(memory_format=torch.channels_last)

    def _blocks_of(self, x):
        x = x.flatten(2).transpose(1, 2)
        x = x + sine_positions(self.config.grid, self.config.width).to(x)
        outputs = []
        for block in self.blocks:
            x = block(x)
            outputs.append(x)
        return outputs

    def heads(self, tokens: torch.Tensor):
        """Cell tokens [..., cells, width] -> score logits, boxes (0..1, corners) and the four label logits."""
        logits = self.label_head(tokens)
        parts = logits.split([1, *self._counts], -1)
        return parts[0].squeeze(-1), read_boxes(self.box_head(tokens), self.config.grid), parts[1:]

    def forward(self, images):
        return self.heads(self.levels(images)[-1])

    @torch.no_grad()
    def predict(self, images: torch.Tensor, top: int = 60) -> list[dict]:
        """The `top` best cells of each image, before non-maximum suppression.

        images uint8 [B, 3, S, S]. Each dict: boxes [top, 4] in frame pixels, scores [top], and for category,
        colour, size and pattern an index tensor and its probability (`category`, `category_score`, ...).
        """
        score, boxes, labels = self(images)
        score, order = score.float().sigmoid().topk(min(top, score.shape[1]), dim=1)
        found = []
        for i in range(len(images)):
            cells = order[i]
            row = {"boxes": boxes[i, cells].float() * self.config.image_size, "scores": score[i]}
            for name, logits in zip(("category", "colour", "size", "pattern"), labels, strict=True):
                row[f"{name}_score"], row[name] = logits[i, cells].float().softmax(-1).max(-1)
            found.append(row)
        return found


def box_head(width: int) -> nn.Sequential:
    """Cell token -> distances from the cell's centre to the four sides, read by `read_boxes`."""
    return nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 4))


def read_boxes(raw: torch.Tensor, grid: int) -> torch.Tensor:
    """Raw distances [..., grid * grid, 4] -> corners in 0..1 of the frame."""
    left, top, right, bottom = (F.softplus(raw.float()) * 0.15).unbind(-1)
    centre = (torch.arange(grid, device=raw.device) + 0.5) / grid
    y, x = (c.flatten() for c in torch.meshgrid(centre, centre, indexing="ij"))
    return torch.stack([x - left, y - top, x + right, y + bottom], -1)


def sine_positions(grid: int, width: int) -> torch.Tensor:
    """Fixed two-dimensional sine positions [grid * grid, width] (Attention Is All You Need; DETR)."""
    quarter = width // 4
    rate = torch.exp(torch.arange(quarter) * (-math.log(100.0) / quarter)) * math.pi
    angle = ((torch.arange(grid) + 0.5) / grid)[:, None] * rate * 2
    axis = torch.cat([angle.sin(), angle.cos()], 1)
    rows, columns = axis[:, None].expand(grid, grid, -1), axis[None].expand(grid, grid, -1)
    return torch.cat([rows, columns], -1).flatten(0, 1)
