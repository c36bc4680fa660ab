"""The baselines that answer with one of the detector's regions."""

import pytest
import torch

from cpgr.data.records import Image
from cpgr.errors import CpgrError
from cpgr.grounding.choosing import ChoosingGrounder
from cpgr.labels import Label, LabelTable
from cpgr.refinement.pairing import PairConfig
from cpgr.stages import Query

BOXES = [[0.0, 0.0, 10.0, 10.0], [20.0, 20.0, 60.0, 60.0], [70.0, 70.0, 80.0, 80.0]]
QUERIES = [Query(Image(str(i), f"{i}.png", None, 100, 100), "red circle") for i in range(40)]


def propose(split):
    return LabelTable(
        Label(i, "", 100, 100, box, region_id=j, scores={"detector": s})
        for i in split.images for j, (box, s) in enumerate(zip(BOXES, (0.5, 0.3, 0.9), strict=True))
    )  # fmt: skip


class Judge:
    """Likes the first region by ITG, the second by ITM."""

    def judge(self, images, proposals, expressions, scores):
        liked = {"itg": torch.tensor([3.0, 0.0, 0.0]), "itc": torch.zeros(3), "itm": torch.tensor([0.0, 9.0, 0.0])}
        return {name: {e.expression_id: liked[name] for e in expressions} for name in scores}


def chooser(choose, seed=0, **pairing):
    return ChoosingGrounder(None, choose, propose, Judge(), PairConfig(**pairing), seed)


@pytest.mark.parametrize("choose, box", [("score", 2), ("largest", 1), ("judges", 0)])
def test_what_is_chosen(choose, box):
    answer = chooser(choose).ground(QUERIES)
    assert (answer.boxes == torch.tensor(BOXES[box])).all() and len(answer.scores) == len(QUERIES)


def test_judges_count_by_their_weights():
    from cpgr.refinement.pairing import ScoreConfig

    assert chooser("judges", itm=ScoreConfig(1.0, 1.0)).ground(QUERIES[:1]).boxes[0].tolist() == BOXES[1]


def test_by_lot():
    answer = chooser("random").ground(QUERIES).boxes
    assert len({tuple(box) for box in answer.tolist()}) == 3
    assert torch.equal(answer, chooser("random").ground(QUERIES).boxes)
    assert not torch.equal(answer, chooser("random", seed=1).ground(QUERIES).boxes)


def test_another_word_is_refused():
    with pytest.raises(CpgrError, match="answer: 'best'"):
        chooser("best")
