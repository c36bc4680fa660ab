"""Tokenizers and text models by name, and words a pretrained vocabulary does not hold."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import CpgrError

BUILTIN = Path(__file__).parent / "builtin"


def located(name: str, builtin: str) -> str:
    """A model's name or folder, `builtin` standing for the weights shipped with the package."""
    return str(BUILTIN / builtin) if name == "builtin" else name


@contextmanager
def opened(*names: str):
    """Around the loading of checkpoints: one that is not there is a mistake the user can mend."""
    try:
        yield
    except (OSError, ImportError) as error:
        first = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise CpgrError(f"{', '.join(names)}: cannot be loaded: {first[:300]} (cpgr doctor --config says what a run lacks and where to get it)") from error


def clean(text: str) -> str:
    """Lower case, punctuation that expressions carry no meaning in removed (RegionBLIP's rule), one space."""
    return re.sub(r"\s+", " ", re.sub(r"[.!\"()*#:;~?]", " ", text.lower())).strip()


def extend(tokenizer, texts: Iterable[str], least: int = 2) -> int:
    """Add the words that occur `least` times and that the tokenizer breaks up; returns how many were added.

    Their embeddings start afresh: resize the model's embeddings after this.
    """
    counts = Counter(word for text in texts for word in clean(text).split())
    known = tokenizer.get_vocab()
    new = [w for w, n in sorted(counts.items()) if n >= least and w not in known and _broken(tokenizer, w)]
    return tokenizer.add_tokens(new)


def _broken(tokenizer, word: str) -> bool:
    pieces = tokenizer.tokenize(word)
    return len(pieces) != 1 or pieces[0] == tokenizer.unk_token


def batches(items, size: int) -> Iterator[list]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
