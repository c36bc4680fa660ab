"""RefCLIP's and SimREC's language encoder: words of the data set, a GRU, self-attention, attention pooling.

Written from a description of the published ones; MCAN (CVPR 2019) is where blocks and pooling come from.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from .errors import DataError

log = logging.getLogger("cpgr")

PAD, UNKNOWN = 0, 1
SPECIAL = ("PAD", "UNK", "CLS")  # published ids 0, 1, 2; the last is never used
HIDDEN = -1e9


def split_words(text: str) -> list[str]:
    """Lower case, punctuation removed, hyphens and slashes between words (RefCLIP's and SimREC's rule)."""
    return re.sub(r"[-/]", " ", re.sub(r"[.,'!?\"()*#:;]", "", text.lower())).split()


class Words:
    """The numbers of a data set's words: three special ones, then words in the order in which they are first seen."""

    def __init__(self, words: Sequence[str]):
        self.words = list(words)
        self.ids = {word: index for index, word in enumerate(self.words)}

    @classmethod
    def of(cls, texts: Iterable[str]) -> Words:
        """The words of `texts`."""
        return cls(list(dict.fromkeys([*SPECIAL, *(word for text in texts for word in split_words(text))])))

    def __len__(self) -> int:
        return len(self.words)

    def encode(self, texts: Sequence[str], longest: int) -> torch.Tensor:
        """[N, longest] word numbers, cut and padded on the right; a word that is not known is `UNKNOWN`."""
        out = torch.full((len(texts), longest), PAD)
        for row, text in zip(out, texts, strict=True):
            found = [self.ids.get(word, UNKNOWN) for word in split_words(text)[:longest]]
            row[: len(found)] = torch.tensor(found, dtype=torch.long)
        return out


@dataclass
class LanguageConfig:
    """The language encoder; the defaults are RefCLIP's for RefCOCO.

    Attributes:
        vectors: File of word vectors (.npz of `words` and `vectors`); empty: the vectors are learned from the start.
        word_width: Width of learned word vectors.
        freeze_words: Keep the vectors of a file as they are.
        width: Width of the GRU and of the expression's vector.
        layers: Self-attention blocks (3; 1 for ReferIt).
        heads: Attention heads.
        ffn: Width of the feed-forward parts.
        dropout: Dropout of attention, feed-forward parts and pooling.
        max_words: Longest expression in words (15; 20 for ReferIt); the rest is cut.
    """

    vectors: str = ""
    word_width: int = 300
    freeze_words: bool = True
    width: int = 512
    layers: int = 3
    heads: int = 8
    ffn: int = 2048
    dropout: float = 0.1
    max_words: int = 15


class LanguageEncoder(nn.Module):
    """Word numbers -> a vector a word and one for the whole expression.

    As published, the GRU runs over the padding too (it is not packed) and there are no positions.
    """

    def __init__(self, config: LanguageConfig, words: int, word_width: int | None = None):
        super().__init__()
        width = config.width
        self.embedding = nn.Embedding(words, word_width or config.word_width)
        self.gru = nn.GRU(self.embedding.embedding_dim, width, batch_first=True)
        self.blocks = nn.ModuleList(SelfAttentionBlock(width, config.heads, config.ffn, config.dropout) for _ in range(config.layers))
        self.pool = AttentionPool(width, config.dropout)

    def forward(self, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """ids [B, T] -> words [B, T, width], expressions [B, width]."""
        padding = ids == PAD
        x, _ = self.gru(self.embedding(ids))
        for block in self.blocks:
            x = block(x, padding)
        return x, self.pool(x, padding)


def read_vectors(path: Path) -> dict[str, np.ndarray]:
    """Word vectors from a .npz of `words` and `vectors`."""
    try:
        with np.load(path, allow_pickle=False) as file:
            words, vectors = file["words"], file["vectors"].astype(np.float32)
            return dict(zip([str(w) for w in words], vectors, strict=True))
    except (OSError, KeyError, ValueError) as error:
        raise DataError(path, "", f"is no .npz of `words` and `vectors`: {error}", "convert the vectors with numpy.savez") from error


def fill_vectors(embedding: nn.Embedding, words: Words, vectors: dict[str, np.ndarray], config: LanguageConfig) -> None:
    """Give each word its vector, zeros to those that have none (as spaCy does); frozen where the config says so."""
    known = [(i, vectors[w if w in vectors else w.lower()]) for i, w in enumerate(words.words) if w in vectors or w.lower() in vectors]
    with torch.no_grad():
        embedding.weight.zero_()
        for index, vector in known:
            embedding.weight[index] = torch.as_tensor(vector)
    embedding.weight.requires_grad_(not config.freeze_words)
    log.info("word vectors: %d of %d words are in %s", len(known), len(words), config.vectors)


class Norm(nn.Module):
    """Layer norm by the unbiased deviation, 1e-6 added to it (not to the variance), as MCAN's."""

    def __init__(self, width: int):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.weight * (x - x.mean(-1, keepdim=True)) / (x.std(-1, keepdim=True) + 1e-6) + self.bias


class SelfAttentionBlock(nn.Module):
    """Self-attention and a feed-forward part, each added to its input and normalised after."""

    def __init__(self, width: int, heads: int, ffn: int, dropout: float):
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.v, self.k, self.q, self.merge = (nn.Linear(width, width) for _ in range(4))
        self.ffn1, self.ffn2 = nn.Linear(width, ffn), nn.Linear(ffn, width)
        self.norm1, self.norm2, self.drop = Norm(width), Norm(width), nn.Dropout(dropout)

    def forward(self, x: torch.Tensor, padding: torch.Tensor) -> torch.Tensor:
        """x [B, T, D], padding [B, T] True at words that are none."""

        def split(values):
            return values.unflatten(-1, (self.heads, -1)).transpose(1, 2)

        hidden = padding[:, None, None].to(x.dtype) * HIDDEN
        rate = self.dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(split(self.q(x)), split(self.k(x)), split(self.v(x)), hidden, rate)
        x = self.norm1(x + self.drop(self.merge(mixed.transpose(1, 2).flatten(2))))
        return self.norm2(x + self.drop(self.ffn2(self.drop(F.relu(self.ffn1(x))))))


class AttentionPool(nn.Module):
    """The mean of the words, weighted by a learned attention, through a linear layer."""

    def __init__(self, width: int, dropout: float):
        super().__init__()
        self.score1, self.score2, self.merge = nn.Linear(width, width // 2), nn.Linear(width // 2, 1), nn.Linear(width, width)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: torch.Tensor, padding: torch.Tensor) -> torch.Tensor:
        scores = self.score2(self.drop(F.relu(self.score1(x)))).squeeze(-1).float()
        weights = scores.masked_fill(padding, HIDDEN).softmax(-1).to(x.dtype)
        return self.merge((weights[:, None] @ x).squeeze(1))
