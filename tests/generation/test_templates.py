"""Templates: their forms on layouts checked by hand, and their uniqueness by a judge that reads the texts back."""

import random
from dataclasses import replace
from math import hypot

import pytest

from cpgr.generation.templates import TemplateConfig, templates
from cpgr.labels import Label, LabelTable

SIDE = 128
CLASSES = ("circle", "tea cup")
ATTRIBUTES = ("red", "blue", "striped", "large", "small")
EVERYTHING = TemplateConfig(per_region=100, ordinal=True, depth=True)


def region(index, centre, category="circle", attributes=(), half=6):
    x, y = centre
    return Label(
        "a", "a.jpg", SIDE, SIDE, [x - half, y - half, x + half, y + half],
        kind="proposal", region_id=index, category=category, attributes=list(attributes), spatial="left", scores={"detector": 0.9},
    )  # fmt: skip


def texts_of(rows, config=EVERYTHING, seed=0):
    found = {index: set() for index in range(len(rows))}
    for label in templates(LabelTable(rows), config, random.Random(seed)):
        found[label.region_id].add(label.expression)
    return found


class Judge:
    """What a text is true of, read literally and without margins."""

    def __init__(self, rows):
        self.rows = rows
        self.boxes = [row.box for row in rows]
        self.centres = [((b[0] + b[2]) / 2, (b[1] + b[3]) / 2) for b in self.boxes]
        self.areas = [(b[2] - b[0]) * (b[3] - b[1]) for b in self.boxes]

    def noun(self, text):
        category = next(name for name in CLASSES if text.endswith(name))
        words = text.removesuffix(category).split()
        assert all(word in ATTRIBUTES for word in words), text
        return [i for i, row in enumerate(self.rows) if row.category == category and set(words) <= set(row.attributes)]

    def true_of(self, text):
        for phrase, holds in self.RELATIONS.items():
            if f" {phrase} the " in text:
                figure, ground = text.split(f" {phrase} the ")
                landmark = self.noun(ground)
                assert len(landmark) == 1, f"{ground} is no single region"
                return [i for i in self.noun(figure) if i != landmark[0] and holds(self, i, landmark[0])]
        if " from the " in text:
            head, side = text.split(" from the ")
            rank, _, noun = head.partition(" ")
            order = sorted(self.noun(noun), key=self.key(side))
            return [order[["first", "second", "third", "fourth", "fifth"].index(rank)]]
        for down in ("top", "bottom"):
            for across in ("left", "right"):
                if f"{down} {across}" in text:
                    noun = text.removeprefix(f"{down} {across} ").removesuffix(f" at the {down} {across}")
                    return [i for i in self.noun(noun) if self.inside(i, down) and self.inside(i, across)]
        for word in ("left", "right", "top", "bottom", "middle"):
            for noun in self.stripped(text, f"{word} ", f" on the {word}", f" at the {word}", f" in the {word}"):
                group = self.noun(noun)
                if len(group) == 1:
                    return group if self.inside(group[0], word) else []
                return self.first(group, self.key(word))
        for words, sign in ((("biggest ", "bigger ", "front "), -1), (("smallest ", "smaller ", " behind"), 1)):
            for noun in self.stripped(text, *words):
                group = self.noun(noun)
                assert "gger " not in text and "aller " not in text or len(group) == 2, text
                return self.first(group, lambda i: sign * self.areas[i])
        return self.noun(text)

    @staticmethod
    def stripped(text, *affixes):
        fits = (a for a in affixes if (text.endswith(a) if a[0] == " " else text.startswith(a)))
        return [text.removeprefix(a).removesuffix(a) for a in fits]

    @staticmethod
    def first(group, key):
        return [i for i in group if key(i) == min(map(key, group))]

    def key(self, word):
        x, y = (lambda i: self.centres[i][0]), (lambda i: self.centres[i][1])
        middle = lambda i: hypot(x(i) - SIDE / 2, y(i) - SIDE / 2)  # noqa: E731
        return {"left": x, "right": lambda i: -x(i), "top": y, "bottom": lambda i: -y(i), "middle": middle}[word]

    def inside(self, i, word):
        x, y = (c / SIDE for c in self.centres[i])
        middle = max(abs(x - 0.5), abs(y - 0.5)) < 0.25
        return {"left": x < 0.5, "right": x > 0.5, "top": y < 0.5, "bottom": y > 0.5, "middle": middle}[word]

    def near(self, i, j):
        a, b = self.boxes[i], self.boxes[j]
        gaps = (max(a[k] - b[k + 2], b[k] - a[k + 2], 0) for k in (0, 1))
        return hypot(*gaps) <= 10 / 128 * SIDE

    def holds(self, i, j):
        a, b = self.boxes[i], self.boxes[j]
        sides = [min(a[k + 2], b[k + 2]) - max(a[k], b[k]) for k in (0, 1)]
        return min(sides) > 0 and sides[0] * sides[1] > 0.5 * self.areas[j]

    RELATIONS = {
        "to the left of": lambda s, i, j: s.centres[i][0] < s.centres[j][0],
        "to the right of": lambda s, i, j: s.centres[i][0] > s.centres[j][0],
        "left of": lambda s, i, j: s.centres[i][0] < s.centres[j][0],
        "right of": lambda s, i, j: s.centres[i][0] > s.centres[j][0],
        "above": lambda s, i, j: s.centres[i][1] < s.centres[j][1],
        "below": lambda s, i, j: s.centres[i][1] > s.centres[j][1],
        "next to": near,
        "with": holds,
    }


