"""An expression's words by their use, and what they name."""

import pytest

from cpgr.data.proposals.coco import COCO_CLASSES
from cpgr.data.proposals.colours import TERMS
from cpgr.data.proposals.names import read_names

NAMES = read_names()


@pytest.mark.parametrize(
    ("text", "head"),
    [
        ("the dog behind the bench", "dog"), ("woman white shirt", "woman"), ("blue tennis ball", "ball"), ("guy with a frisbee", "guy"),
        ("two young boys", "boy"), ("man eating a banana", "man"), ("hand by the white plate", "hand"), ("far left", ""), ("", ""),
        ("a man's hat", "man"), ("several knives", "knife"), ("glockenspiel", "glockenspiel"), ("lady in polka dots", "lady"),
        ("orange on the left", "orange"), ("orange cat", "cat"), ("traffic light", "light"), ("lady with glasses", "lady"),
    ],
)  # fmt: skip
def test_the_word_for_the_thing_itself(text, head):
    assert NAMES.read(text).head == head


def test_colours_places_sizes_and_numbers():
    said = NAMES.read("Second small navy car from the left, near a bus")
    assert (said.head, said.colours, said.places, said.size, said.ordinal, said.plural) == ("car", ("blue",), ((0, 0.0),), -1, 1, False)
    assert said.others == ("bus",)
    assert NAMES.read("tan-colored dog").colours == ("brown",) == NAMES.read("brown dog").colours
    assert NAMES.read("guy in the far back").depth == -1 and NAMES.read("closest zebra").depth == 1
    assert NAMES.read("three dogs").plural and NAMES.read("women").plural and not NAMES.read("shorts").plural
    assert NAMES.read("man with two dogs").plural is False, "the number is another thing's"


def test_what_a_word_names():
    assert NAMES.named("lady", "person") == 1 and NAMES.named("lady", "people") == 0
    assert NAMES.fits("lady", ["people", "person", "dog"]) == [1, 1, 0] and NAMES.fits("crowd", ["people", "person"]) == [1, 0]
    assert NAMES.named("shirt", "shirt") == 1 and NAMES.named("shirt", "person") == 0.5 and NAMES.named("shirt", "dog") == 0
    assert NAMES.named("phone", "cell phone") == NAMES.named("grass", "ground") == 1
    assert NAMES.named("", "") == NAMES.named("", "person") == 0
    assert NAMES.named("circle", "circle") == 1, "a class of another detector names itself"


def test_every_class_and_colour_of_the_list_is_one_there_is():
    known = {*COCO_CLASSES, "people", "head", "shirt", "trousers", "shoes", "ground", "background"}
    said = {name for table in (NAMES.classes, NAMES.owners) for names in table.values() for name in names}
    assert said <= known and set(COCO_CLASSES) <= said
    assert {name for names in NAMES.colours.values() for name in names} == set(TERMS)
