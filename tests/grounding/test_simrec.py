"""SimREC's assignment of cells and its losses, against numbers worked out by hand and a loop written plainly."""

import math

import pytest
import torch
from cpgr_kernels import box_iou

from cpgr.grounding.simrec import assign, read_boxes, simrec_losses

GRID = 8


def test_boxes_are_read_from_cells():
    raw = torch.zeros(1, GRID * GRID, 4)
    raw[0, 8 + 2] = torch.tensor([0.5, 1.0, math.log(2), 0.0])  # row 1, column 2: centre 2.5, 2, size 2 x 1
    torch.testing.assert_close(read_boxes(raw, GRID)[0, 10] * GRID, torch.tensor([1.5, 1.5, 3.5, 2.5]))
    raw[0, 0, 2] = 1e4
    assert torch.isfinite(read_boxes(raw, GRID)).all()


def plain(cell_boxes, target):
    """SimOTA for one label, cell by cell."""
    iou = box_iou(cell_boxes, target[None])[:, 0].tolist()
    x1, y1, x2, y2 = target.tolist()
    costs, overlaps = {}, []
    for cell in range(GRID * GRID):
        x, y = (cell % GRID + 0.5) / GRID, (cell // GRID + 0.5) / GRID
        inside = x1 < x < x2 and y1 < y < y2
        near = abs(x - (x1 + x2) / 2) < 2.5 / GRID and abs(y - (y1 + y2) / 2) < 2.5 / GRID
        if inside or near:
            costs[cell] = -3 * math.log(iou[cell] + 1e-8) + (0 if inside and near else 1e5)
            overlaps.append(iou[cell])
    count = max(1, int(sum(sorted(overlaps)[-10:])))
    return set(sorted(costs, key=costs.get)[:count])


def test_assignment_is_the_plain_loop():
    torch.manual_seed(0)
    for _ in range(20):
        corner = torch.rand(3, 2) * 0.6
        targets = torch.cat([corner, corner + 0.1 + torch.rand(3, 2) * 0.3], 1)
        cell_boxes = read_boxes(torch.randn(3, GRID * GRID, 4), GRID)
        found = assign(cell_boxes, targets, GRID)
        for row, boxes, target in zip(found, cell_boxes, targets, strict=True):
            assert set(row.nonzero().flatten().tolist()) == plain(boxes, target)


def test_one_cell_answers_at_least():
    far = torch.zeros(1, GRID * GRID, 4)  # boxes without area overlap nothing
    assert assign(far, torch.tensor([[0.4, 0.4, 0.41, 0.41]]), GRID).sum() == 1


def test_the_losses():
    """Two images: one cell answers in the first with IoU 1, one in the second with IoU 1/2 (boxes elsewhere overlap nothing)."""
    targets = torch.tensor([[1.0, 1.0, 3.0, 3.0], [4.0, 4.0, 6.0, 6.0]]) / GRID
    boxes = torch.zeros(2, GRID * GRID, 4)
    boxes[0, GRID + 1] = targets[0]
    boxes[1, 4 * GRID + 4] = torch.tensor([4.0, 4.0, 6.0, 5.0]) / GRID
    objectness = torch.zeros(2, GRID * GRID)
    losses = simrec_losses({"cell_boxes": boxes, "confidence": objectness}, targets, GRID, box_weight=5.0)
    assert losses["box"].item() == pytest.approx(5 * (0 + (1 - 0.25)) / 2, rel=1e-5)
    assert losses["objectness"].item() == pytest.approx(2 * 64 * math.log(2) / 2, rel=1e-5)
    assert losses["loss"].item() == pytest.approx(losses["box"].item() + losses["objectness"].item())


def test_gradients_are_finite_where_nothing_overlaps():
    raw = torch.full((2, GRID * GRID, 4), -9.0, requires_grad=True)
    objectness = torch.zeros(2, GRID * GRID, requires_grad=True)
    targets = torch.tensor([[0.1, 0.1, 0.9, 0.9], [0.5, 0.5, 0.50001, 0.50001]])
    simrec_losses({"cell_boxes": read_boxes(raw, GRID), "confidence": objectness}, targets, GRID, 5.0)["loss"].backward()
    assert torch.isfinite(raw.grad).all() and torch.isfinite(objectness.grad).all()
