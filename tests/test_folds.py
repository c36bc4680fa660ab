"""Cross-fitting on stand-in parts: who is trained on what, and who answers for whom."""

from pathlib import Path

import pytest
import torch

from cpgr.data.records import Expression, Split, Image
from cpgr.folds import CrossFittedGenerator, CrossFittedGrounder, fold_of
from cpgr.labels import Label, LabelTable
from cpgr.stages import Attention, Grounded, Query

IMAGES = {str(i): Image(str(i), f"{i}.png", Path(f"{i}.png"), 10, 10) for i in range(12)}
LABELS = LabelTable(Label(i, "", 10, 10, [0, 0, 5, 5], expression=f"text {i}", region_id=0) for i in IMAGES)
EXPRESSIONS = [Expression(f"e{i}", i, "x") for i in IMAGES]


class Part:
    """Knows the images it was trained on."""

    history = None

    def __init__(self, number):
        self.number, self.seen = number, set()

    def fit(self, labels, images, work, validate=None, length=1.0):
        self.seen, self.length = {row.image_id for row in labels}, length

    def generate(self, split, proposals):
        assert not self.seen & set(split.images) and all(e.image_id in split.images for e in split.expressions)
        return LabelTable(row for row in proposals if row.image_id in split.images)

    def match(self, images, labels):
        assert not self.seen & {row.image_id for row in labels}
        return [float(row.image_id) for row in labels]

    def judge(self, images, proposals, expressions, scores):
        assert not self.seen & {e.image_id for e in expressions}
        return {name: {e.expression_id: torch.tensor([float(e.image_id)]) for e in expressions} for name in scores}

    def attend(self, queries):
        assert not self.seen & {q.image.image_id for q in queries}
        return Attention(torch.tensor([[float(q.image.image_id)] * 4 for q in queries]).reshape(-1, 4), 2, 10)

    def ground(self, queries):
        return Grounded(torch.full((len(queries), 4), float(len(self.seen))), torch.zeros(len(queries)))

    def save(self, folder):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "seen").write_text(",".join(sorted(self.seen)))

    def load(self, folder):
        self.seen = set((folder / "seen").read_text().split(","))


def test_folds_are_of_like_size():
    sizes = [sum(fold_of(f"image {i}", 2) == f for i in range(400)) for f in (0, 1)]
    assert min(sizes) > 150


def test_the_generator_answers_for_what_it_has_not_seen(tmp_path):
    generator = CrossFittedGenerator(Part, 2)
    generator.fit(LABELS, IMAGES, tmp_path)
    assert generator.parts[0].seen | generator.parts[1].seen == set(IMAGES) and all(p.seen for p in generator.parts)
    assert [row.image_id for row in generator.generate(Split("", IMAGES, EXPRESSIONS), LABELS)] == list(IMAGES)
    assert generator.match(IMAGES, LABELS) == [float(i) for i in IMAGES]
    judged = generator.judge(IMAGES, LABELS, EXPRESSIONS, ["itg"])
    assert {e: float(v) for e, v in judged["itg"].items()} == {f"e{i}": float(i) for i in IMAGES}


def test_the_grounder_attends_by_fold_and_grounds_as_a_whole(tmp_path):
    grounder = CrossFittedGrounder(Part, 2)
    grounder.fit(LABELS, IMAGES, tmp_path, None, 2.0)
    queries = [Query(image, "x") for image in IMAGES.values()]
    assert grounder.attend(queries).maps[:, 0].tolist() == [float(i) for i in IMAGES]
    assert grounder.whole.length == 2.0 and grounder.ground(queries).boxes[0, 0] == len(IMAGES)
    grounder.save(tmp_path / "saved")
    again = CrossFittedGrounder(Part, 2)
    again.load(tmp_path / "saved")
    assert [p.seen for p in (again.whole, *again.parts)] == [p.seen for p in (grounder.whole, *grounder.parts)]


def test_one_fold_is_refused(accelerator, tmp_path):
    from cpgr.errors import CpgrError
    from cpgr.recipes.cpgr import Config, build

    with pytest.raises(CpgrError, match="folds"):
        build(Config(folds=1), accelerator, tmp_path)
