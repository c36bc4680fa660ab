"""How alike two texts are: the score that CPL's real-query propagation pairs by (reference section 2.2)."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from ..errors import CpgrError
from ..language import read_vectors
from ..vocabulary import batches, clean

WIDTH = 512


class TextMatch:
    """Unit text vectors whose dot product is the similarity.

    `words`: mean of one fixed random vector a word and, for word order, one a pair of neighbours; needs no file.
    `vectors:FILE`: mean of word vectors from a .npz with `words` and `vectors` (GloVe, word2vec), as CPL.
    `transformers:NAME_OR_FOLDER`: mean of a text encoder's last states.
    """

    def __init__(self, spec: str = "words", pairs: float = 0.5):
        kind, _, name = spec.partition(":")
        self.pairs = pairs
        if kind == "words":
            self._known: dict[str, np.ndarray] = {}
            self.embed_batch = self._hashed
        elif kind == "vectors" and name:
            self._known = read_vectors(Path(name))
            self.embed_batch = self._mean
        elif kind == "transformers" and name:
            from transformers import AutoModel, AutoTokenizer

            self.tokenizer, self.encoder = AutoTokenizer.from_pretrained(name), AutoModel.from_pretrained(name).eval()
            self.embed_batch = self._encoded
        else:
            raise CpgrError(f"unknown text match {spec!r}: give words, vectors:FILE or transformers:NAME_OR_FOLDER")

    def embed(self, texts: Sequence[str]) -> dict[str, torch.Tensor]:
        """Unit vectors by text; a text with no known word is the zero vector, alike to nothing."""
        unique = list(dict.fromkeys(texts))
        rows = [row for chunk in batches(unique, 256) for row in self.embed_batch([clean(t) for t in chunk])]
        return {t: torch.nn.functional.normalize(torch.as_tensor(r, dtype=torch.float32), dim=0) for t, r in zip(unique, rows, strict=True)}

    def _vector(self, token: str) -> np.ndarray:
        if token not in self._known:
            seed = int.from_bytes(hashlib.sha256(token.encode()).digest()[:8], "little")
            self._known[token] = np.random.default_rng(seed).standard_normal(WIDTH).astype(np.float32) / WIDTH**0.5
        return self._known[token]

    def _hashed(self, texts):
        for text in texts:
            words = [w for w in text.split() if w not in ("the", "a", "an")]
            total = np.zeros(WIDTH, np.float32)
            for word in words:
                total += self._vector(word)
            for first, second in zip(words, words[1:], strict=False):
                total += self.pairs * self._vector(f"{first} {second}")
            yield total

    def _mean(self, texts):
        width = len(next(iter(self._known.values())))
        for text in texts:
            known = [self._known[w] for w in text.split() if w in self._known]
            yield np.mean(known, 0) if known else np.zeros(width, np.float32)

    @torch.no_grad()
    def _encoded(self, texts):
        batch = self.tokenizer(texts, padding=True, truncation=True, max_length=64, return_tensors="pt")
        states, mask = self.encoder(**batch).last_hidden_state, batch["attention_mask"][..., None]
        yield from (states * mask).sum(1) / mask.sum(1)
