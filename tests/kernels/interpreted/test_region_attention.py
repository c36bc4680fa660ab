"""region_attention in Triton: the reference's values and gradients."""

import pytest
import torch

from cpgr_kernels import region_attention


def problem(leading, queries, count, grid, size, seed=0):
    generator = torch.Generator().manual_seed(seed)
    maps = torch.rand(*leading, queries, grid[0] * grid[1], generator=generator).softmax(-1)
    corners = torch.rand(*leading, count, 2, 2, generator=generator) * 1.4 - 0.2  # parts lie outside the frame
    boxes = torch.cat([corners.amin(-2), corners.amax(-2)], -1) * torch.tensor([*size, *size])
    return maps, boxes


@pytest.mark.parametrize(
    ("leading", "queries", "count", "grid"),
    [((), 1, 1, (1, 1)), ((2,), 33, 40, (7, 13)), ((2, 3), 5, 3, (16, 16)), ((1,), 3, 70, (3, 5))],
)
@pytest.mark.parametrize(("gamma", "size"), [(0.0, (1.0, 1.0)), (0.5, (640.0, 480.0)), (1.0, (2.0, 3.0))])
def test_values_and_gradient(leading, queries, count, grid, gamma, size):
    maps, boxes = problem(leading, queries, count, grid, size)
    found = []
    for backend, dtype in (("triton", torch.float32), ("reference", torch.float32), ("reference", torch.float64)):
        given = maps.to(dtype).requires_grad_()
        out = region_attention(given, boxes.to(dtype), grid, gamma, size, backend=backend)
        weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
        found.append((out.detach(), *torch.autograd.grad(out, given, weights)))
    for ours, plain, exact in zip(*found, strict=True):
        error, plain_error = ((each - exact).abs().max() for each in (ours, plain))
        assert error <= 2 * plain_error + 2**-20 * exact.abs().max()


def test_shared_boxes_and_shared_maps():
    maps, boxes = problem((3,), 4, 5, (6, 6), (1.0, 1.0))
    for each in ((maps, boxes[0]), (maps[0], boxes)):
        ours, theirs = (region_attention(*each, (6, 6), backend=backend) for backend in ("triton", "reference"))
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_boxes_inside_out_nan_and_none():
    maps, boxes = problem((), 4, 6, (6, 6), (1.0, 1.0))
    boxes[0] = boxes[0].flip(0)
    boxes[1, 2] = torch.nan
    boxes[2] = torch.tensor([0.3, 0.3, 0.3, 0.3])
    ours, theirs = (region_attention(maps, boxes, (6, 6), backend=backend) for backend in ("triton", "reference"))
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6, equal_nan=True)
    assert ours[:, 1].isnan().all() and not ours[:, 0].any() and not ours[:, 2].any()
    for none in (
        region_attention(maps, boxes[:0], (6, 6), backend="triton"),
        region_attention(maps[:0], boxes, (6, 6)),
    ):
        assert none.numel() == 0
    wide = [each.double() for each in (maps, boxes)]
    ours, theirs = (region_attention(*wide, (6, 6), backend=backend) for backend in ("triton", "reference"))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0, equal_nan=True)
