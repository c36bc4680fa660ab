"""Filtering on maps whose answer is known by hand."""

from dataclasses import replace

import torch

from cpgr.labels import Label
from cpgr.refinement.filtering import FilterConfig, filter_labels, region_mass


def region(index, box, text="", size=128):
    return Label("1", "1.jpg", size, size, box=box, region_id=index, expression=text, kind="template")


REGIONS = [region(0, [0, 0, 32, 32]), region(1, [64, 64, 128, 128]), region(2, [66, 66, 128, 128])]


def one_cell(x, y, grid=16):
    maps = torch.zeros(1, grid * grid)
    maps[0, y * grid + x] = 1
    return maps


def test_mass_is_divided_by_area():
    maps = torch.full((1, 256), 1 / 256)
    plain = region_mass(maps, REGIONS[:2], 16, 128, "letterbox", FilterConfig(gamma=0))
    torch.testing.assert_close(plain, torch.tensor([[16 / 80, 64 / 80]]))
    density = region_mass(maps, REGIONS[:2], 16, 128, "letterbox", FilterConfig(gamma=1))
    torch.testing.assert_close(density, torch.tensor([[0.5, 0.5]]))


def test_a_cell_cut_by_a_box_counts_by_its_share():
    half = [region(0, [0, 0, 4, 8]), region(1, [8, 0, 16, 8])]
    mass = region_mass(one_cell(0, 0) + one_cell(1, 0), half, 16, 128, "letterbox", FilterConfig(gamma=0))
    torch.testing.assert_close(mass, torch.tensor([[1 / 3, 2 / 3]]))


def test_letterbox_of_a_wide_photograph():
    wide = Label("1", "1.jpg", 200, 100, box=[0, 0, 100, 100], region_id=0)
    right = Label("1", "1.jpg", 200, 100, box=[100, 0, 200, 100], region_id=1)
    # the picture fills rows 4 to 11 of the frame; a cell in its right half belongs to the right box
    mass = region_mass(one_cell(12, 6), [wide, right], 16, 128, "letterbox", FilterConfig(gamma=0))
    torch.testing.assert_close(mass, torch.tensor([[0.0, 1.0]]))
    outside = region_mass(one_cell(12, 1), [wide, right], 16, 128, "letterbox", FilterConfig(gamma=0))
    assert outside.sum() == 0


def test_keep_drop_and_reason():
    labels = [region(0, REGIONS[0].box, "a"), region(1, REGIONS[1].box, "b")]
    mass = torch.tensor([[0.2, 0.8, 0.0], [0.1, 0.4, 0.5]])
    kept = filter_labels(labels, REGIONS, mass, torch.tensor([0.2, 0.9]), FilterConfig(floor="none"))
    assert not kept[0].kept and kept[0].reason.startswith("filtering") and kept[0].scores["attention_margin"] < 0
    # region 2 overlaps region 1 and counts as the same
    assert kept[1].kept and abs(kept[1].scores["attention_margin"] - 0.4) < 1e-6


def test_inside_and_margin_thresholds():
    labels = [region(0, REGIONS[0].box, "a")]
    mass = torch.tensor([[0.55, 0.45, 0.0]])
    for config, reason in (
        (FilterConfig(margin=0.2, floor="none"), "filtering: attention lies on another region"),
        (FilterConfig(inside=0.5, floor="none"), "filtering: too little attention on the region"),
    ):
        assert filter_labels(labels, REGIONS, mass, torch.tensor([0.3]), config)[0].reason == reason


def test_floor_keeps_the_best_margin():
    labels = [region(0, REGIONS[0].box, "a"), region(0, REGIONS[0].box, "b"), region(1, REGIONS[1].box, "c")]
    mass = torch.tensor([[0.2, 0.8, 0.0], [0.4, 0.6, 0.0], [0.9, 0.1, 0.0]])
    inside = torch.tensor([0.2, 0.4, 0.1])
    assert [r.kept for r in filter_labels(labels, REGIONS, mass, inside, FilterConfig(floor="image"))] == [False, True, False]
    assert [r.kept for r in filter_labels(labels, REGIONS, mass, inside, FilterConfig(floor="region"))] == [False, True, True]
    assert not any(r.kept for r in filter_labels(labels, REGIONS, mass, inside, FilterConfig(floor="none")))


def test_rivals_of_the_own_class_alone():
    regions = [region(0, [0, 0, 32, 32]), region(1, [64, 64, 128, 128]), region(2, [0, 64, 32, 96])]
    regions = [replace(r, category=c) for r, c in zip(regions, ("cup", "star", "cup"), strict=True)]
    labels = [replace(regions[0], expression="left cup")]
    mass = torch.tensor([[0.3, 0.6, 0.1]])
    for rivals, margin, kept in (("all", -0.3, False), ("category", 0.2, True)):
        found = filter_labels(labels, regions, mass, torch.tensor([0.3]), FilterConfig(rivals=rivals, floor="none"))
        assert found[0].kept == kept and abs(found[0].scores["attention_margin"] - margin) < 1e-6
