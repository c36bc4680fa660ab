"""Masks to measure with: blobs, mostly small or of every size, and ragged ones that leave no part of the image out."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def blobs(count: int, height: int, width: int, seed: int, small: bool = False) -> Tensor:
    """Wavy ellipses anywhere, of radius 10 to half the image's height: uniform, or as the logarithm if `small`.

    Small ones are like the instances of a photograph: most pairs do not touch, and run lengths are at their best.
    """
    generator = torch.Generator().manual_seed(seed)
    y, x = torch.arange(height)[:, None], torch.arange(width)
    masks = torch.empty(count, height, width, dtype=torch.bool)
    for mask in masks:
        down, across, size, flat, *waves = torch.rand(10, generator=generator).tolist()
        radius = 10 * (height / 20) ** size if small else 10 + (height / 2 - 10) * size
        dy, dx = (y - down * height) / (0.5 + flat / 2), x - across * width
        angle = torch.atan2(dy, dx)
        edge = sum(0.08 * wave * torch.cos(k * (angle + 2 * math.pi * wave)) for k, wave in enumerate(waves, 2))
        mask.copy_(torch.hypot(dx, dy) < radius * (1 + edge))
    return masks


def ragged(count: int, height: int, width: int, seed: int) -> Tensor:
    """Smooth noise above its middle: half of the pixels, in every part of the image."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.rand(count, 1, height // 16, width // 16, generator=generator)
    parts = [F.interpolate(part, size=(height, width), mode="bilinear")[:, 0] > 0.5 for part in noise.split(32)]
    return torch.cat(parts)
