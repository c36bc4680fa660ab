"""The words of an expression against a region: each kind of word moves the choice, and a name weighs the most."""

from dataclasses import replace

import numpy as np
import pytest

from cpgr.labels import Label
from cpgr.refinement.text_match import TextMatch
from cpgr.refinement.words import WordConfig, WordFit


def region(j, category, box, score=0.8, colour=()):
    return Label("1", "1.jpg", 200, 100, box, kind="proposal", region_id=j, category=category, attributes=list(colour), scores={"detector": score})


REGIONS = [
    region(0, "person", [10, 10, 40, 90], 0.9, ["red"]),
    region(1, "person", [80, 40, 100, 70], 0.8, ["blue"]),
    region(2, "person", [150, 10, 180, 95], 0.85, ["blue"]),
    region(3, "dog", [45, 60, 75, 95], 0.5, ["brown"]),
    region(4, "people", [10, 10, 180, 95], 0.85, ["grey"]),
    region(5, "shirt", [10, 22, 40, 54], 0.9, ["red"]),
    region(6, "ground", [0, 33, 200, 100], 0.05, ["green"]),
]


def choice(text, config=None, regions=REGIONS, text_match=None):
    return int(WordFit(config or WordConfig(), text_match or TextMatch()).scores([text], regions)[0].argmax())


@pytest.mark.parametrize(
    ("text", "chosen"),
    [
        ("the puppy", 3), ("three people", 4), ("left man", 0), ("woman on the right", 2), ("lady in the middle", 1), ("grass", 6),
        ("guy in blue", 2), ("woman in red", 0), ("second boy from left", 1), ("man in the far back", 1), ("red jacket", 5), ("boy near the dog in red", 0),
    ],
)  # fmt: skip
def test_choices(text, chosen):
    assert choice(text) == chosen


def test_clothes_are_their_wearers_where_no_region_has_their_name():
    assert choice("red jacket", regions=REGIONS[:4]) == 0
    assert choice("blue dress on the right", regions=REGIONS[:4]) == 2


def test_a_weight_of_nothing_leaves_its_words_out():
    silent = replace(WordConfig(), place=0, colour=0, depth=0, size=0, ordinal=0, near=0)
    assert choice("woman on the right", silent) == choice("woman", silent) == choice("woman in red far back", silent)
    with_dog = WordFit(replace(silent, near=3.0), TextMatch()).scores(["man with a dog"], REGIONS)[0]
    without = WordFit(silent, TextMatch()).scores(["man with a dog"], REGIONS)[0]
    # Distance of centres in sides of the frame: the far person loses more.
    assert float((without - with_dog)[2]) > float((without - with_dog)[0]) > 0


def test_vectors_know_words_of_no_list(tmp_path):
    words, vectors = ["schnauzer", "dog", "man"], np.array([[1, 0.1], [1, 0], [0, 1]], np.float32)
    np.savez(tmp_path / "own.npz", words=np.array(words), vectors=vectors)
    known = TextMatch(f"vectors:{tmp_path / 'own.npz'}")
    assert choice("schnauzer", WordConfig(vectors=1.0), REGIONS[:4], known) == 3
    assert choice("schnauzer", WordConfig(vectors=0.0, nobody=0.0), REGIONS[:4], known) != 3


def test_regions_without_class_or_score_are_ranked_as_well():
    bare = [Label("1", "1.jpg", 200, 100, [0, 0, 200, 100], region_id=0, kind="proposal", scores={"detector": 0.0})]
    scores = WordFit(WordConfig(), TextMatch()).scores(["", "a dog", "日本"], bare)
    assert scores.shape == (3, 1) and bool(scores.isfinite().all())
