"""Pairing beside simpler choices: rates by hand, and the interval over images."""

import pytest

from cpgr.data.records import Truth
from cpgr.labels import Label, LabelTable
from cpgr.metrics import pairing_baselines

BOXES = {"small dog": [0, 0, 20, 20], "sure dog": [50, 0, 80, 30], "big man": [0, 40, 100, 100]}
FOUND = [("dog", BOXES["small dog"], 0.5), ("dog", BOXES["sure dog"], 0.9), ("person", BOXES["big man"], 0.7)]


def tables(right_in):
    """Four images of three regions; each has one expression, "a puppy", for the small dog, paired rightly in some."""
    proposals, refined, truth = [], [], Truth()
    for image in range(4):
        regions = [
            Label(str(image), "x.jpg", 100, 100, list(box), kind="proposal", region_id=i, category=category, scores={"detector": score})
            for i, (category, box, score) in enumerate(FOUND)
        ]
        proposals += regions
        chosen = 0 if image in right_in else 2
        for i, row in enumerate(regions):
            said = Label(row.image_id, row.file_name, 100, 100, row.box, expression="a puppy", expression_id=f"e{image}", region_id=i)
            refined.append(said if i == chosen else said.drop(f"pairing: region {chosen} fits better"))
        truth.boxes[f"e{image}"] = [0, 0, 20, 19]
    return LabelTable(proposals), LabelTable(refined), truth


def test_rates_and_differences():
    found = pairing_baselines(*tables({0, 1, 2}))
    assert (found["count"], found["images"], found["pairing"], found["ceiling"]) == (4, 4, 0.75, 1.0)
    rates = {name: found[name]["hit_rate"] for name in ("largest", "best_scored", "named_class", "random")}
    assert rates == {"largest": 0.0, "best_scored": 0.0, "named_class": 0.5, "random": pytest.approx(1 / 3)}
    one = found["named_class"]
    assert one["difference"] == pytest.approx(0.25) and one["low"] < 0 < one["difference"] < one["high"] == 0.5
    assert pairing_baselines(*tables({0, 1, 2})) == found, "the draws are the same every time"


def test_the_interval_is_over_images():
    """A hundred expressions of one image are one draw: the interval is as wide as with one expression an image."""
    proposals, refined, truth = tables({0, 1, 2})
    many = [row for row in refined for _ in range(1)]
    for copy in range(1, 25):
        for row in refined:
            many.append(Label(**{**vars(row), "expression_id": f"{row.expression_id} {copy}"}))
            truth.boxes[f"{row.expression_id} {copy}"] = [0, 0, 20, 19]
    few = pairing_baselines(*tables({0, 1, 2}))["largest"]
    assert pairing_baselines(proposals, LabelTable(many), truth)["largest"] == pytest.approx(few)


def test_dropped_pairs_count_and_what_has_no_box_does_not():
    proposals, refined, truth = tables({0, 1, 2, 3})
    doubted = LabelTable(row.drop("pairing: no region fits well enough") if row.kept else row for row in refined)
    assert pairing_baselines(proposals, doubted, truth)["pairing"] == 1.0
    assert pairing_baselines(proposals, refined, Truth()) == {"count": 0, "images": 0}
