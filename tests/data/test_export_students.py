"""The files of TransVG, RealGIN, SimREC and MAttNet: each against an example written by hand, and read back."""

import json
import pickle

import pytest
import torch

from cpgr.data.export import export_labels
from cpgr.data.readers import DataConfig, read_split
from cpgr.data.records import Problems
from cpgr.errors import CpgrError, DataError
from cpgr.labels import Label, LabelTable

NAMES = {"7": "COCO_train2014_000000000007.jpg", "9": "COCO_train2014_000000000009.jpg"}


def label(image, text, box, **fields):
    return Label(image, NAMES[image], 64, 48, box, expression=text, **fields)


@pytest.fixture
def table():
    return LabelTable([
        label("7", "guy on the right", [10.25, 5.0, 30.75, 40.0], category="person", scores={"objectness": 0.5, "similarity": 12.0}),
        label("7", "falling ~ guy", [10.0, 5.5, 31.0, 40.0], category="person"),
        label("9", "the rug", [0.0, 1.0, 63.0, 47.0], category="rug"),
    ])  # fmt: skip


def read_back(root, pictures, format, dataset):
    pictures(root / "images", *NAMES.values())
    split, truth = read_split(DataConfig(format=format, root=str(root), dataset=dataset), "train", Problems())
    return [(split.images[e.image_id].file_name, e.text, truth.boxes[e.expression_id]) for e in split.expressions]


def rows(table):
    return [(row.file_name, row.expression, row.box) for row in table]


NONE = [("r1", ["none"]), ("r2", ["none"]), ("r3", ["none"]), ("r4", ["none"]), ("r5", ["none"]), ("r6", ["none"]), ("r7", ["none"]), ("r8", ["none"])]


def test_transvg(tmp_path, pictures, table):
    """As the published unc_val.pth holds them: (image, mask file, [x, y, w, h], phrase, parser's attributes)."""
    export_labels(table, "transvg", tmp_path / "unc_train.pth")
    found = torch.load(tmp_path / "unc_train.pth", weights_only=True)
    assert found[0] == (NAMES["7"], "0.pth", [10.25, 5.0, 20.5, 35.0], "guy on the right", NONE)
    assert read_back(tmp_path, pictures, "transvg", "unc") == rows(table)


@pytest.mark.parametrize("name", ["referit", "flickr"])
def test_transvg_has_corners_for_other_data_sets(tmp_path, pictures, table, name):
    """The published referit_val.pth and flickr_test.pth: corners, and for Flickr30k three values."""
    export_labels(table, "transvg", tmp_path / f"{name}_train.pth")
    first = torch.load(tmp_path / f"{name}_train.pth", weights_only=True)[0]
    box = [10.25, 5.0, 30.75, 40.0]
    assert first == ((NAMES["7"], box, "guy on the right") if name == "flickr" else (NAMES["7"], "0.pth", box, "guy on the right", NONE))
    assert read_back(tmp_path, pictures, "transvg", name) == rows(table)


def test_transvg_takes_the_box_order_from_the_name(tmp_path, table):
    with pytest.raises(CpgrError, match="takes the box order from the file's name"):
        export_labels(table, "transvg", tmp_path / "labels.pth")


def test_realgin(tmp_path, pictures, table):
    export_labels(table, "realgin", tmp_path / "train.txt")
    assert (tmp_path / "train.txt").read_text() == (
        "COCO_train2014_000000000007.jpg 10,5,31,40,0,0 ~ guy on the right\n"
        "COCO_train2014_000000000007.jpg 10,6,31,40,0,1 ~ falling guy\n"
        "COCO_train2014_000000000009.jpg 0,1,63,47,-1,2 ~ the rug\n"
    )
    whole = [[10.0, 5.0, 31.0, 40.0], [10.0, 6.0, 31.0, 40.0], [0.0, 1.0, 63.0, 47.0]]
    texts = ["guy on the right", "falling guy", "the rug"]
    assert read_back(tmp_path, pictures, "realgin", "refcoco") == [(r.file_name, t, b) for r, t, b in zip(table, texts, whole, strict=True)]


def test_realgin_keeps_the_area_of_a_thin_box(tmp_path):
    export_labels(LabelTable([label("7", "x", [3.2, 47.6, 9.0, 48.0])]), "realgin", tmp_path / "train.txt")
    assert (tmp_path / "train.txt").read_text().split()[1] == "3,47,9,48,-1,0"


def test_realgin_has_no_place_for_spaces_in_names(tmp_path):
    with pytest.raises(DataError, match="has white space"):
        export_labels(LabelTable([Label("1", "a b.jpg", 4, 4, [0.0, 0.0, 1.0, 1.0], expression="x")]), "realgin", tmp_path / "train.txt")


