"""RealGIN's targets and losses, against numbers worked out by hand."""

import math

import pytest
import torch

from cpgr.grounding.realgin import FeatureSelection, assign, attention_target, read_boxes, realgin_losses

ANCHORS = torch.tensor([[0.25, 0.25], [0.5, 0.25]])
GRID = 4


def test_the_label_goes_to_the_cell_of_its_centre_and_the_anchor_of_its_shape():
    boxes = torch.tensor([[0.30, 0.80, 0.2, 0.3], [0.99, 0.01, 0.6, 0.2], [1.0, 1.0, 0.5, 0.25]])  # centre and size
    cell, anchor = assign(boxes, ANCHORS, GRID)
    assert cell.tolist() == [3 * 4 + 1, 3, 15]
    assert anchor.tolist() == [0, 1, 1]  # IoU of shapes: .05/.0725 against .05/.135; .05/.1325 against .1/.145; 1


def test_boxes_are_read_from_logits():
    raw = torch.zeros(1, GRID * GRID, 2, 5)
    raw[0, 6, 1] = torch.tensor([0.0, math.log(3), math.log(2), 0.0, 0.0])
    read = read_boxes(raw, ANCHORS, GRID)[0, 6, 1]  # row 1, column 2
    torch.testing.assert_close(read, torch.tensor([2.5 / 4, 1.75 / 4, 1.0, 0.25]))


def test_the_attention_is_to_be_the_overlap_of_the_moved_box():
    # two cells wide and one high, its centre in row 1, column 1
    target = attention_target(torch.tensor([[1.4 / 4, 1.2 / 4, 0.5, 0.25]]), torch.tensor([5]), GRID)[0].view(4, 4)
    assert target[1, 1] == 1
    torch.testing.assert_close(target[1, 2], torch.tensor(1 / 3))  # half of it moves away: 1 of 3 cells is shared
    torch.testing.assert_close(target[1, 0], torch.tensor(1 / 2))  # and what lies outside the frame is cut off: 1 of 2
    assert target[2, 1] == 0 and target[1, 3] == 0


def test_the_losses_are_yolos():
    box = torch.tensor([[0.25, 0.5, 0.75, 1.0]])  # corners; centre .5, .75 is the corner of cell (3, 2)
    raw = torch.zeros(1, GRID * GRID, 2, 5)
    raw[..., 4] = -20.0  # no cell is confident
    raw[0, 3 * 4 + 2, 1, 4] = 0.5
    raw[0, 0, 0, 4] = 1.0
    output = {"raw": raw, "reasoning": torch.zeros(1, GRID * GRID)}
    losses = realgin_losses(output, box, ANCHORS, GRID, attention=0.5)
    scale = 2 - 0.25
    # the label's shape is .5 x .5: IoU .25 with the first anchor, .5 with the second
    assert losses["centre"].item() == pytest.approx(2 * scale * math.log(2))  # sigmoid(0) against 0, twice
    ratio = math.log(2)  # height .5 to .25; the width is the anchor's
    assert losses["size"].item() == pytest.approx(0.5 * scale * (ratio - 0.5 / 9), rel=1e-5)
    positive = math.log(1 + math.exp(-0.5))
    assert losses["confidence"].item() == pytest.approx(positive + math.log(1 + math.e), abs=1e-4)
    assert losses["attention"].item() == pytest.approx(0.5 * 16 * math.log(2), rel=1e-5)  # a logit of 0 costs log 2 whatever is wanted
    assert losses["loss"].item() == pytest.approx(sum(losses[k].item() for k in ("centre", "size", "confidence", "attention")), rel=1e-6)


def test_a_negative_that_meets_the_label_is_not_counted():
    box = torch.tensor([[0.25, 0.5, 0.75, 1.0]])
    raw = torch.zeros(1, GRID * GRID, 2, 5)
    raw[..., 4] = -20.0
    raw[0, 3 * 4 + 1, 1] = torch.tensor([0.0, -30.0, 0.0, math.log(2), 3.0])  # centre .375, .75, size .5 x .5: IoU .1875 / .3125

    def confidence(raw):
        return realgin_losses({"raw": raw, "reasoning": torch.zeros(1, 16)}, box, ANCHORS, GRID, 0.0)["confidence"].item()

    assert confidence(raw) == pytest.approx(20.0, abs=1e-3)  # the positive alone
    raw[0, 3 * 4 + 1, 1, 3] = 0.0  # half as high: IoU .09375 / .28125
    assert confidence(raw) == pytest.approx(20.0 + math.log(1 + math.exp(3)), abs=1e-3)


def test_a_perfect_answer_costs_nothing_and_errors_have_gradients():
    box = torch.tensor([[0.26, 0.51, 0.73, 0.99]])
    raw = torch.full((1, GRID * GRID, 2, 5), -30.0).requires_grad_()
    losses = realgin_losses({"raw": raw, "reasoning": torch.zeros(1, 16)}, box, ANCHORS, GRID, 0.5)
    losses["loss"].backward()
    assert torch.isfinite(raw.grad).all() and raw.grad.abs().sum() > 0
    size = torch.tensor([0.47, 0.48])
    cell, anchor = assign(torch.cat([torch.tensor([0.495, 0.75]), size])[None], ANCHORS, GRID)
    best = torch.full((1, GRID * GRID, 2, 5), -30.0)
    place = torch.tensor([0.495 * 4 - cell % 4, 3.0 - cell // 4]).clamp(1e-6, 1 - 1e-6)
    best[0, cell, anchor, :2] = torch.logit(place)
    best[0, cell, anchor, 2:4] = (size / ANCHORS[anchor]).log()
    best[0, cell, anchor, 4] = 30.0
    at_best = realgin_losses({"raw": best, "reasoning": torch.zeros(1, 16)}, box, ANCHORS, GRID, 0.0)
    assert at_best["size"] < 1e-8 and at_best["confidence"] < 1e-6


def test_features_are_chosen_by_the_text():
    torch.manual_seed(0)
    layer = FeatureSelection([(4, 8), (6, 4), (5, 2)], text=3, width=5).eval()
    maps = [torch.randn(2, 4, 8, 8), torch.randn(2, 6, 4, 4), torch.randn(2, 5, 2, 2)]
    with torch.no_grad():
        layer.choose.weight.zero_()
        layer.choose.bias.copy_(torch.tensor([0.0, 0.0, 50.0]))
    assert layer(maps, torch.zeros(2, 3)).shape == (2, 5, 2, 2)
    torch.testing.assert_close(layer(maps, torch.zeros(2, 3)), maps[2])  # as wide as it should be: taken as it is
