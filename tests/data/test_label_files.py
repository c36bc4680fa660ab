"""Label files: every format that `export_labels` writes comes back as labels of the split's own images and expressions."""

from dataclasses import replace

import pytest

from cpgr.data.export import export_labels
from cpgr.data.label_files import held_labels, read_labels
from cpgr.data.readers import DataConfig
from cpgr.errors import CpgrError
from cpgr.labels import LabelTable

NAMES = {
    "cpl": "refcoco_train.pth", "transvg": "unc_train.pth", "refclip": "labels.json", "seqtr": "labels.json", "realgin": "train.txt",
    "mattnet": "refs(pseudo).p", "jsonl": "labels.jsonl",
}  # fmt: skip


@pytest.fixture
def made(small_world):
    """The small world's split, its config, and labels for it whose boxes are not the true ones."""
    root, split, truth = small_world
    rows = [replace(row, box=[1.0, 2.0, 30.0 + i % 7, 40.0], weight=0.5) for i, row in enumerate(held_labels(split, truth))]
    return split, DataConfig(format="refer", root=str(root), dataset="scenes"), LabelTable(rows)


def told(table):
    return [(row.image_id, row.expression, row.expression_id, row.kind, row.box) for row in table]


def test_held_labels_are_the_true_boxes(small_world):
    _, split, truth = small_world
    table = held_labels(split, truth)
    assert len(table) == len(split.expressions) and all(row.box == truth.boxes[row.expression_id] for row in table)


def test_a_table_comes_back(tmp_path, made):
    split, data, table = made
    dropped = LabelTable([*table, table[0].drop("no"), replace(table[0], box=None), replace(table[0], expression="", kind="proposal")])
    dropped.save(tmp_path / "refined.parquet")
    again = read_labels(tmp_path / "refined.parquet", split, data)
    assert told(again) == told(table) and [row.weight for row in again] == [0.5] * len(table)


@pytest.mark.parametrize("format", NAMES)
def test_an_exported_file_comes_back(tmp_path, made, format):
    split, data, table = made
    path = tmp_path / "own" / NAMES[format]
    export_labels(table, format, path)
    assert sorted(told(read_labels(path, split, data))) == sorted(told(table))


def test_images_are_matched_by_name_and_expressions_by_words(tmp_path, made, caplog):
    split, data, table = made
    first = table[0]
    rows = [
        replace(first, image_id="another id", file_name="elsewhere/" + first.file_name.rpartition("/")[2], expression=first.expression.upper(), width=1),
        replace(first, expression="a pseudo expression"),
        replace(first, file_name="foreign.png"),
    ]
    LabelTable(rows).save(tmp_path / "x.parquet")
    one, two = read_labels(tmp_path / "x.parquet", split, data)
    assert (one.image_id, one.expression_id, one.width, one.kind) == (first.image_id, first.expression_id, first.width, "dataset")
    assert (two.expression_id, two.kind) == ("", "generated")
    assert "1 of its 3 labels are about images" in caplog.text
    LabelTable(rows[2:]).save(tmp_path / "x.parquet")
    with pytest.raises(CpgrError, match="none of its 1 labels, such as 'foreign.png' is about an image of the split 'train'"):
        read_labels(tmp_path / "x.parquet", split, data)


@pytest.mark.parametrize(("name", "content", "says"), [
    ("nothing.json", None, "no such label file"),
    ("x.csv", "a,b", "no label file that is known"),
    ("labels.pth", "", "called <dataset>_<split>.pth"),
    ("x.json", "[1, 2]", "holds no labels"),
    ("x.json", '{"train": [{"a": 1}]}', "holds no labels"),
    ("x.json", '{"val": [{"iid": 1, "refs": ["a"], "bbox": [0, 0, 1, 1]}]}', "has no split 'train'"),
    ("x.json", "{", "not readable JSON"),
    ("x.parquet", "not parquet", "not a readable label table"),
])  # fmt: skip
def test_mistakes_are_named(tmp_path, made, name, content, says):
    split, data, _ = made
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(CpgrError, match=says):
        read_labels(tmp_path / name, split, data)
