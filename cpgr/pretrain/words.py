"""Vocabularies of the built-in world, and BERT, whose word states are aligned with what the words look like."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from ..data.scenes import captions, grammar
from ..data.scenes.sample import sample_scene
from ..training import TrainingConfig, train
from .scenes import PIXELS, STREAM, Indices, as_is, centre_cell, save_half


def word_list() -> list[str]:
    """Every word of captions, detection phrases and the grammar, sorted."""
    words: set[str] = set()
    for i in range(1500):
        rng = np.random.default_rng([STREAM, 1, i])
        scene = sample_scene(rng, PIXELS)
        words.update(captions.caption(scene, rng).split())
        for index, item in enumerate(scene.objects):
            words.update(captions.detection_phrase(item, rng).split())
            for kind in ("attr", "abs", "rel", "sup", "ord"):
                made = grammar.express(scene, index, rng, kind)
                words.update(made[0].split() if made else ())
    return sorted(words)


def bert_tokenizer(words: list[str], folder: Path):
    from transformers import BertTokenizerFast

    letters = [chr(c) for c in range(33, 127)]
    vocab = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]", *words]
    vocab += [c for c in letters if c not in vocab] + ["##" + c for c in letters]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(vocab) + "\n")
    tokenizer = BertTokenizerFast(vocab={word: i for i, word in enumerate(vocab)}, do_lower_case=True, bos_token="[DEC]")
    (folder / "vocab.txt").unlink()
    tokenizer.save_pretrained(folder)
    return tokenizer


def language_tokenizer(words: list[str], folder: Path):
    """OPT's tokens at the world's size: whole words, OPT's special tokens, spaces between words."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = ["<pad>", "</s>", "<unk>"]
    vocab = {word: i for i, word in enumerate([*special, *words])}
    core = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", bos_token="</s>", eos_token="</s>", unk_token="<unk>", padding_side="left"
    )
    tokenizer.save_pretrained(folder)
    return tokenizer


def train_bert(drawn, words, tokens, out: Path, steps: int, accelerator) -> None:
    """InfoNCE of a phrase's mean word state against the detector's token at the object's centre."""
    from transformers import BertConfig, BertModel

    tokenizer = bert_tokenizer(words, out / "bert")
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=128, num_hidden_layers=2, num_attention_heads=4, intermediate_size=256,
        max_position_embeddings=64, attn_implementation="eager", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    model = BertModel(config, add_pooling_layer=False)
    step = _AlignStep(model, tokenizer, tokens, drawn)
    settings = TrainingConfig(steps=steps, batch_size=64, learning_rate=1e-3, warmup=50)
    train(step, Indices(len(drawn)), as_is, settings, accelerator, seed=2, work=out / "bert.work", what="BERT")
    save_half(model.eval(), out / "bert")


class _AlignStep(nn.Module):
    def __init__(self, model, tokenizer, tokens, drawn):
        super().__init__()
        self.model, self.tokenizer, self.tokens, self.drawn = model, tokenizer, tokens, drawn
        self.scale = nn.Parameter(torch.tensor(2.6))
        self.project = nn.Linear(model.config.hidden_size, tokens.shape[-1])

    def forward(self, indices):
        rng = np.random.default_rng(int(torch.randint(2**31, (1,))))
        grid = math.isqrt(self.tokens.shape[1])
        tokens, phrases = [], []
        for i in indices:
            # two objects of a scene: the other one is the negative that the words must tell it from
            for k in rng.permutation(len(self.drawn[i].boxes))[:2]:
                tokens.append(self.tokens[i, centre_cell(self.drawn[i].boxes[k], grid)].float())
                phrases.append(captions.detection_phrase(self.drawn[i].scene.objects[k], rng))
        batch = self.tokenizer(phrases, padding=True, return_tensors="pt")
        states = self.model(**batch).last_hidden_state
        mask = batch["attention_mask"][..., None]
        text = F.normalize(self.project((states * mask).sum(1) / mask.sum(1)).float(), dim=-1)
        logits = text @ F.normalize(torch.stack(tokens), dim=-1).t() * self.scale.exp()
        same = torch.tensor([[a == b for b in phrases] for a in phrases])
        logits = logits.masked_fill(same & ~torch.eye(len(phrases), dtype=torch.bool), float("-inf"))
        target = torch.arange(len(phrases))
        return {"loss": (F.cross_entropy(logits, target) + F.cross_entropy(logits.t(), target)) / 2}
