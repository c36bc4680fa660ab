"""What people say for a detector's classes and colours (`names.txt`), and an expression's words by their use.

It is a reading by word lists, not a parser: where a preposition stands, what follows is taken to be about another
thing. Words of no list are kept as they are; a text encoder may know them (`refinement/words.py`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from .coco import COCO_CLASSES
from .regions import plural

FILE = Path(__file__).with_name("names.txt")
PERSON = "person"
BELONGING = 0.5  # how surely "shirt" names the person who wears it

# Where the words about the thing itself end.
_CUT = frozenset(
    "of in on at by with without near next behind beside beneath under below above over between among from to into onto toward towards "
    "against across along around through that who which whose is are was has have wearing holding having and while as off out".split()
)
_PLACES = {
    "left": (0, 0.0), "leftmost": (0, 0.0), "right": (0, 1.0), "rightmost": (0, 1.0), "top": (1, 0.0), "upper": (1, 0.0), "bottom": (1, 1.0),
    "lower": (1, 1.0), "middle": (0, 0.5), "center": (0, 0.5), "centre": (0, 0.5), "central": (0, 0.5), "mid": (0, 0.5),
}  # fmt: skip
_DEPTHS = dict.fromkeys("front closest nearest closer nearer near foreground close first".split(), 1.0) | dict.fromkeys(
    "back behind rear background far farthest furthest farther distant".split(), -1.0
)
_SIZES = dict.fromkeys("big bigger biggest large larger largest huge giant tall taller tallest long main".split(), 1.0) | dict.fromkeys(
    "small smaller smallest little tiny short shorter shortest littlest".split(), -1.0
)
_NUMBERS = frozenset("two three four five six seven eight nine ten several many some both group pair couple row bunch all lots crowd few".split())
_ORDINALS = {"second": 1, "2nd": 1, "third": 2, "3rd": 2, "fourth": 3, "4th": 3, "fifth": 4, "5th": 4}
_FILLERS = frozenset(
    "a an the this that one ones thing things it its his their side corner end part piece picture image photo pic view camera very most only "
    "just half edge young old older younger other another".split()
)


@dataclass(frozen=True)
class Reading:
    """The words of an expression by their use.

    head: the word for the thing itself, singular where the plural is known, "" where there is none; others: the
    remaining content words; colours: terms of `colours.TERMS`; places: (axis, 0 the near to 1 the far end); depth and
    size: 1 near or big, -1 far or small, 0 unsaid; ordinal: 1 second, 2 third, ..., -1 unsaid; plural: several are meant.
    """

    head: str = ""
    others: tuple[str, ...] = ()
    colours: tuple[str, ...] = ()
    places: tuple[tuple[int, float], ...] = ()
    depth: float = 0.0
    size: float = 0.0
    ordinal: int = -1
    plural: bool = False


@dataclass
class Names:
    """`classes`: word -> the classes it names; `owners`: word -> the classes it is a part or belonging of."""

    classes: dict[str, set[str]] = field(default_factory=dict)
    owners: dict[str, set[str]] = field(default_factory=dict)
    plurals: dict[str, str] = field(default_factory=dict)
    colours: dict[str, set[str]] = field(default_factory=dict)

    def knows(self, word: str) -> bool:
        return word in self.classes or word in self.owners

    def named(self, word: str, category: str) -> float:
        """How surely `word` names a region of the class: 1, BELONGING or 0."""
        if category in self.classes.get(word, ()) or word == category != "":
            return 1.0
        return BELONGING if category in self.owners.get(word, ()) else 0.0

    def fits(self, word: str, categories: list[str]) -> list[float]:
        """`named` of the classes of one image's regions; a group ("dogs" beside "dog") has its members' names too."""
        members = groups(categories)
        return [max(self.named(word, one) for one in {name, members.get(name, name)}) for name in categories]

    def singular(self, word: str) -> tuple[str, bool]:
        """The word as the list has it, and whether it was a plural."""
        if word in self.plurals:
            return self.plurals[word], True
        if self.knows(word) or not word.endswith("s") or word.endswith(("ss", "us")):
            return word, False
        for form in (word[:-1], word[:-2] if word.endswith("es") else "", word[:-3] + "y" if word.endswith("ies") else ""):
            if form and self.knows(form):
                return form, True
        return word[:-1], True

    def read(self, text: str) -> Reading:
        """The words of `text` by their use."""
        colours: list[str] = []
        places: list[tuple[int, float]] = []
        content: list[str] = []
        own_names: list[str] = []  # colour words that name a class as well
        depth = size = 0.0
        ordinal, several, own, cut = -1, False, 0, False
        for word in re.findall(r"[a-z0-9][a-z0-9'-]*", text.lower()):
            word = re.sub("('s|-?colou?red)$", "", word)
            if word in _CUT or (word.endswith("ing") and content and not self.knows(word)):
                cut = cut or bool(content)
                depth = depth or (_DEPTHS.get(word, 0.0) if not content else 0.0)
            elif word in _PLACES:
                places.append(_PLACES[word])
            elif word in _DEPTHS:
                depth = depth or _DEPTHS[word]
            elif word in _SIZES:
                size = size or (0.0 if cut else _SIZES[word])
            elif word in _ORDINALS:
                ordinal = _ORDINALS[word]
            elif word in self.colours:
                colours += sorted(self.colours[word])
                own_names += [word] if self.knows(word) else []
            elif word in _NUMBERS or word.isdigit():
                several = several or not cut
                content += [word] if self.knows(word) else []
            elif word and word not in _FILLERS:
                content.append(word)
            own = own if cut else len(content)
        if not content:  # "the orange"
            content = own_names
        singulars = [self.singular(word) for word in content]
        words = [word for word, _ in singulars]
        at = self._head(words[: own or len(words)])
        head, many = singulars[at] if singulars else ("", False)
        return Reading(
            head, tuple(word for i, word in enumerate(words) if i != at), tuple(dict.fromkeys(colours)), tuple(dict.fromkeys(places)),
            depth, size, ordinal, several or many,
        )  # fmt: skip

    def _head(self, words: list[str]) -> int:
        """Whoever is named comes first ("woman white shirt"); of a compound the last word counts ("tennis ball")."""
        for i, word in enumerate(words):
            if PERSON in self.classes.get(word, ()):
                return i
        known = [i for i, word in enumerate(words) if self.knows(word)]
        return known[-1] if known else len(words) - 1


def groups(categories: list[str]) -> dict[str, str]:
    """The group words that may stand beside these classes, each with its members' class."""
    return {plural(name): name for name in categories if name and plural(name) != name}


@cache
def read_names(path: Path = FILE) -> Names:
    """The list in `path`; every class and colour term names itself, a class of two words by the last of them too."""
    names, section = Names(), ""
    for line in path.read_text(encoding="utf-8").splitlines():
        line = line.partition("#")[0].strip()
        if line.startswith("["):
            section = line.strip("[]")
        elif match := re.fullmatch(r"([^=>]+)([=>])(.*)", line):
            name, kind, words = match[1].strip(), match[2], [word.strip() for word in match[3].split(",")]
            if section == "plurals":
                names.plurals[name] = words[0]
                continue
            table = names.colours if section == "colours" else names.owners if kind == ">" else names.classes
            for word in words if kind == ">" else [name, name.split()[-1], *words]:
                table.setdefault(word, set()).add(name)
    for name in COCO_CLASSES:  # those of which nothing else is said
        names.classes.setdefault(name.split()[-1], set()).add(name)
    return names
