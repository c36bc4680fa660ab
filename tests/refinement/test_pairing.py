"""Label Pairing: the product of scores, the paper's rule, and what is said of dropped rows."""

import pytest
import torch

from cpgr.data.records import Expression
from cpgr.errors import CpgrError
from cpgr.labels import Label
from cpgr.refinement.pairing import PairConfig, ScoreConfig, corrected, map_likeness, pair, posterior, text_scores
from cpgr.refinement.refiner import AttentionRefiner, RefinementConfig
from cpgr.refinement.text_match import TextMatch

REGIONS = [Label("1", "1.jpg", 100, 100, box=[j * 10, 0, j * 10 + 10, 10], region_id=j) for j in range(3)]
EXPRESSION = Expression("e1", "1", "left red circle")


def test_posterior_is_the_normalised_product():
    config = PairConfig(text=ScoreConfig(1.0, 0.5), own=ScoreConfig(2.0, 1.0), itg=ScoreConfig(0.0, 1.0), itc=ScoreConfig(0.0, 1.0))
    scores = {"text": torch.tensor([[0.1, 0.9, 0.2]]), "own": torch.tensor([[0.5, 0.3, 0.2]]), "itg": torch.tensor([[9.0, 0.0, 0.0]])}
    expected = (scores["text"] / 0.5).softmax(-1) * scores["own"].softmax(-1) ** 2
    torch.testing.assert_close(posterior(scores, config), expected / expected.sum())


def test_no_score_is_a_flat_posterior():
    config = PairConfig(text=ScoreConfig(0.0, 1.0))
    torch.testing.assert_close(posterior({"text": torch.tensor([[1.0, 2.0]])}, config), torch.tensor([[0.5, 0.5]]))


def test_rows_of_an_expression():
    chances = torch.tensor([0.2, 0.7, 0.1])
    rows = pair(EXPRESSION, chances, {"text": chances}, REGIONS, PairConfig(weighting="posterior"), cycle=2)
    assert [row.kept for row in rows] == [False, True, False]
    assert rows[1].box == REGIONS[1].box and rows[1].weight == pytest.approx(0.7) and rows[1].cycle == 2
    assert rows[0].reason == "pairing: region 1 fits better" and rows[0].scores["posterior"] == pytest.approx(0.2)
    assert all(row.expression == EXPRESSION.text and row.expression_id == "e1" for row in rows)


def test_least_and_agreement():
    chances = torch.tensor([0.2, 0.7, 0.1])
    rows = pair(EXPRESSION, chances, {"text": chances}, REGIONS, PairConfig(least=0.8), cycle=1)
    assert rows[1].reason == "pairing: no region fits well enough"
    scores = {"text": torch.tensor([0.9, 0.1, 0.0]), "itg": torch.tensor([-5.0, -1.0, -9.0])}
    rows = pair(EXPRESSION, chances, scores, REGIONS, PairConfig(agree=True), cycle=1)
    assert rows[1].reason == "pairing: the scores disagree"


def test_best_text_of_each_region_and_the_penalty():
    labels = [Label("1", "1.jpg", 100, 100, region_id=0, kept=False), Label("1", "1.jpg", 100, 100, region_id=0), Label("1", "1.jpg", 100, 100, region_id=2)]
    vectors = [torch.tensor([1.0, 0.0]), torch.tensor([0.8, 0.6]), torch.tensor([0.0, 1.0])]
    best, which = text_scores([torch.tensor([1.0, 0.0])], labels, vectors, REGIONS, dropped=0.1)
    torch.testing.assert_close(best, torch.tensor([[0.9, -1.0, 0.0]]))
    assert which.tolist() == [[0, -1, 2]]
    best, which = text_scores([torch.tensor([1.0, 0.0])], labels, vectors, REGIONS, dropped=2.0)
    torch.testing.assert_close(best[0, 0], torch.tensor(0.8))


def test_map_likeness_is_histogram_intersection():
    a, b = torch.tensor([[0.5, 0.5, 0.0]]), torch.tensor([[0.5, 0.0, 0.5], [0.2, 0.8, 0.0]])
    torch.testing.assert_close(map_likeness(a, b), torch.tensor([[0.5, 0.7]]))


def test_word_order_counts():
    match = TextMatch("words").embed(["red circle left of star", "star left of red circle", "the red circle left of star", ""])
    texts = list(match.values())
    assert texts[0] @ texts[2] > 0.999 > 0.95 > texts[0] @ texts[1] > 0.3
    assert texts[3].norm() == 0


def test_word_vectors_from_a_file(tmp_path):
    import numpy as np

    np.savez(tmp_path / "v.npz", words=np.array(["dog", "puppy"]), vectors=np.array([[1.0, 0.0], [0.9, 0.1]]))
    found = TextMatch(f"vectors:{tmp_path / 'v.npz'}").embed(["dog", "puppy", "zebra"])
    assert found["dog"] @ found["puppy"] > 0.9 and found["zebra"].norm() == 0
    (tmp_path / "bad.npz").write_bytes(b"no")
    with pytest.raises(CpgrError, match="bad.npz"):
        TextMatch(f"vectors:{tmp_path / 'bad.npz'}")
    with pytest.raises(CpgrError, match="unknown text match"):
        TextMatch("glove")


def test_pairs_that_only_choose_do_not_train():
    chances = torch.tensor([0.2, 0.7, 0.1])
    rows = pair(EXPRESSION, chances, {"text": chances}, REGIONS, PairConfig(true_text=False), cycle=1)
    assert not any(row.kept for row in rows) and rows[1].reason == "pairing: true expressions do not train"


def test_correction_is_cpl_plus_pluss():
    row = Label("1", "1.jpg", 100, 100, box=[0.0, 0.0, 10.0, 10.0])
    assert corrected(row, [1.0, 1.0, 9.0, 9.0], 0.64).box == [1.0, 1.0, 9.0, 9.0]
    assert corrected(row, [10.0, 0.0, 20.0, 10.0], 0.0).box == pytest.approx([7.0, 0.0, 17.0, 10.0])


@pytest.mark.parametrize("part, name", [("pairing", "rule"), ("pairing", "pseudo"), ("filtering", "floor"), ("filtering", "rivals")])
def test_an_unknown_choice_is_refused(part, name):
    config = RefinementConfig()
    setattr(getattr(config, part), name, "nonsense")
    with pytest.raises(CpgrError, match=f"refinement.{part}.{name}: 'nonsense' is none of"):
        AttentionRefiner(config)
