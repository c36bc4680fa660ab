"""RefCLIP's detector: its size, its convolution with moved taps, its boxes, and heads that are not computed."""

import pytest
import torch
import torch.nn.functional as F

from cpgr.data.proposals.darknet import DarkNet, DarkNetConfig, GuidedHead, deformable_conv

SMALL = DarkNetConfig(width=4, blocks=(1, 1, 1, 1, 1), classes=3)


def test_published_size():
    """75,554,428 parameters and 462 tensors with all heads, as the published detector has."""
    with torch.device("meta"):
        network = DarkNet(DarkNetConfig(heads=(32, 16, 8)))
        lean = DarkNet()
    assert sum(p.numel() for p in network.parameters()) == 75_554_428 and len(network.state_dict()) == 462
    dropped = set(network.state_dict()) - set(lean.state_dict())
    assert {name.split(".")[1] for name in dropped} == {"28", "37"} and len(dropped) == 16


def test_only_the_heads_that_are_read_are_computed():
    """The heads of stride 16 and 8 cost 7 % of the detector's products: none of them is there by default."""
    frames = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
    calls = []
    for heads in ((32,), (32, 16, 8)):
        network = DarkNet(DarkNetConfig(4, (1, 1, 1, 1, 1), 3, heads)).eval()
        for module in network.modules():
            if isinstance(module, GuidedHead):
                module.register_forward_hook(lambda m, *_: calls.append(m.stride))
        with torch.no_grad():
            maps, boxes = network(frames)
        assert [m.shape[1:] for m in maps] == [(128, 2, 2), (64, 4, 4), (32, 8, 8)] and len(boxes) == len(heads)
    assert calls == [32, 32, 16, 8]


def test_boxes_are_those_of_the_formulas():
    torch.manual_seed(0)
    head = GuidedHead(8, 3, 32).eval()
    x = torch.randn(1, 8, 2, 3)
    with torch.no_grad():
        found, guide = head(x), head.guide_wh(x)
        raw = head.conv(head.Feature_adaption(x, guide))
    y, column, box = 1, 2, 3  # the last cell, its box without a prior of its own: 128 x 128
    g, t = guide.view(4, 2, 2, 3)[box, :, y, column], raw.view(4, 8, 2, 3)[box, :, y, column]
    centre = (t[:2].sigmoid() + torch.tensor([column, y])) * 32
    size = t[2:4].exp() * g.exp() * 128
    torch.testing.assert_close(found.boxes[0, y * 3 + column, box], torch.cat([centre - size / 2, centre + size / 2]))
    torch.testing.assert_close(found.objectness[0, y * 3 + column, box], t[4].sigmoid())
    torch.testing.assert_close(found.classes[0, y * 3 + column, box], t[5:].sigmoid())


def by_hand(x, offset, weight, bias):
    """The convolution tap by tap: groups of channels, of each nine taps, of each dy then dx; zero outside (-1, H)."""
    batch, channels, height, width = x.shape
    groups = offset.shape[1] // 18
    out = bias[None, :, None, None].expand(batch, -1, height, width).clone()
    for b in range(batch):
        for y in range(height):
            for column in range(width):
                for c in range(channels):
                    group = c // (channels // groups)
                    for tap in range(9):
                        dy, dx = offset[b, group * 18 + 2 * tap : group * 18 + 2 * tap + 2, y, column]
                        py, px = y + tap // 3 - 1 + dy, column + tap % 3 - 1 + dx
                        low_y, low_x = int(torch.floor(py)), int(torch.floor(px))
                        value = 0.0
                        for cy in (low_y, low_y + 1):
                            for cx in (low_x, low_x + 1):
                                if 0 <= cy < height and 0 <= cx < width:
                                    value = value + x[b, c, cy, cx] * (1 - (py - cy).abs()) * (1 - (px - cx).abs())
                        out[b, :, y, column] += weight[:, c, tap // 3, tap % 3] * value
    return out


def test_deformable_convolution_by_hand():
    torch.manual_seed(1)
    x, offset = torch.randn(1, 4, 3, 4, dtype=torch.float64), 2 * torch.randn(1, 2 * 18, 3, 4, dtype=torch.float64)
    weight, bias = torch.randn(5, 4, 3, 3, dtype=torch.float64), torch.randn(5, dtype=torch.float64)
    torch.testing.assert_close(deformable_conv(x, offset, weight, bias), by_hand(x, offset, weight, bias))


@pytest.mark.parametrize("side", [1, 5])
def test_without_offsets_it_is_a_plain_convolution(side):
    x, weight, bias = torch.randn(2, 8, side, side), torch.randn(6, 8, 3, 3), torch.randn(6)
    found = deformable_conv(x, torch.zeros(2, 4 * 18, side, side), weight, bias)
    torch.testing.assert_close(found, F.conv2d(x, weight, bias, padding=1), rtol=1e-4, atol=1e-4)
