"""Region-Centrality and Reference-Discrimination by their formulas, on texts whose verdict is known."""

from dataclasses import replace

from cpgr.labels import Label, LabelTable
from cpgr.metrics import text_quality
from cpgr.report.sections import text_quality as section


def truths(small_world):
    """The world's own expressions at their true boxes: true of their region and of nothing else."""
    _, split, truth = small_world
    images = split.images
    return [
        Label(e.image_id, "", images[e.image_id].width, images[e.image_id].height, truth.boxes[e.expression_id], expression=e.text, kind="generated")
        for e in split.expressions
    ]  # fmt: skip


def test_true_and_unique_texts_have_both(small_world):
    table = LabelTable(truths(small_world))
    found = text_quality(table, table, small_world[2])
    assert found["generated"]["before"] == {"centrality": 1.0, "discrimination": 1.0, "count": len(table)} == found["all"]["after"]
    assert "template" not in found


def test_a_word_for_everything_is_central_and_tells_nothing_apart(small_world):
    rows = LabelTable(replace(row, expression="thing") for row in truths(small_world))  # true of every object
    found = text_quality(rows, rows, small_world[2])["all"]["before"]
    assert found["centrality"] == 1.0 and found["discrimination"] == 0.0


def test_what_filtering_dropped_counts_before_alone(small_world):
    rows = truths(small_world)
    wrong = [replace(row, expression="no words of this world", kind="template") for row in rows]
    kept = LabelTable([*rows, *(row.drop("filtering: attention lies on another region") for row in wrong)])
    found = text_quality(LabelTable(rows + wrong), kept, small_world[2])
    assert found["all"]["before"]["centrality"] == 0.5 and found["all"]["after"]["centrality"] == 1.0
    assert found["template"] == {"before": {"centrality": 0.0, "discrimination": 0.0, "count": len(wrong)}}


def test_photographs_have_no_verdict(small_world):
    truth = replace(small_world[2], objects={})
    assert text_quality(LabelTable(truths(small_world)), LabelTable(), truth) == {}


def test_the_report_shows_them():
    from types import SimpleNamespace

    texts = {"all": {"before": {"centrality": 0.5, "discrimination": 0.25, "count": 4}, "after": {"centrality": 1.0, "discrimination": 0.75, "count": 2}}}
    html = section(SimpleNamespace(finished=[SimpleNamespace(number=2, metrics={"texts": texts})]))
    assert "Region-Centrality" in html and "50.0 % → 100.0 %" in html and "25.0 % → 75.0 %" in html
