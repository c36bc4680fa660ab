"""Frames and cells against arithmetic done by hand."""

import pytest
import torch

from cpgr.regions import Frame, cell_coverage, clip_box, cxcywh_to_xyxy, xyxy_to_cxcywh


@pytest.mark.parametrize("mode", ["letterbox", "squash"])
@pytest.mark.parametrize("size", [(640, 480), (480, 640), (333, 77), (128, 128), (1, 900)])
def test_frame_there_and_back(mode, size):
    frame = Frame(128, *size, mode)
    box = torch.tensor([[0.1 * size[0], 0.2 * size[1], 0.7 * size[0], 0.9 * size[1]]])
    torch.testing.assert_close(frame.to_image(frame.to_frame(box)), box, atol=1e-3, rtol=1e-4)
    left, top, width, height = frame.content
    whole = frame.to_frame(torch.tensor([0.0, 0.0, *map(float, size)]))
    torch.testing.assert_close(whole, torch.tensor([left, top, left + width, top + height], dtype=torch.float32))


def test_letterbox_by_hand():
    frame = Frame(100, 200, 100)
    assert frame.content == (0, 25, 100, 50)
    torch.testing.assert_close(frame.to_frame(torch.tensor([20.0, 20.0, 40.0, 60.0])), torch.tensor([10.0, 35.0, 20.0, 55.0]))


def test_coverage_by_hand():
    cover = cell_coverage(torch.tensor([[0.0, 0.0, 15.0, 10.0]]), 40, 4)
    expected = torch.zeros(4, 4)
    expected[0, 0], expected[0, 1] = 1.0, 0.5
    torch.testing.assert_close(cover[0].view(4, 4), expected)


def test_clip():
    assert clip_box([-5, -5, 10, 10], 8, 9) == [0.0, 0.0, 8.0, 9.0]
    assert clip_box([9, 9, 12, 12], 8, 9) is None
    assert clip_box([0, 0, float("nan"), 1], 8, 9) is None and clip_box([5, 5, 5, 7], 8, 9) is None


def test_centres():
    box = torch.tensor([1.0, 2.0, 5.0, 10.0])
    torch.testing.assert_close(xyxy_to_cxcywh(box), torch.tensor([3.0, 6.0, 4.0, 8.0]))
    torch.testing.assert_close(cxcywh_to_xyxy(xyxy_to_cxcywh(box)), box)