def scene(seed):
    rng = random.Random(seed)
    rows = []
    for index in range(rng.randint(1, 9)):
        words = [rng.choice(options) for options in (("large", "small", ""), ("striped", ""), ("red", "blue"))]
        centre, half = (rng.uniform(0, SIDE), rng.uniform(0, SIDE)), rng.uniform(3, 25)
        row = region(index, centre, rng.choice(CLASSES), [word for word in words if word], half)
        row.box = [min(max(v, 0), SIDE) for v in row.box]
        rows.append(row)
    return rows


def test_every_text_is_true_of_its_region_alone():
    judged = 0
    for seed in range(150):
        rows = scene(seed)
        judge = Judge(rows)
        for label in templates(LabelTable(rows), EVERYTHING, random.Random(seed)):
            assert judge.true_of(label.expression) == [label.region_id], (seed, label.expression)
            judged += 1
    assert judged > 5000


def test_without_unique_a_text_may_fit_several_but_always_its_own():
    config = TemplateConfig(per_region=100, ordinal=True, unique=False)
    shared = 0
    for seed in range(40):
        rows = scene(seed)
        judge = Judge(rows)
        for label in templates(LabelTable(rows), config, random.Random(seed)):
            found = judge.true_of(label.expression)
            assert label.region_id in found, (seed, label.expression)
            shared += len(found) > 1
    assert shared > 100


def test_two_of_a_class():
    rows = [region(0, (20, 64), attributes=["red"]), region(1, (100, 64), attributes=["blue"], half=9)]
    assert texts_of(rows)[0] == {
        "red circle", "left circle", "circle on the left", "left red circle", "red circle on the left",
        "smaller circle", "circle behind",
        "circle left of the blue circle", "circle to the left of the blue circle",
        "red circle left of the blue circle", "red circle to the left of the blue circle",
    }  # fmt: skip


def test_on_the_left_is_said_only_of_what_is_there():
    # Both lie in the right half: the left one of them is not "on the left".
    texts = texts_of([region(0, (75, 64)), region(1, (115, 64))])
    assert "left circle" in texts[0] and "circle on the left" not in texts[0]
    # Two of the three lie in the left half, so that "on the left" could be either.
    texts = texts_of([region(0, (15, 64)), region(1, (45, 64)), region(2, (110, 64))])
    assert "left circle" in texts[0] and "circle on the left" not in texts[0]
    assert "circle on the right" in texts[2]


def test_ordinals_comparison_and_containment():
    rows = [region(i, (15 + 30 * i, 64), half=4 + 2 * i) for i in range(4)] + [region(4, (105, 60), "tea cup", half=3)]
    texts = texts_of(rows)
    assert "second circle from the left" in texts[1] and "second circle from the right" in texts[2]
    assert {"biggest circle", "front circle", "circle with the tea cup", "right circle"} <= texts[3]
    assert {"smallest circle", "circle behind"} <= texts[0]
    assert {"tea cup", "right tea cup"} <= texts[4]
    assert not any("second" in text for text in texts_of(rows, TemplateConfig(per_region=100))[1])


