"""From words to programs: understands every form of `wording` and the usual templates around it."""

import re
from functools import lru_cache

from .programs import Noun, Program
from .vocabulary import CATEGORIES, COLOURS, PATTERNS
from .wording import DEGREE, OPEN_WORDS, RANKS, SIZE_WORDS, WITH

_ARTICLES = {"the", "a", "an"}
_SLOTS = {
    **{name: ("colour", name) for name in COLOURS},
    **{name: ("pattern", name) for name in PATTERNS},
    **{spoken: ("size", size) for size, options in SIZE_WORDS.items() for spoken in options},
}
_HEADS = {**{name: name for name in CATEGORIES}, **{name: None for name in (*OPEN_WORDS, "object")}}
_TAILS = {spoken: pattern for pattern, spoken in WITH.items()}
_PLACES = {"left": "left", "leftmost": "left", "right": "right", "rightmost": "right", "top": "top", "upper": "top",
           "bottom": "bottom", "lower": "bottom", "middle": "middle", "center": "middle", "centre": "middle",
           "central": "middle"}
_DEGREES = {spoken: degree for degree, options in DEGREE.items() for spoken in options}
_RANKS = {spoken: rank for rank, spoken in RANKS.items()}
_RELATIONS = {"above": "above", "over": "above", "below": "below", "under": "below", "beneath": "below",
              "underneath": "below", "near": "near", "by": "near", "beside": "near"}


@lru_cache(maxsize=65536)
def parse(text: str) -> Program | None:
    """The program of an expression, or None when it is not understood. Articles, case and punctuation do not matter."""
    tokens = [token for token in re.findall(r"[a-z]+", text.lower()) if token not in _ARTICLES]
    return _relation(tokens) or _ordinal(tokens) or _single(tokens)


def _cut(tokens):
    """(start, end, relation) of the first relation phrase, or None."""
    for at, token in enumerate(tokens):
        after = tokens[at + 1] if at + 1 < len(tokens) else None
        if token in ("left", "right") and after == "of":
            start = at - 1 if at and tokens[at - 1] in ("to", "on") else at
            return start, at + 2, token
        if token == "next" and after == "to":
            return at, at + 2, "near"
        if token in _RELATIONS:
            return at, at + 1, _RELATIONS[token]
    return None


def _relation(tokens):
    cut = _cut(tokens)
    if cut is None:
        return None
    noun, landmark = _noun(tokens[:cut[0]]), _noun(tokens[cut[1]:])
    return Program("rel", noun, cut[2], landmark=landmark) if noun and landmark else None


def _ordinal(tokens):
    """second circle from left | circle second from left | second from left circle."""
    if "from" not in tokens:
        return None
    at = tokens.index("from")
    direction = _PLACES.get(tokens[at + 1]) if at + 1 < len(tokens) else None
    rest = tokens[:at] + tokens[at + 2:]
    ranks = [token for token in rest if token in _RANKS]
    noun = _noun([token for token in rest if token not in _RANKS])
    if len(ranks) != 1 or noun is None or direction in (None, "middle"):
        return None
    return Program("ord", noun, direction, _RANKS[ranks[0]])


def _single(tokens):
    """A noun phrase with at most one position or degree."""
    tokens, place = _without_place(tokens)
    degrees = [_DEGREES[token] for token in tokens if token in _DEGREES]
    noun = _noun([token for token in tokens if token not in _DEGREES])
    if noun is None or place == "" or len(degrees) + (place is not None) > 1:
        return None
    if degrees:
        return Program("sup", noun, degrees[0])
    return Program("abs", noun, place) if place else Program("attr", noun)


def _without_place(tokens):
    """The other tokens and the position: None when there is none, "" when there are two."""
    at = [k for k, token in enumerate(tokens) if token in _PLACES]
    if len(at) != 1:
        return tokens, "" if at else None
    start = end = at[0]
    if end == len(tokens) - 1 and start and tokens[start - 1] in ("on", "at", "in", "to"):
        start -= 1
    elif start and tokens[start - 1] == "far":
        start -= 1
        if start and tokens[start - 1] in ("on", "at", "to"):
            start -= 1
    return tokens[:start] + tokens[end + 1:], _PLACES[tokens[end]]


def _noun(tokens):
    """Noun of adjectives before one head word, perhaps with "with stripes" behind it; None for anything else."""
    slots = {}
    tokens = list(tokens)
    if len(tokens) > 2 and tokens[-2] == "with" and tokens[-1] in _TAILS:
        slots["pattern"] = _TAILS[tokens[-1]]
        tokens = tokens[:-2]
    if not tokens or tokens[-1] not in _HEADS:
        return None
    head = _HEADS[tokens[-1]]
    for token in tokens[:-1]:
        slot = _SLOTS.get(token)
        if slot is None or slots.setdefault(*slot) != slot[1]:
            return None
    return Noun(head, **slots)
