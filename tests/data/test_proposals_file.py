"""Detections from files: COCO results and CPL's dump."""

import json
import pickle

import numpy as np
import pytest
import torch

from cpgr.data.proposals import ProposalConfig, build_detector, propose
from cpgr.data.records import Image, Split
from cpgr.errors import DataError

NAME = "COCO_train2014_000000000154.jpg"
IMAGE = Image("154", NAME, None, 100, 80)
CONFIG = ProposalConfig(attributes="detector")
RESULTS = [
    {"image_id": 154, "category_id": 18, "bbox": [10, 20, 30, 40], "score": 0.9},
    {"image_id": 154, "category_id": 3, "bbox": [50, 5, 40, 30], "score": 0.6, "attributes": ["old", "red"]},
    {"image_id": 155, "category_id": 3, "bbox": [50, 5, 40, 30], "score": 0.6},
]
CPL = {"COCO_train2014_000000000154": [[["black", "small", "dog"], 0.9, [10, 20, 40, 60]], [["car"], 0.6, [50, 5, 90, 35]]]}


def rows_of(path, image=IMAGE):
    return propose(build_detector(f"file:{path}", CONFIG), Split("train", {image.image_id: image}), CONFIG).rows


def write(path, content):
    path.write_text(json.dumps(content))
    return path


def test_coco_results_with_categories_beside(tmp_path):
    write(tmp_path / "instances_val.json", {"categories": [{"id": 18, "name": "dog"}, {"id": 3, "name": "car"}]})
    rows = rows_of(write(tmp_path / "results.json", RESULTS))
    assert [(row.box, row.words, row.scores["detector"]) for row in rows] == [
        ([10, 20, 40, 60], "left dog", 0.9),
        ([50, 5, 90, 35], "top old red car", 0.6),
    ]


def test_coco_results_without_categories_use_ids(tmp_path):
    assert [row.category for row in rows_of(write(tmp_path / "results.json", RESULTS))] == ["18", "3"]


def test_coco_annotations_with_tables_of_their_own_match_by_file_name(tmp_path):
    content = {
        "images": [{"id": 7, "file_name": NAME}],
        "categories": [{"id": 1, "name": "zebra"}],
        "annotations": [{"image_id": 7, "category_id": 1, "bbox": [10, 20, 30, 40]}],
    }
    row = rows_of(write(tmp_path / "own.json", content))[0]
    assert (row.category, row.scores) == ("zebra", {"detector": 1.0})


@pytest.mark.parametrize(
    "image_id, file_name", [("154", "x.jpg"), ("ref-1", NAME), ("ref-1", "000000000154.jpg"), ("ref-1", "train/000154.jpg")]
)
def test_an_image_is_matched_by_id_or_by_the_number_of_its_name(tmp_path, image_id, file_name):
    rows = rows_of(write(tmp_path / "results.json", RESULTS), Image(image_id, file_name, None, 100, 80))
    assert len(rows) == 2 and rows[0].category == "18"


def test_an_image_the_file_does_not_name_gets_its_whole(tmp_path):
    rows = rows_of(write(tmp_path / "results.json", RESULTS), Image("9", "9.jpg", None, 100, 80))
    assert [row.box for row in rows] == [[0, 0, 100, 80]]


def as_numpy(content):
    return {
        stem: [[words, np.float32(score), np.array(box, np.float32)] for words, score, box in objects]
        for stem, objects in content.items()
    }


@pytest.mark.parametrize("form", ["json", "pth", "pickle", "numpy"])
def test_cpl_dump(tmp_path, form):
    path = tmp_path / {"json": "dump.json", "pth": "dump.pth"}.get(form, "dump.pkl")
    if form == "json":
        write(path, CPL)
    elif form == "pth":
        torch.save(CPL, path)
    else:
        path.write_bytes(pickle.dumps(as_numpy(CPL) if form == "numpy" else CPL))
    rows = rows_of(path)
    assert [(row.box, row.attributes, row.category) for row in rows] == [
        ([10, 20, 40, 60], ["black", "small"], "dog"),
        ([50, 5, 90, 35], [], "car"),
    ]
    assert rows[0].scores["detector"] == pytest.approx(0.9)


@pytest.mark.parametrize(
    "content, where",
    [
        ([{"category_id": 1, "bbox": [1, 2, 3, 4]}], "record 0: has no image_id"),
        ([{"image_id": 1, "category_id": 1, "bbox": [1, 2, 3]}], "record 0: .* not 4 finite"),
        ([RESULTS[0], {**RESULTS[1], "bbox": [1, 2, "x", 4]}], "record 1: .* not numbers"),
        ([{**RESULTS[0], "score": float("nan")}], "record 0: .* not 1 finite number"),
        ([{"image_id": 1, "bbox": [1, 2, 3, 4]}], "record 0: has neither category_id nor category"),
        ([{**RESULTS[1], "attributes": "red"}], "record 0: its attributes"),
        ({"annotations": [], "categories": [{"id": 1}]}, "categories: are not COCO's"),
        ("text", "neither a list of COCO results nor CPL"),
        ({"a": 3}, "image a: its objects are no list"),
        ({"a": [[["dog"], 0.9]]}, "image a, object 0: is not .words, score, box."),
        ({"a": [["dog", 0.9, [1, 2, 3, 4]]]}, "image a, object 0: its words"),
        ({"a": [[["dog"], "high", [1, 2, 3, 4]]]}, "image a, object 0: .* not numbers"),
    ],
)
def test_a_bad_record_is_named_with_its_file(tmp_path, content, where):
    path = write(tmp_path / "bad.json", content)
    with pytest.raises(DataError, match=where) as caught:
        build_detector(f"file:{path}", CONFIG)
    assert caught.value.file == str(path)


def test_unreadable_files_are_named(tmp_path):
    with pytest.raises(DataError, match="cannot be read"):
        build_detector(f"file:{tmp_path / 'none.json'}", CONFIG)
    (tmp_path / "cut.json").write_text('[{"image_id": 1')
    with pytest.raises(DataError, match="is no JSON"):
        build_detector(f"file:{tmp_path / 'cut.json'}", CONFIG)
