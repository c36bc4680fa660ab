"""The label table on disk: every field comes back, and a file is whole or absent."""

import pytest

from cpgr.errors import DataError
from cpgr.labels import Label, LabelTable

ROW = Label(
    "7", "a/b.jpg", 640, 480, box=[1.5, 2.0, 30.25, 40.0], mask='{"size": [1, 1]}', keypoints=[1.0, 2.0, 2.0], expression='"left" dog\n',
    kind="generated", expression_id="", region_id=3, category="dog", attributes=["black", "small"], spatial="left",
    scores={"a": 0.1, "b": float("-inf")}, weight=0.5, cycle=2, kept=False, reason="why",
)  # fmt: skip


def test_round_trip(tmp_path):
    table = LabelTable([ROW, Label("8", "c.jpg", 1, 1), ROW.keep(c=1.0)])
    table.save(tmp_path / "deep" / "t.parquet")
    assert list(LabelTable.load(tmp_path / "deep" / "t.parquet")) == list(table)
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["t.parquet"]


def test_empty_table(tmp_path):
    LabelTable().save(tmp_path / "t.parquet")
    assert len(LabelTable.load(tmp_path / "t.parquet")) == 0


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "t.parquet"
    LabelTable([ROW]).save(path)
    with pytest.raises(Exception):  # noqa: B017 - whatever pyarrow raises
        LabelTable([ROW, Label(object(), "x", 1, 1)]).save(path)
    assert list(LabelTable.load(path)) == [ROW] and len(list(tmp_path.iterdir())) == 1


def test_a_bad_file_is_named(tmp_path):
    (tmp_path / "t.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(DataError, match="t.parquet"):
        LabelTable.load(tmp_path / "t.parquet")


def test_groups_and_words():
    table = LabelTable([ROW, Label("8", "c.jpg", 1, 1), ROW])
    assert {k: len(v) for k, v in table.by_image().items()} == {"7": 2, "8": 1}
    assert ROW.words == "left black small dog" and len(table.kept) == 1
    assert ROW.drop("because", x=1.0).scores == {**ROW.scores, "x": 1.0}
