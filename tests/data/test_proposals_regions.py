"""Regions made from detections: parts of persons, groups, scenery."""

import numpy as np
import pytest

from cpgr.data.proposals import Detections, ProposalConfig
from cpgr.data.proposals.names import groups
from cpgr.data.proposals.regions import extra_regions, plural
from cpgr.errors import CpgrError


def made(found, *kinds, width=200, height=100):
    extra = extra_regions(found, list(kinds), width, height)
    return [(name, [round(float(v), 2) for v in box], float(score)) for name, box, score in zip(extra.categories, extra.boxes, extra.scores)]


def test_parts_of_a_standing_and_of_a_sitting_person():
    found = Detections([[10, 0, 50, 100], [100, 40, 160, 100], [0, 0, 9, 9]], [0.9, 0.8, 0.1], ["person", "person", "person"])
    parts = made(found, "parts")
    assert [name for name, _, _ in parts] == ["head", "shirt", "trousers", "shoes", "head", "shirt"], "the unsure one has none"
    assert parts[0] == ("head", [18, 0, 42, 20], 0.9) and parts[3][1] == [10, 85, 50, 100]
    assert parts[5] == ("shirt", [100, 61, 160, 100], 0.8)
    assert made(Detections([[0, 0, 40, 90]], [0.9], ["dog"]), "parts") == []


def test_groups_are_the_whole_and_each_cluster():
    boxes = [[0, 0, 20, 40], [22, 0, 42, 40], [150, 0, 170, 40], [0, 60, 10, 70]]
    found = Detections(boxes, [0.9, 0.7, 0.5, 0.9], ["person", "person", "person", "dog"])
    assert made(found, "groups") == [("people", [0, 0, 170, 40], pytest.approx(0.7)), ("people", [0, 0, 42, 40], pytest.approx(0.8))]
    near = Detections(boxes[:2], [0.9, 0.7], ["dog", "dog"])
    assert made(near, "groups") == [("dogs", [0, 0, 42, 40], pytest.approx(0.8))], "one cluster is the whole, said once"


def test_scenery_lies_in_the_frame_even_where_nothing_is_found():
    nothing = Detections(np.zeros((0, 4)), [], [])
    assert [(name, box) for name, box, _ in made(nothing, "parts", "groups", "scenery")] == [
        ("ground", [0, 33.33, 200, 100]), ("background", [0, 0, 200, 66.67]), ("scene", [0, 0, 200, 100]),
    ]  # fmt: skip
    assert len(extra_regions(nothing, ["groups"], 200, 100)) == 0


@pytest.mark.parametrize(("one", "many"), [("person", "people"), ("dog", "dogs"), ("bus", "buses"), ("wine glass", "wine glasses")])
def test_a_group_has_a_word_of_its_own(one, many):
    assert plural(one) == many and groups([one, many])[many] == one


def test_an_unknown_kind_is_refused():
    with pytest.raises(CpgrError, match="detection.extra: halo is none of parts, groups, scenery"):
        ProposalConfig(extra=["parts", "halo"])
    with pytest.raises(CpgrError, match="detection.colours"):
        ProposalConfig(colours=0)
