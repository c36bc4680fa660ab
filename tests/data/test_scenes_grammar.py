"""The grammar of the built-in world: every expression is true of one object only, and is understood again."""

from collections import Counter

import numpy as np
import pytest

from cpgr.data.scenes import Noun, Program, Scene, SceneObject, denote, express, expressions, judge, parse, sample_scene
from cpgr.data.scenes.programs import KINDS, MARGIN


@pytest.fixture(scope="module")
def made():
    """[(scene, Referring)] of a thousand scenes."""
    out = []
    for k in range(1000):
        rng = np.random.default_rng([9, k])
        scene = sample_scene(rng)
        out += [(scene, item) for item in expressions(scene, rng)]
    return out


def placed(*items):
    """A scene of (category, colour, x, y, side) squares in pixels of 128."""
    objects = []
    for category, colour, x, y, side in items:
        box = (x, y, x + side, y + side)
        points = (x, y, 2, x + side - 1, y, 2, x, y + side - 1, 2, x, y, 2, x, y, 2)
        objects.append(SceneObject(category, colour, "small", "plain", box, side * side, points))
    return Scene(tuple(objects), 128, 128)


def test_round_trip(made):
    assert len(made) > 5000
    for scene, item in made:
        assert parse(item.text) == item.program, item.text
        assert denote(scene, item.program) == [item.index]
        assert judge(scene, item.text, item.index) == (True, True)
        other = (item.index + 1) % len(scene.objects)
        assert judge(scene, item.text, other) == (False, False)


def class_of(scene, noun):
    """Members found one by one from the attributes."""
    slots = ("category", "colour", "pattern", "size")
    return [k for k, item in enumerate(scene.objects)
            if all(getattr(noun, slot) in (None, getattr(item, slot)) for slot in slots)]


def brute_force(scene, program):
    """The one object that the program names by plain comparison of boxes, without margins."""
    group = class_of(scene, program.noun)
    boxes = np.array([scene.objects[k].box for k in group], float)
    x, y = (boxes[:, 0] + boxes[:, 2]) / 2, (boxes[:, 1] + boxes[:, 3]) / 2
    extents = np.array([scene.objects[k].extent for k in group])
    along = {"left": x, "right": -x, "top": y, "bottom": -y}
    if program.kind == "attr":
        return group
    if program.kind == "abs":
        key = np.hypot(x - 64, y - 64) if program.word == "middle" else along[program.word]
        return [group[k] for k in np.flatnonzero(key == key.min())]
    if program.kind == "sup":
        best = extents.max() if program.word in ("biggest", "bigger") else extents.min()
        return [group[k] for k in np.flatnonzero(extents == best)]
    if program.kind == "ord":
        return [group[np.argsort(along[program.word])[program.rank - 1]]]
    landmark, = class_of(scene, program.landmark)
    u, v = scene.centres[landmark]
    dx, dy = x - u, y - v
    box = np.array(scene.objects[landmark].box)
    gap = np.hypot(np.maximum(0, np.maximum(boxes[:, 0] - box[2], box[0] - boxes[:, 2])),
                   np.maximum(0, np.maximum(boxes[:, 1] - box[3], box[1] - boxes[:, 3])))
    apart = 5  # pixels: of two objects drawn over each other neither is left of the other
    holds = {"left": -dx >= np.maximum(apart, abs(dy)), "right": dx >= np.maximum(apart, abs(dy)),
             "above": -dy >= np.maximum(apart, abs(dx)), "below": dy >= np.maximum(apart, abs(dx)), "near": gap <= 10}
    return [k for k, held in zip(group, holds[program.word]) if held and k != landmark]


def test_brute_force_finds_the_same_single_object(made):
    for scene, item in made:
        assert brute_force(scene, item.program) == [item.index], item.text


def test_texts_are_distinct_and_short(made):
    by_scene = {}
    for scene, item in made:
        by_scene.setdefault(id(scene), []).append(item)
        assert 2 <= len(item.text.split()) <= 9
    for items in by_scene.values():
        assert len({item.text for item in items}) == len(items)
        assert 1 <= len({item.index for item in items}) <= 3
    assert np.mean([len(items) / len({item.index for item in items}) for items in by_scene.values()]) > 2.9


def test_mix_of_kinds(made):
    share = {kind: count / len(made) for kind, count in Counter(item.program.kind for _, item in made).items()}
    for kind, wanted in {"attr": 0.30, "abs": 0.32, "rel": 0.20, "sup": 0.14}.items():
        assert abs(share[kind] - wanted) < 0.03
    assert 0.02 < share["ord"] <= 0.045
    words = {word for _, item in made for word in item.text.split()}
    assert len(words) == 69


def test_a_kind_can_be_asked_for():
    rng = np.random.default_rng(0)
    for kind in KINDS:
        found = [express(sample_scene(rng), 0, rng, kind) for _ in range(60)]
        assert {program.kind for _, program in filter(None, found)} == {kind}


