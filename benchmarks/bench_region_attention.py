"""region_attention: one image's maps in its regions as Filtering has them, many maps, a batch; and the gradient."""

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from cpgr_kernels import reference, region_attention

from .harness import Case, against_reference, agree_closely
from .peers import compiled

# Batch, maps, regions, side of the grid.
SIZES = ((1, 8, 8, 16), (1, 200, 20, 16), (1, 1000, 100, 24), (32, 10, 16, 24))
GOALS = {"reference": 2.0, "torch.compile": 1.0}


def cases(device: str = "cpu") -> Iterator[Case]:
    """By size, then forward and backward."""
    for size in SIZES:
        maps, boxes = _inputs(*size, device)
        grid = (size[3], size[3])
        runs = against_reference(partial(region_attention, maps, boxes, grid))
        runs["torch.compile"] = partial(compiled(reference.region_attention), maps, boxes, grid)
        yield Case("region_attention", _name(*size), runs, agree_closely, **_work(*size), goals=GOALS)
    size = SIZES[1]
    maps, boxes = _inputs(*size, device)
    maps.requires_grad_()
    weights = torch.rand(*maps.shape[:-1], boxes.shape[-2], generator=torch.Generator().manual_seed(1)).to(device)

    def both(backend):
        return torch.autograd.grad(region_attention(maps, boxes, (size[3],) * 2, backend=backend), maps, weights)[0]

    work = {name: 2 * value for name, value in _work(*size).items()}
    yield Case("region_attention", f"{_name(*size)}, with gradient", against_reference(both), agree_closely, **work)


def _name(batch: int, maps: int, regions: int, side: int) -> str:
    return f"{f'{batch} images, ' if batch > 1 else ''}{maps} maps of {side} x {side} in {regions} regions"


def _inputs(batch: int, maps: int, regions: int, side: int, device: str) -> tuple[Tensor, Tensor]:
    """Maps that sum to 1, boxes of a tenth to a half of each side."""
    generator = torch.Generator().manual_seed(0)
    leading = (batch,) if batch > 1 else ()
    weights = torch.rand(*leading, maps, side * side, generator=generator)
    corner = torch.rand(*leading, regions, 2, generator=generator) * 0.5
    opposite = corner + 0.1 + torch.rand(*leading, regions, 2, generator=generator) * 0.4
    maps_ = weights / weights.sum(-1, keepdim=True)
    return maps_.to(device), torch.cat([corner, opposite], -1).to(device)


def _work(batch: int, maps: int, regions: int, side: int) -> dict[str, int]:
    """Maps read and masses written; a fused multiply-add for each cell of a box of 0.3 x 0.3 of the frame."""
    return {
        "floor_bytes": 4 * batch * (maps * side * side + regions * 4 + maps * regions),
        "floor_flops": int(2 * batch * maps * regions * (0.3 * side) ** 2),
    }
