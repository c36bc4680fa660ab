"""Spatial words on layouts small enough to read off by eye; every box is 10 x 10 in an image of 128 x 128."""

import pytest

from cpgr.data.proposals.words import order_attributes, spatial_word, spatial_words


def around(*centres, half=5):
    return [[x - half, y - half, x + half, y + half] for x, y in centres]


def words_of(centres, categories=None):
    boxes = around(*centres)
    return spatial_words(boxes, categories or ["dog"] * len(boxes), 128, 128)


def test_two_of_a_class_are_named_along_the_wider_spread_first():
    assert words_of([(20, 60), (100, 80)]) == [["left", "top"], ["right", "bottom"]]
    assert words_of([(60, 20), (80, 100)]) == [["top", "left"], ["bottom", "right"]]


def test_a_rank_within_the_margin_is_not_said():
    assert words_of([(60, 20), (63, 100)]) == [["top"], ["bottom"]]
    # 6 / 128 of the width is the least distance that counts.
    assert words_of([(60, 64), (66, 64)]) == [["left"], ["right"]]
    assert words_of([(60, 64), (65.9, 64)]) == [[], []]


def test_three_and_more_have_extremes_a_middle_and_ordinals_from_the_nearer_end():
    row = [(10, 64), (30, 64), (60, 64), (90, 64), (120, 64)]
    assert spatial_word(around(*row), ["dog"] * 5, 128, 128) == ["left", "second left", "middle", "second right", "right"]
    # The second from the right is "second right", not "third" (CPL's index is one too high).
    assert spatial_word(around(*row[:4]), ["dog"] * 4, 128, 128) == ["left", "second left", "second right", "right"]


def test_middle_is_left_unsaid_where_the_other_axis_has_another_median():
    # By x the median is the second, by y it is the third, and both axes spread alike.
    assert words_of([(20, 20), (60, 100), (100, 60)])[1] == ["bottom"]
    # With hardly any spread down the image no one would read it so.
    assert words_of([(20, 60), (60, 70), (100, 64)])[1][0] == "middle"


def test_classes_are_ranked_apart():
    found = words_of([(20, 64), (100, 64), (60, 10)], ["dog", "dog", "car"])
    assert found == [["left"], ["right"], ["top"]]


@pytest.mark.parametrize(
    "centre, words",
    [((20, 64), ["left"]), ((110, 64), ["right"]), ((64, 120), ["bottom"]), ((64, 66), ["middle"]), ((20, 10), ["top", "left"])],
)
def test_a_region_alone_in_its_class_is_placed_in_the_frame(centre, words):
    assert words_of([centre]) == [words]


def test_a_grid_has_corners_where_no_axis_tells_two_apart():
    grid = [(20, 20), (100, 20), (20, 100), (100, 100)]
    assert words_of(grid) == [["top left"], ["top right"], ["bottom left"], ["bottom right"]]


def test_depth_follows_area():
    two = around((64, 64), half=20) + around((64, 64), half=10)
    assert spatial_words(two, ["dog"] * 2, 128, 128) == [["bigger", "front"], ["smaller", "behind"]]
    # Three need a ratio of 1.5; areas within 1.03 share their word.
    three = around((64, 64), half=20) + around((64, 64), half=19.9) + around((64, 64), half=10)
    assert spatial_words(three, ["dog"] * 3, 128, 128) == [["biggest", "front"], ["biggest", "front"], ["smallest", "behind"]]
    alike = around((64, 64), half=20) + around((64, 64), half=19) + around((64, 64), half=18)
    assert spatial_words(alike, ["dog"] * 3, 128, 128) == [[], [], []]


def test_no_regions():
    assert spatial_words([], [], 128, 128) == []


def test_attributes_in_english_order():
    assert order_attributes("large", "striped", "red") == ["large", "striped", "red"]
    assert order_attributes("small", "plain", "") == ["small"]
