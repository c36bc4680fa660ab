"""Labels written for other code bases, and read back where there is a reader."""

import json
import math
import re
from dataclasses import replace

import pytest
import torch

from cpgr.data.export import FORMATS, export_labels
from cpgr.data.readers import DataConfig, read_split
from cpgr.data.records import Problems
from cpgr.errors import CpgrError, DataError
from cpgr.labels import Label, LabelTable

BOX = [10.0, 5.0, 30.5, 40.0]
POLYGON = [[10.0, 5.0, 30.0, 5.0, 30.0, 40.0, 10.0, 40.0]]


def label(image, text, **fields):
    return Label(image, f"{image}.jpg", 64, 48, **{"box": BOX, "expression": text, **fields})


@pytest.fixture
def table():
    return LabelTable([
        label("a7", "the man", category="person", attributes=["red"], spatial="left", scores={"clip": 0.5, "bad": math.nan}, weight=0.75, expression_id="3"),
        label("b9", "ein Hund für «x»", box=None, mask=json.dumps(POLYGON), kind="generated"),
        label("a7", "a dropped one").drop("margin"),
        label("a7", "", kind="proposal"),
    ])  # fmt: skip


def read_back(tmp_path, pictures, format, **changes):
    pictures(tmp_path / "images", "a7.jpg", "b9.jpg")
    split, truth = read_split(DataConfig(format=format, root=str(tmp_path), **changes), "train", Problems())
    return [(split.images[e.image_id].file_name, e.text, truth.boxes.get(e.expression_id)) for e in split.expressions], truth


MASK_BOX = [10.0, 5.0, 30.0, 40.0]
KEPT = [("a7.jpg", "the man", BOX), ("b9.jpg", "ein Hund für «x»", MASK_BOX)]


@pytest.mark.parametrize(("format", "name", "reader"), [("cpl", "x_train.pth", "transvg"), ("refclip", "x.json", "refclip"), ("seqtr", "x.json", "seqtr"), ("jsonl", "train.jsonl", "folder")])
def test_round_trip(tmp_path, pictures, table, format, name, reader):
    assert export_labels(table, format, tmp_path / name) == 2
    rows, truth = read_back(tmp_path, pictures, reader)
    # The own format keeps a label as it is: one without a box stays without.
    assert rows == (KEPT if format != "jsonl" else [KEPT[0], (*KEPT[1][:2], None)])
    if format == "seqtr":
        x1, y1, x2, y2 = BOX
        assert truth.masks == {"train:0:0": [[x1, y1, x2, y1, x2, y2, x1, y2]], "train:1:0": POLYGON}
    assert export_labels(table, format, tmp_path / name, dropped=True) == 3
    assert [text for _, text, _ in read_back(tmp_path, pictures, reader)[0]] == ["the man", "ein Hund für «x»", "a dropped one"]


def test_cpl_list(tmp_path, table):
    export_labels(table, "cpl", tmp_path / "new" / "x.pth")
    assert torch.load(tmp_path / "new" / "x.pth", weights_only=True) == [["a7.jpg", BOX, "the man", 0.75], ["b9.jpg", MASK_BOX, "ein Hund für «x»", 1.0]]


def test_refclip_fields_and_split(tmp_path, table):
    export_labels(table, "refclip", tmp_path / "x.json", split="val")
    first, second = json.loads((tmp_path / "x.json").read_text())["val"]
    assert first == {"iid": 7, "bbox": [10.0, 5.0, 20.5, 35.0], "cat_id": 0, "refs": ["the man"], "mask_id": 0, "file_name": "a7.jpg"}
    assert (second["iid"], second["cat_id"], second["mask_id"]) == (9, -1, 1)


@pytest.mark.parametrize(("ids", "names", "numbers"), [
    (["12", "5"], ["x.jpg", "y.jpg"], [12, 5]),
    (["u", "v"], ["COCO_train2014_000000000012.jpg", "COCO_train2014_000000000005.jpg"], [12, 5]),
    (["u", "v"], ["a1.jpg", "b1.jpg"], [1, 2]),
    (["5", "v"], ["a.jpg", "b.jpg"], [1, 2]),
])  # fmt: skip
def test_image_numbers(tmp_path, ids, names, numbers):
    rows = [Label(i, n, 64, 48, BOX, expression="x") for i, n in zip(ids, names, strict=True)]
    export_labels(LabelTable(rows), "seqtr", tmp_path / "x.json")
    assert [entry["image_id"] for entry in json.loads((tmp_path / "x.json").read_text())["train"]] == numbers


def test_coco_is_read_by_pycocotools(tmp_path, table):
    from pycocotools.coco import COCO

    keyed = LabelTable([replace(table[0], keypoints=[1.0, 2.0, 2.0, 0.0, 0.0, 0.0]), *table.rows[1:]])
    export_labels(keyed, "coco", tmp_path / "x.json")
    truth = COCO(str(tmp_path / "x.json"))
    found = truth.loadRes(str(tmp_path / "x_results.json"))
    assert truth.getImgIds() == [7, 9] and {c["name"] for c in truth.cats.values()} == {"person", "object"}
    assert truth.anns[1]["num_keypoints"] == 1 and truth.anns[2]["area"] == 700 and truth.annToMask(truth.anns[2]).sum() == 700
    assert found.anns[1]["score"] == 0.75 and found.anns[1]["bbox"] == truth.anns[1]["bbox"] == [10.0, 5.0, 20.5, 35.0]


def test_own_format_holds_every_field(tmp_path, table):
    export_labels(table, "jsonl", tmp_path / "x.jsonl", dropped=True)
    first, _, third = map(json.loads, (tmp_path / "x.jsonl").read_text().splitlines())
    assert first["texts"] == [{"text": "the man", "kind": "dataset", "ref_id": "3"}] and first["scores"] == {"clip": 0.5}
    assert (first["cls"], first["attr"], first["spat"], first["weight"], first["keep"]) == ("person", ["red"], "left", 0.75, True)
    assert (third["keep"], third["drop_reason"]) == (False, "margin")


@pytest.mark.parametrize("format", FORMATS)
def test_a_failed_export_leaves_the_old_file_and_no_other(tmp_path, table, format):
    path = tmp_path / {"transvg": "unc_train.pth", "mattnet": "refs(x.json).p"}.get(format, "x.json")
    export_labels(table, format, path)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    bad = LabelTable([*table, label("c", "no box", box=None if format != "jsonl" else [math.nan] * 4)])
    with pytest.raises(DataError, match=re.escape(path.name)):
        export_labels(bad, format, path)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_errors(tmp_path, table):
    with pytest.raises(CpgrError, match="unknown label format 'xml'; the formats are cpl, transvg, refclip, realgin, mattnet, seqtr, coco, jsonl"):
        export_labels(table, "xml", tmp_path / "x")
    with pytest.raises(CpgrError, match="no labels to write"):
        export_labels(LabelTable([table[2], table[3]]), "cpl", tmp_path / "x")
    with pytest.raises(DataError, match="label 'x' of image a: its mask is not JSON"):
        export_labels(LabelTable([label("a", "x", mask="{")]), "seqtr", tmp_path / "x")
    assert list(tmp_path.iterdir()) == []
