"""MAttNet's regions, their places and negatives, its ranking losses, and what it sees of a region."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cpgr.data.records import Image
from cpgr.grounding.candidates import Candidates, Places
from cpgr.grounding.mattnet import MAttNetConfig, MAttNetNetwork, _weights, collate_places, ranking_loss, read_regions
from cpgr.grounding.recurrent import RecurrentConfig
from cpgr.labels import Label

IMAGE = Image("1", "a.png", Path("a.png"), 200, 100)


def candidates(*regions):
    rows = [Label("1", "a.png", 200, 100, list(box), category=category, region_id=i) for i, (box, category) in enumerate(regions)]
    return Candidates.of(IMAGE, rows, 64)


def test_places_by_hand():
    found = candidates(((0, 0, 20, 10), "cat"), ((40, 0, 60, 20), "cat"), ((0, 20, 20, 40), "dog"), ((180, 80, 200, 100), "cat"))
    places = found.places
    torch.testing.assert_close(places.location[1], torch.tensor([0.2, 0.0, 0.3, 0.2, 0.02]))
    # seen from the first (centre 10, 5, sides 20 and 10): the cat beside it, then the far one
    alike = places.alike[0].view(5, 5)
    torch.testing.assert_close(alike[0], torch.tensor([1.5, -0.5, 2.5, 1.5, 2.0]))
    torch.testing.assert_close(alike[1], torch.tensor([8.5, 7.5, 9.5, 9.5, 2.0]))
    assert (alike[2:] == 0).all()
    # of other categories first, then of its own, by distance
    assert places.context.tolist()[0] == [2, 1, 3, -1, -1]
    torch.testing.assert_close(places.context_location[0, 0], torch.tensor([-0.5, 1.5, 0.5, 3.5, 2.0]))
    # in a frame of 64 pixels the image is 64 x 32, 16 from the top
    torch.testing.assert_close(places.regions[3] * 64, torch.tensor([57.6, 41.6, 64.0, 48.0]))


def test_the_same_object_is_no_neighbour():
    found = candidates(((0, 0, 20, 20), "cat"), ((50, 50, 80, 80), "dog"))
    placed = found.place(torch.tensor([[0.0, 0.0, 20.0, 16.0]]), ["cat"])  # IoU 0.8 with the first
    assert placed.context.tolist()[0] == [1, -1, -1, -1, -1] and (placed.alike == 0).all()


def test_regions_are_padded_side_by_side():
    one, two = candidates(((0, 0, 20, 20), "cat")), candidates(((0, 0, 20, 20), "cat"), ((50, 50, 80, 80), "dog"))
    both = collate_places([one.places, two.places])
    assert both["there"].tolist() == [[True, False], [True, True]]
    assert both["context"][0, 1].tolist() == [-1] * 5 and both["regions"].shape == (2, 2, 4)


def test_regions_are_read_between_cells():
    ramp = torch.arange(8.0).expand(1, 1, 8, 8) + 0.5  # at x (in cells) the value is x
    found = read_regions(ramp, torch.tensor([[[0.25, 0.25, 0.75, 0.75], [0.5, 0.5, 0.5, 0.5]]]), 2)
    assert found.shape == (1, 2, 4, 1)
    torch.testing.assert_close(found[0, 0, :, 0], torch.tensor([3.0, 5.0, 3.0, 5.0]))
    torch.testing.assert_close(found[0, 1, :, 0], torch.full((4,), 4.0))


def test_ranking_loss():
    right, wrong = torch.tensor([0.5, 0.2, 0.1]), torch.tensor([0.3, 0.2, 0.4])
    torch.testing.assert_close(ranking_loss(right, wrong, 0.1), torch.tensor([0.0, 0.1, 0.4]))


def test_rare_attributes_weigh_more():
    weights = _weights([("red", 100), ("big", 25), ("odd", 1)])
    assert weights["red"] == 1 and weights["odd"] == pytest.approx(10)
    assert weights["big"] == pytest.approx(1 + 9 * (0.2 - 0.1) / (1 - 0.1))
    assert _weights([]) == {} and _weights([("red", 3)]) == {"red": 1.0}


class Branch(torch.nn.Module):
    size, scales = 64, [(4, 8), (6, 4)]


def network():
    torch.manual_seed(0)
    language = RecurrentConfig("lstm", word_width=8, inner_width=8, width=6, dropout=0.0)
    return MAttNetNetwork(MAttNetConfig(language=language, width=10, side=2), Branch(), words=12, attributes=3).eval()


def test_a_score_is_the_modules_cosines_weighted_by_the_expression():
    model, found = network(), candidates(((0, 0, 20, 20), "cat"), ((50, 50, 80, 80), "dog"), ((90, 0, 120, 30), "cat"))
    batch = collate_places([found.places])
    places = Places(*(batch[name] for name in Places.__dataclass_fields__))
    seen = model.see(torch.randn(1, 4 * 64 + 6 * 16), places, batch["regions"])
    ids = torch.tensor([[3, 4, 5, 0]])
    balance, phrases = model.say(ids, ids > 0)
    assert balance.shape == (1, 3) and balance.sum().item() == pytest.approx(1)
    score = model.score(seen, (balance, phrases))
    assert score.shape == (1, 3) and (score.abs() <= 1).all() and seen["attributes"].shape == (1, 3, 3)
    place_only = model.score(seen, (torch.tensor([[0.0, 1.0, 0.0]]), phrases))
    torch.testing.assert_close(place_only, model.location(seen["place"], phrases[1]))
    relation_only = model.score(seen, (torch.tensor([[0.0, 0.0, 1.0]]), phrases))
    each = model.relation(seen["around"], phrases[2])
    # two neighbours each; the three that are not there match with 0
    torch.testing.assert_close(relation_only, each[..., :2].amax(-1).clamp(min=0))


def test_a_phrase_is_read_from_its_words_alone():
    model = network()
    long, short = torch.tensor([[3, 4, 5, 0, 0]]), torch.tensor([[3, 4, 5]])
    for a, b in zip(model.say(long, long > 0)[1], model.say(short, short > 0)[1], strict=True):
        torch.testing.assert_close(a, b)


@pytest.fixture
def ranked(accelerator, tmp_path, small_world):
    from cpgr.grounding.mattnet import MAttNetGrounder, Ranked

    _, split, truth = small_world
    rows = [
        Label(e.image_id, i.file_name, i.width, i.height, truth.boxes[e.expression_id], expression=e.text)
        for e in split.expressions
        for i in [split.images[e.image_id]]
    ]

    def make(**changes):
        language = RecurrentConfig("lstm", word_width=8, inner_width=8, width=8, dropout=0.0)
        grounder = MAttNetGrounder(replace(MAttNetConfig(language=language, width=8, side=2, negatives=3), **changes), accelerator, tmp_path)
        grounder._take(grounder._build(rows))
        return rows, Ranked(rows, split.images, grounder)

    return make


def test_negatives_are_other_objects_of_the_same_image(ranked):
    from cpgr.metrics import paired_iou

    rows, data = ranked()
    batch = data.batch(list(range(16)))
    assert batch["alike"].shape == (16, 4, 25) and batch["rival"].shape == (16, 3)
    for i in range(16):
        own = data.candidates[i]
        assert all(paired_iou([rows[i].box], [own.boxes[j].tolist()])[0] < 0.5 for part in data.rivals[i] for j in part)
        same, different = data.rivals[i]
        assert {own.categories[j] for j in same} <= {data.categories[i]} and data.categories[i] not in {own.categories[j] for j in different}
        for group in data.others[i]:
            assert all(rows[j].image_id == rows[i].image_id and paired_iou([rows[i].box], [rows[j].box])[0] < 0.5 for j in group)


def test_negatives_are_drawn_from_the_batch_alone(ranked):
    _, data = ranked()
    one, two, other = data.batch([1, 2, 3]), data.batch([1, 2, 3]), data.batch([3, 2, 1])
    assert all(torch.equal(one[k], two[k]) for k in one)
    assert not torch.equal(one["negative_ids"].flip(0), other["negative_ids"]) or not torch.equal(one["alike"].flip(0), other["alike"])


@pytest.mark.parametrize(("positive", "share"), [("box", 0.0), ("candidate", 0.5)])
def test_a_label_is_a_new_region_or_the_candidate_it_meets(ranked, positive, share):
    rows, data = ranked(positive=positive)
    taken = [any(torch.equal(p.regions[0], box) for box in c.places.regions) for p, c in zip(data.places, data.candidates, strict=True)]
    assert sum(taken) / len(taken) >= share and (share > 0 or not any(taken))


def test_a_lone_region_has_no_rival(accelerator, tmp_path, small_world):
    from cpgr.grounding.mattnet import MAttNetGrounder

    _, split, truth = small_world
    image = next(iter(split.images.values()))
    rows = [Label(image.image_id, image.file_name, image.width, image.height, [0.0, 0.0, image.width, image.height], expression=t) for t in "ab"]
    grounder = MAttNetGrounder(MAttNetConfig(language=RecurrentConfig("lstm", 8, 8, 8), width=8, side=2), accelerator, tmp_path)
    whole = Label(image.image_id, image.file_name, image.width, image.height, [0.0, 0.0, float(image.width), float(image.height)], kind="proposal")
    grounder.known = {image.image_id: [whole]}
    grounder._take(grounder._build(rows))
    data = grounder._examples(rows, split.images)
    losses = {name: float(value.detach()) for name, value in grounder._step()(data.collate([0, 1])).items()}
    assert losses["visual"] == 0 and math.isfinite(losses["loss"]) and losses["language"] >= 0
