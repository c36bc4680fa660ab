"""`propose`: from any detector's answers to the rows of a label table."""

import logging

import numpy as np
import pytest
from PIL import Image as pil

from cpgr.data.proposals import Detections, ProposalConfig, build_detector, propose, summary
from cpgr.data.records import Image, Split
from cpgr.errors import CpgrError, DataError


class Given:
    """A detector that answers by image id."""

    def __init__(self, answers):
        self.answers, self.batches = answers, []

    def detect(self, images):
        self.batches.append(len(images))
        return [self.answers.get(image.image_id, Detections(np.zeros((0, 4)), [], [])) for image in images]


def split_of(*ids, folder=None, colour=(200, 30, 30)):
    images = {}
    for image_id in ids:
        path = (folder or "") and folder / f"{image_id}.jpg"
        if folder:
            pil.new("RGB", (100, 80), colour).save(path, quality=95)
        images[image_id] = Image(image_id, f"{image_id}.jpg", path, 100, 80)
    return Split("train", images)


CONFIG = ProposalConfig(min_score=0.3, attributes="detector")


def test_rows_come_by_falling_score_clipped_and_with_words():
    boxes = [[60, 10, 130, 40], [5, 5, 25, 30], [-10, -5, 30, 90]]
    found = Detections(boxes, [0.5, 0.9, 0.7], ["dog", "dog", "tree"], [["brown"], [], ["tall", "green"]])
    rows = propose(Given({"a": found}), split_of("a"), CONFIG).rows
    assert [(row.region_id, row.category, row.box) for row in rows] == [
        (0, "dog", [5, 5, 25, 30]),
        (1, "tree", [0, 0, 30, 80]),
        (2, "dog", [60, 10, 100, 40]),
    ]
    assert [row.words for row in rows] == ["left dog", "left tall green tree", "right brown dog"]
    first = rows[0]
    assert (first.kind, first.image_id, first.file_name, first.width, first.height) == ("proposal", "a", "a.jpg", 100, 80)
    assert first.scores == {"detector": 0.9} and first.kept and first.expression == ""


def test_suppression_within_a_class_and_across_classes():
    box, near, shifted = [10, 10, 50, 50], [10, 10, 50, 49], [22, 10, 62, 50]  # IoU 0.98 and 0.54
    found = Detections([box, near, shifted, shifted], [0.9, 0.8, 0.7, 0.6], ["car", "truck", "car", "dog"])
    kept = [row.category for row in propose(Given({"a": found}), split_of("a"), CONFIG)]
    assert kept == ["car", "dog"]
    lax = ProposalConfig(min_score=0.3, attributes="none", nms_iou=0.6, across_iou=1)
    assert [row.category for row in propose(Given({"a": found}), split_of("a"), lax)] == ["car", "truck", "car", "dog"]


def test_no_image_is_lost():
    low = Detections([[1, 1, 20, 20]], [0.1], ["dog"])
    odd = Detections([[1, 1, 1.5, 20], [np.nan, 1, 20, 20], [200, 10, 300, 50]], [0.9, 0.9, 0.9], ["dog"] * 3)
    good = Detections([[1, 1, 20, 20]], [0.8], ["dog"])
    table = propose(Given({"low": low, "odd": odd, "good": good}), split_of("none", "low", "odd", "good"), CONFIG)
    assert [row.image_id for row in table] == ["none", "low", "odd", "good"]
    for row in table.rows[:3]:
        assert (row.box, row.category, row.region_id, row.scores) == ([0, 0, 100, 80], "", 0, {"detector": 0.0})
    assert summary(table) == {"images": 4, "regions": 4, "regions_an_image": 1.0, "images_without_detection": 3}


def test_a_detector_that_finds_next_to_nothing_is_pointed_out(caplog):
    with caplog.at_level(logging.WARNING, "cpgr"):
        propose(Given({}), split_of("a", "b"), CONFIG)
    assert "nothing was found in 2 of 2 images" in caplog.text


def test_batches_progress_and_the_cap():
    boxes = [[i * 9, 0, i * 9 + 8, 8] for i in range(10)]
    found = Detections(boxes, np.linspace(0.4, 0.9, 10), ["dog"] * 10)
    seen = []
    detector = Given({"a": found})
    config = ProposalConfig(min_score=0.3, max_regions=4, batch_size=2, attributes="none")
    track = lambda batches, what: seen.append((len(batches), what)) or batches  # noqa: E731
    table = propose(detector, split_of("a", "b", "c"), config, progress=track)
    assert detector.batches == [2, 1] and seen == [(2, "proposals")]
    scores = [row.scores["detector"] for row in table if row.image_id == "a"]
    assert len(scores) == 4 and scores == sorted(scores, reverse=True) and scores[0] == pytest.approx(0.9)


@pytest.mark.parametrize(
    "attributes, expected",
    [("auto", [["old"], ["red"]]), ("pixels", [["red"], ["red"]]), ("detector", [["old"], []]), ("none", [[], []])],
)
def test_where_attributes_come_from(tmp_path, attributes, expected):
    found = Detections([[5, 5, 40, 40], [50, 5, 95, 60]], [0.9, 0.8], ["car", "car"], [["old"], []])
    config = ProposalConfig(min_score=0.3, attributes=attributes)
    assert [row.attributes for row in propose(Given({"a": found}), split_of("a", folder=tmp_path), config)] == expected


def test_a_missing_image_is_named(tmp_path):
    split = split_of("a")
    split.images["a"] = Image("a", "a.jpg", tmp_path / "a.jpg", 100, 80)
    with pytest.raises(DataError, match="image a"):
        propose(Given({"a": Detections([[5, 5, 40, 40]], [0.9], ["car"])}), split, ProposalConfig())


@pytest.mark.parametrize("spec", ["yolo:x.pt", "onnx", "onnx:", "", "file"])
def test_an_unknown_spec_says_what_there_is(spec):
    with pytest.raises(CpgrError, match="transformers:NAME_OR_FOLDER"):
        build_detector(spec, CONFIG)


def test_a_bad_config_is_refused():
    with pytest.raises(CpgrError, match="none of auto"):
        ProposalConfig(attributes="colour")
    with pytest.raises(CpgrError, match="1 or more"):
        ProposalConfig(max_regions=0)


def test_detections_of_unequal_length_are_refused():
    with pytest.raises(ValueError, match="differ in length"):
        Detections([[0, 0, 1, 1]], [0.5, 0.6], ["dog"])
