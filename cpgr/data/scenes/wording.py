"""From programs to words: several surface forms each."""

from .programs import Noun, Program

SIZE_WORDS = {"small": ("small", "small", "little"), "medium": ("medium",), "large": ("large", "large", "big")}
OPEN_WORDS = ("thing", "one")  # for a category left open
WITH = {"striped": "stripes", "dotted": "dots"}
RANKS = {2: "second", 3: "third"}

# "{}" is the noun phrase. A direction's own word fills "{d}".
_SIDE = ("{d} {}", "{d} {}", "{} on the {d}", "{} on {d}", "{} to the {d}", "far {d} {}", "{d}most {}", "{} {d}")
_ENDS = ("{d} {}", "{d} {}", "{} at the {d}", "{} at {d}", "{} on the {d}")
ABSOLUTE = {"left": _SIDE, "right": _SIDE, "top": _ENDS + ("upper {}",), "bottom": _ENDS + ("lower {}",),
            "middle": ("middle {}", "center {}", "{} in the middle", "{} in the center", "{} in middle")}
RELATIVE = {"left": ("left of", "left of", "to the left of", "on the left of"),
            "right": ("right of", "right of", "to the right of", "on the right of"),
            "above": ("above", "above", "over"), "below": ("below", "below", "under"),
            "near": ("next to", "next to", "near", "by", "beside")}
DEGREE = {"biggest": ("biggest", "biggest", "largest"), "smallest": ("smallest",), "bigger": ("bigger", "larger"),
          "smaller": ("smaller",)}
ORDINAL = ("{r} {} from the {d}", "{r} {} from {d}", "{} {r} from the {d}", "{} {r} from {d}")


def pick(rng, options):
    """One of the options, evenly."""
    return options[int(rng.random() * len(options))]


def noun_phrase(noun: Noun, rng, plain: bool = False) -> str:
    """`large striped red circle`, now and then `red circle with stripes`; no article. plain: never a tail."""
    head = noun.category or pick(rng, OPEN_WORDS)
    tail = not plain and noun.pattern in WITH and rng.random() < 0.18
    words = [pick(rng, SIZE_WORDS[noun.size])] if noun.size else []
    if noun.pattern and not tail:
        words.append(noun.pattern)
    if noun.colour:
        words.append(noun.colour)
    words.append(head)
    if tail:
        words += ["with", WITH[noun.pattern]]
    return " ".join(words)


def word(program: Program, rng) -> str:
    """One wording of the program."""
    kind = program.kind
    phrase = noun_phrase(program.noun, rng, plain=kind != "attr")
    if kind == "abs":
        text = pick(rng, ABSOLUTE[program.word]).replace("{d}", program.word).replace("{}", phrase)
    elif kind == "rel":
        article = "the " if rng.random() < 0.6 else ""
        text = f"{phrase} {pick(rng, RELATIVE[program.word])} {article}{noun_phrase(program.landmark, rng, plain=True)}"
    elif kind == "sup":
        text = f"{pick(rng, DEGREE[program.word])} {phrase}"
    elif kind == "ord":
        text = pick(rng, ORDINAL).replace("{r}", RANKS[program.rank]).replace("{d}", program.word)
        text = text.replace("{}", phrase)
    else:
        text = phrase
    return f"the {text}" if rng.random() < 0.25 or " " not in text else text
