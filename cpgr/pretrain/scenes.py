"""The scenes that pretraining sees, and what is shared by its parts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ..data.scenes.render import render
from ..data.scenes.sample import sample_scene

# Every run's scenes come from its own seed; pretraining's come from a stream that no seed reaches.
STREAM = 0x70726574
PIXELS = 128


@dataclass
class Drawn:
    """A rendered scene: image uint8 [3, S, S], its objects, its boxes [n, 4] in 0..1."""

    image: torch.Tensor
    scene: object
    boxes: torch.Tensor


def draw(count: int, first: int = 0) -> list[Drawn]:
    drawn = []
    for i in range(first, first + count):
        rng = np.random.default_rng([STREAM, i])
        scene = sample_scene(rng, PIXELS)
        image, _ = render(scene, rng)
        boxes = torch.tensor([item.box for item in scene.objects], dtype=torch.float32) / PIXELS
        drawn.append(Drawn(torch.from_numpy(image.transpose(2, 0, 1).copy()), scene, boxes))
    return drawn


def centre_cell(box: torch.Tensor, grid: int) -> int:
    """The cell of a grid x grid image that holds the box's centre."""
    x, y = float(box[0] + box[2]) / 2, float(box[1] + box[3]) / 2
    return min(int(y * grid), grid - 1) * grid + min(int(x * grid), grid - 1)


def positive_cells(boxes: torch.Tensor, grid: int):
    """Cells in the central half of each box and the nearest one; (cells, their object), later objects in front."""
    centre = (torch.arange(grid) + 0.5) / grid
    owner = torch.full((grid, grid), -1)
    for i, (x1, y1, x2, y2) in enumerate(boxes.tolist()):
        cx, cy, w, h = (x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1
        inside = ((centre - cy).abs() <= h / 4)[:, None] & ((centre - cx).abs() <= w / 4)[None]
        owner[inside] = i
        owner[min(int(cy * grid), grid - 1), min(int(cx * grid), grid - 1)] = i
    flat = owner.flatten()
    cells = (flat >= 0).nonzero().squeeze(1)
    return cells, flat[cells]


def attribute_indices(items, config) -> torch.Tensor:
    """[n, 4] indices of each object's category, colour, size and pattern in a `TinyDetectorConfig`'s lists."""
    lists = {"category": config.categories, "colour": config.colours, "size": config.sizes, "pattern": config.patterns}
    return torch.tensor([[list(words).index(getattr(item, name)) for name, words in lists.items()] for item in items])


class Indices(torch.utils.data.Dataset):
    """0 .. count - 1: each step draws what it makes of a scene itself."""

    def __init__(self, count: int):
        self.count = count

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        return index


def as_is(batch):
    return batch


def save_half(model, folder: Path) -> None:
    """Weights as fp16, a config that says fp32: half the bytes in the package, full precision where they run."""
    model.half().save_pretrained(folder)
    config = folder / "config.json"
    config.write_text(config.read_text().replace('"dtype": "float16"', '"dtype": "float32"'))