def test_realgin_reads_its_own_layout_and_names_bad_lines(tmp_path, pictures):
    pictures(tmp_path / "images", NAMES["7"])
    file = tmp_path / "anns" / "refcoco" / "train.txt"
    file.parent.mkdir(parents=True)
    file.write_text(f"{NAMES['7']} 1,2,30,40,0,482127 ~ guy on the right ~ falling\n\n{NAMES['7']} 1,2,30,40,0,5\n{NAMES['7']} 1,2,x,40,0,5 ~ one\n")
    problems = Problems("skip")
    config = DataConfig(format="realgin", root=str(tmp_path), dataset="refcoco")
    split, truth = read_split(config, "train", problems)
    assert [(e.expression_id, e.text) for e in split.expressions] == [("train:1:0", "guy on the right"), ("train:1:1", "falling"), ("train:4:0", "one")]
    assert truth.boxes == {"train:1:0": [1.0, 2.0, 30.0, 40.0], "train:1:1": [1.0, 2.0, 30.0, 40.0]}
    assert [e.record for e in problems.skipped] == ["line 3", "line 4"]
    with pytest.raises(DataError, match="line 3"):
        read_split(config, "train", Problems())


def test_simrec(tmp_path, pictures, table):
    """`bbox` is x, y, w, h in original pixels; an item a sentence, as each has its own box."""
    export_labels(table, "refclip", tmp_path / "refcoco.json")
    items = json.loads((tmp_path / "refcoco.json").read_text())["train"]
    assert items[0] == {"iid": 7, "bbox": [10.25, 5.0, 20.5, 35.0], "cat_id": 0, "refs": ["guy on the right"], "mask_id": 0, "file_name": NAMES["7"]}
    assert read_back(tmp_path, pictures, "refclip", "refcoco") == rows(table)


def test_mattnet_with_new_annotations(tmp_path, pictures, table):
    export_labels(table, "mattnet", tmp_path / "refcoco" / "refs(pseudo).p")
    refs = pickle.loads((tmp_path / "refcoco" / "refs(pseudo).p").read_bytes())
    assert refs[0] == {
        "ref_id": 1, "ann_id": 1, "category_id": 1, "image_id": 7, "file_name": NAMES["7"], "split": "train", "sent_ids": [1],
        "sentences": [{"raw": "guy on the right", "sent": "guy on the right", "sent_id": 1, "tokens": ["guy", "on", "the", "right"]}],
    }  # fmt: skip
    instances = json.loads((tmp_path / "refcoco" / "instances.json").read_text())
    assert instances["images"][0] == {"id": 7, "file_name": NAMES["7"], "width": 64, "height": 48}
    assert instances["categories"] == [{"id": 1, "name": "person", "supercategory": "person"}, {"id": 2, "name": "rug", "supercategory": "rug"}]
    x1, y1, x2, y2 = table[0].box
    assert instances["annotations"][0] == {
        "id": 1, "image_id": 7, "category_id": 1, "bbox": [10.25, 5.0, 20.5, 35.0], "area": 717.5, "iscrowd": 0,
        "segmentation": [[x1, y1, x2, y1, x2, y2, x1, y2]],
    }  # fmt: skip
    assert read_back(tmp_path, pictures, "refer", "refcoco") == rows(table)


def test_mattnet_by_best_overlap(tmp_path, pictures, table):
    """The first and second label lie on the second candidate, the third on none: of equal overlaps the first counts."""
    candidates = LabelTable([
        label("7", "", [40.0, 0.0, 60.0, 40.0], kind="proposal", category="dog"), label("7", "", [11.0, 5.0, 30.0, 40.0], kind="proposal", category="person"),
        label("9", "", [0.0, 0.0, 1.0, 0.5], kind="proposal", category="cat"),
    ])  # fmt: skip
    path = tmp_path / "refcoco" / "refs(pseudo).p"
    export_labels(table, "mattnet", path, candidates=candidates)
    assert [ref["ann_id"] for ref in pickle.loads(path.read_bytes())] == [2, 2, 3]
    assert len(json.loads((tmp_path / "refcoco" / "instances.json").read_text())["annotations"]) == 3
    boxes = [box for _, _, box in read_back(tmp_path, pictures, "refer", "refcoco")]
    assert boxes == [[11.0, 5.0, 30.0, 40.0], [11.0, 5.0, 30.0, 40.0], [0.0, 0.0, 1.0, 0.5]]
    with pytest.raises(DataError, match="its image has no candidates"):
        export_labels(table, "mattnet", path, candidates=LabelTable(candidates.rows[:2]))
    with pytest.raises(CpgrError, match="only the format mattnet"):
        export_labels(table, "realgin", tmp_path / "x.txt", candidates=candidates)
    with pytest.raises(CpgrError, match=r"refs\(NAME\).p"):
        export_labels(table, "mattnet", tmp_path / "x.p")
