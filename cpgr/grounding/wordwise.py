"""Grounders that know whole words: the vocabulary of RealGIN, SimREC and MAttNet and how it is kept."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from ..errors import CpgrError
from ..labels import Label
from ..language import PAD, Words
from .grounder import NetworkGrounder

FILE = "words.json"


class WordGrounder(NetworkGrounder):
    """A `NetworkGrounder` whose words are those of its training labels. A model gives `_network` and `longest`."""

    def __init__(self, config, accelerator, work: Path):
        super().__init__(config, accelerator, work)
        self.words: Words | None = None

    @property
    def longest(self) -> int:
        """Longest expression in words; the rest is cut."""
        return self.config.language.max_words

    def _network(self) -> nn.Module:
        """A new network for `self.words`."""
        raise NotImplementedError

    def _new_network(self) -> nn.Module:
        """`_network` before its training."""
        return self._network()

    def _restored_network(self, folder: Path) -> nn.Module:
        """`_network` of the sizes in an artefact's folder."""
        return self._network()

    def _build(self, rows: Sequence[Label]) -> nn.Module:
        batch = self.config.training.batch_size
        if min(len(rows), batch) < 2:
            raise CpgrError(f"{self.name} is trained on two or more labels at once (batch norm); there are {len(rows)}, in batches of {batch}")
        self.words = Words.of(row.expression for row in rows)
        return self._new_network()

    def _restore(self, folder: Path) -> nn.Module:
        self.words = Words(json.loads((folder / FILE).read_text(encoding="utf-8")))
        return self._restored_network(folder)

    def _keep_words(self, folder: Path) -> None:
        (folder / FILE).write_text(json.dumps(self.words.words, ensure_ascii=False), encoding="utf-8")

    def _words(self, texts: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
        ids = self.words.encode(texts, self.longest)
        return ids, ids != PAD


class CellGrounder(WordGrounder):
    """A one-stage `WordGrounder`: its network's output has logits of every cell, `confidence` and GARAN's `reasoning`."""

    def _output(self, batch: dict, attend: bool) -> dict:
        output = self.network(batch["levels"], batch["word_ids"], batch["word_mask"], batch["cells"])
        if attend:
            logits = output["confidence" if self.config.attention == "box" else "reasoning"]
            output["attention"] = logits.masked_fill(~batch["cells"], float("-inf")).softmax(-1)
        return output
