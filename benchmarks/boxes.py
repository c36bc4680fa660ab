"""Boxes to measure with: spread over an image, or crowded round objects as a detector gives them."""

import torch
from torch import Tensor


def spread_boxes(count: int, seed: int) -> Tensor:
    """Boxes of 5 to 105 pixels anywhere in 1000 x 1000."""
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator) * 1000
    return torch.cat([corner, corner + 5 + torch.rand(count, 2, generator=generator) * 100], dim=1)


def crowded_boxes(count: int, seed: int) -> Tensor:
    """About a hundred boxes round each object."""
    generator = torch.Generator().manual_seed(seed)
    objects = torch.rand(count // 100 + 1, 2, generator=generator) * 1000
    chosen = torch.randint(0, len(objects), (count,), generator=generator)
    corner = objects[chosen] + torch.randn(count, 2, generator=generator) * 8
    return torch.cat([corner, corner + 60 + torch.rand(count, 2, generator=generator) * 20], dim=1)