def test_a_landmark_must_be_one_of_a_kind():
    rows = [region(0, (20, 64)), region(1, (60, 64), "tea cup"), region(2, (100, 20), "tea cup", ["red"])]
    texts = texts_of(rows)[0]
    assert "circle left of the red tea cup" in texts and "circle left of the tea cup" not in texts


def test_what_may_hold_of_another_as_well_is_not_said():
    # The tea cup lies inside the left circle, and more than half of it inside the right one.
    rows = [region(0, (40, 64), half=20), region(1, (74, 64), half=20), region(2, (55, 64), "tea cup", half=4)]
    rows[1].box[0] = 54
    assert "circle with the tea cup" not in texts_of(rows)[0]
    rows[1].box[0] = 60
    assert "circle with the tea cup" in texts_of(rows)[0]


def test_what_nothing_tells_apart_gets_no_text():
    rows = [region(0, (50, 64), attributes=["red"]), region(1, (52, 65), attributes=["red"])]
    assert texts_of(rows) == {0: set(), 1: set()}


def test_the_whole_image_has_no_words_and_an_empty_image_no_labels():
    whole = Label("a", "a.jpg", SIDE, SIDE, [0, 0, SIDE, SIDE], kind="proposal", region_id=0, scores={"detector": 0.0})
    assert templates(LabelTable([whole]), EVERYTHING, random.Random(0)) == []
    assert templates(LabelTable(), EVERYTHING, random.Random(0)) == []


def test_labels_carry_their_proposal():
    row = region(0, (20, 64), "fire hydrant", ["old"])
    label = templates(LabelTable([row]), TemplateConfig(), random.Random(0))[0]
    assert (label.kind, label.region_id, label.box, label.category, label.attributes) == ("template", 0, row.box, "fire hydrant", ["old"])
    assert (label.scores, label.spatial, label.file_name, label.kept) == (row.scores, "left", "a.jpg", True)
    assert row.expression == "" and row.kind == "proposal"


def kind_of(text):
    if " of the " in text or " above " in text:
        return "relation"
    if text.split()[0] in ("left", "top") or " on the " in text or " at the " in text:
        return "position"
    return "comparison" if "smaller" in text else "attribute"


def test_the_cut_is_fair_distinct_and_repeatable():
    rows = [region(0, (20, 30), attributes=["large", "striped", "red"]), region(1, (100, 90), attributes=["blue"], half=9)]
    config = TemplateConfig(per_region=4)
    counts = {"position": 0, "relation": 0, "comparison": 0, "attribute": 0}
    for seed in range(100):
        labels = templates(LabelTable(rows), config, random.Random(seed))
        assert labels == templates(LabelTable(rows), config, random.Random(seed))
        mine = [label.expression for label in labels if label.region_id == 0]
        assert len(mine) == len(set(mine)) == 4
        for text in mine:
            counts[kind_of(text)] += 1
    # Four kinds for four texts: each comes every time, however many texts it has.
    assert counts == dict.fromkeys(counts, 100)


@pytest.mark.parametrize(
    "off, gone",
    [
        ("attributes", "red"), ("position", "left circle"), ("comparison", "smaller"),
        ("relation", " of the "), ("ordinal", " from "), ("depth", "behind"),
    ],
)
def test_each_kind_can_be_left_out(off, gone):
    rows = [region(0, (20, 64), attributes=["red"]), region(1, (60, 64), attributes=["blue"], half=9), region(2, (100, 64), "tea cup")]
    rows += [region(3, (60, 20), half=9), region(4, (90, 100), half=9)]
    every = texts_of([rows[0], rows[1], rows[2]])
    config = replace(EVERYTHING, **{off: False})
    assert not any(gone in text for texts in texts_of(rows, config).values() for text in texts)
    if off != "ordinal":
        assert any(gone in text for texts in every.values() for text in texts)
