"""Words into vectors by a recurrent network: what RealGIN (GRU) and MAttNet (LSTM) read expressions with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from ..language import PAD, UNKNOWN


@dataclass
class RecurrentConfig:
    """The language encoder of RealGIN and MAttNet.

    Attributes:
        cell: `gru` (RealGIN) or `lstm` (MAttNet).
        word_width: Width of the learned word vectors.
        inner_width: Width of a linear layer with ReLU between word vectors and recurrent network (MAttNet's); 0: none.
        width: Width of each of the two directions.
        word_dropout: Dropout of the word vectors.
        dropout: Dropout of the expression's vector.
        max_words: Longest expression in words.
    """

    cell: Literal["gru", "lstm"] = "gru"
    word_width: int = 300
    inner_width: int = 0
    width: int = 1024
    word_dropout: float = 0.0
    dropout: float = 0.1
    max_words: int = 15

    @property
    def embedded(self) -> int:
        """Width of what the recurrent network reads."""
        return self.inner_width or self.word_width


class Read(NamedTuple):
    """An expression's vector [B, 2 * width], its words' states [B, T, 2 * width] and what was read [B, T, embedded]."""

    vector: torch.Tensor
    states: torch.Tensor
    embedded: torch.Tensor


class RecurrentEncoder(nn.Module):
    """Both directions of a GRU or LSTM over the words; the padding is not read."""

    def __init__(self, config: RecurrentConfig, words: int):
        super().__init__()
        self.embedding = nn.Embedding(words, config.word_width, padding_idx=PAD)
        nn.init.zeros_(self.embedding.weight.data[UNKNOWN])  # a word that training never saw says nothing
        self.word_drop, self.drop = nn.Dropout(config.word_dropout), nn.Dropout(config.dropout)
        self.inner = nn.Sequential(nn.Linear(config.word_width, config.inner_width), nn.ReLU()) if config.inner_width else nn.Identity()
        kind = nn.GRU if config.cell == "gru" else nn.LSTM
        self.net = kind(config.embedded, config.width, batch_first=True, bidirectional=True)

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> Read:
        """ids and mask [B, T]; an expression without words is read as one padding word."""
        embedded = self.inner(self.word_drop(self.embedding(ids)))
        lengths = mask.sum(1).clamp(min=1).cpu()
        with torch.autocast(ids.device.type, enabled=False):  # recurrent networks in bf16 are slow and wrong on some CPUs
            packed = pack_padded_sequence(embedded.float(), lengths, batch_first=True, enforce_sorted=False)
            states, last = self.net(packed)
            states, _ = pad_packed_sequence(states, batch_first=True, total_length=ids.shape[1])
        last = last[0] if isinstance(last, tuple) else last
        return Read(self.drop(last.transpose(0, 1).flatten(1)), states, embedded)