def test_nothing_is_said_of_an_object_that_nothing_tells_apart():
    scene = placed(("star", "red", 50, 60, 12), ("star", "red", 52, 61, 12))
    assert express(scene, 0, np.random.default_rng(0)) is None
    assert expressions(scene, np.random.default_rng(0)) == []


def test_referents_can_be_limited():
    rng = np.random.default_rng(1)
    scene = sample_scene(rng)
    found = expressions(scene, rng, referents=1, per_referent=5, among=[2])
    assert {item.index for item in found} == {2} and len(found) == 5


@pytest.mark.parametrize("text, program", [
    ("left red circle", Program("abs", Noun("circle", "red"), "left")),
    ("red circle on the left", Program("abs", Noun("circle", "red"), "left")),
    ("The circle on the far left.", Program("abs", Noun("circle"), "left")),
    ("leftmost striped thing", Program("abs", Noun(None, None, "striped"), "left")),
    ("the one at the top", Program("abs", Noun(), "top")),
    ("circle in the centre", Program("abs", Noun("circle"), "middle")),
    ("circle left of the blue star", Program("rel", Noun("circle"), "left", landmark=Noun("star", "blue"))),
    ("a circle to the right of a star", Program("rel", Noun("circle"), "right", landmark=Noun("star"))),
    ("circle beneath the star", Program("rel", Noun("circle"), "below", landmark=Noun("star"))),
    ("moon next to the big dotted star",
     Program("rel", Noun("moon"), "near", landmark=Noun("star", None, "dotted", "large"))),
    ("biggest star", Program("sup", Noun("star"), "biggest")),
    ("the smaller red one", Program("sup", Noun(None, "red"), "smaller")),
    ("red dotted circle", Program("attr", Noun("circle", "red", "dotted"))),
    ("little circle with stripes", Program("attr", Noun("circle", None, "striped", "small"))),
    ("second star from the left", Program("ord", Noun("star"), "left", 2)),
    ("third from the top star", Program("ord", Noun("star"), "top", 3)),
])
def test_parse(text, program):
    assert parse(text) == program


@pytest.mark.parametrize("text", [
    "", "the", "red", "dog", "red blue circle", "circle circle", "left right circle", "left of the star",
    "circle left of", "second star", "biggest left circle", "circle with", "star from left",
    "triangle to the cyan triangle", "big small cup", "second star from the middle",
])
def test_what_is_no_expression_does_not_parse(text):
    assert parse(text) is None
    assert judge(placed(("star", "red", 5, 5, 12)), text, 0) is None


def test_ranks_closer_than_the_margin_denote_nothing():
    step = round(MARGIN * 128)
    near = placed(("star", "red", 20, 10, 12), ("star", "blue", 20 + step - 1, 80, 12))
    far = placed(("star", "red", 20, 10, 12), ("star", "blue", 20 + step, 80, 12))
    assert denote(near, parse("left star")) == [] and denote(far, parse("left star")) == [0]
    assert judge(near, "red star", 0) == (True, True)
    like = placed(("star", "red", 20, 10, 20), ("star", "blue", 60, 10, 21))
    unlike = placed(("star", "red", 20, 10, 20), ("star", "blue", 60, 10, 22))
    assert denote(like, parse("biggest star")) == [] and denote(unlike, parse("bigger star")) == [1]


def test_a_second_reading_takes_uniqueness_away():
    """One star is clearly left of the moon, another by a steep angle: nobody could be sure which is meant."""
    scene = placed(("moon", "red", 80, 60, 12), ("star", "red", 40, 60, 12), ("star", "blue", 60, 36, 12))
    assert denote(scene, parse("star left of the moon")) == [1, 2]
    assert judge(scene, "star left of the moon", 1) == (True, False)
    assert judge(scene, "red star left of the moon", 1) == (True, True)


def test_order_of_a_relation_matters():
    scene = placed(("moon", "red", 80, 60, 12), ("star", "red", 40, 60, 12))
    assert judge(scene, "star left of moon", 1) == (True, True)
    assert judge(scene, "moon left of star", 0) == (False, False)


def test_classes_of_one_and_of_three():
    one = placed(("moon", "red", 10, 60, 12), ("star", "red", 40, 60, 12))
    assert denote(one, parse("moon on the left")) == [0] and denote(one, parse("moon on the right")) == []
    assert denote(one, parse("biggest moon")) == []
    three = placed(*(("star", "red", x, 60, side) for x, side in ((10, 12), (58, 16), (100, 24))))
    assert denote(three, parse("biggest star")) == [2] and denote(three, parse("bigger star")) == []
    assert denote(three, parse("middle star")) == [1] == denote(three, parse("second star from right"))
