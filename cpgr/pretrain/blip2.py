"""BLIP-2's classes at the world's size, trained on captions of whole images and on phrases of boxes.

Its frozen image encoder is the built-in detector's: BLIP-2 (section 3) learns on any image encoder there is, and a ViT this small
does not learn the world's shapes in the time there is (docs/results.md), which a convolutional detector does."""

from __future__ import annotations

import logging
import math
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from ..data.scenes import captions
from ..generation.checkpoints import MATCHER_PARTS, load_blip2
from ..generation.objectives import Texts, contrast, matching
from ..generation.region_blip2 import RegionBlip2
from ..training import TrainingConfig, train
from .images import image_tokens, token_rows
from .phrases import Phrases
from .quality import held_out, quality
from .scenes import PIXELS, Indices, as_is, attribute_indices, save_half
from .words import bert_tokenizer, language_tokenizer

log = logging.getLogger("cpgr")

REGIONS = 3  # of a scene in a step


def make_blip2(words: list[str], out: Path):
    """The real classes at small sizes: (captioner, matcher, their tokenizers)."""
    from transformers import (
        Blip2Config, Blip2ForConditionalGeneration, Blip2ForImageTextRetrieval, Blip2QFormerConfig, Blip2VisionConfig, OPTConfig,
    )  # fmt: skip

    llm_words, qformer_words = language_tokenizer(words, out / "blip2"), bert_tokenizer(words, out / "blip2-itm")
    width = 128
    config = Blip2Config(
        vision_config=Blip2VisionConfig(
            hidden_size=width, intermediate_size=2 * width, num_hidden_layers=0, num_attention_heads=4, image_size=PIXELS,
            patch_size=8,
        ),
        qformer_config=Blip2QFormerConfig(
            vocab_size=len(qformer_words), hidden_size=width, num_hidden_layers=3, num_attention_heads=4,
            intermediate_size=2 * width, max_position_embeddings=64, cross_attention_frequency=1, encoder_hidden_size=width,
            hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, pad_token_id=qformer_words.pad_token_id,
            use_qformer_text_input=True,
        ),
        text_config=OPTConfig(
            vocab_size=len(llm_words), hidden_size=width, word_embed_proj_dim=width, num_hidden_layers=3, num_attention_heads=4,
            ffn_dim=2 * width, max_position_embeddings=128, dropout=0.0, bos_token_id=llm_words.bos_token_id,
            eos_token_id=llm_words.eos_token_id, pad_token_id=llm_words.pad_token_id,
        ),
        num_query_tokens=8, image_text_hidden_size=64, image_token_index=None, image_encoder="builtin",
    )  # fmt: skip
    captioner = Blip2ForConditionalGeneration(config)
    captioner.set_attn_implementation("eager")
    nn.init.normal_(captioner.query_tokens, 0, 0.02)  # transformers leaves them zero: all queries would be one
    matcher = Blip2ForImageTextRetrieval(config)
    matcher.qformer = captioner.qformer
    return captioner, matcher, llm_words, qformer_words


def load_region_blip2(folder: Path):
    """The saved model with its coordinate embedding: (model, captioner's tokenizer, Q-Former's tokenizer)."""
    from safetensors.torch import load_file
    from transformers import AutoTokenizer

    loaded = load_blip2(str(folder / "blip2"), str(folder / "blip2-itm"), attention="eager")
    model = RegionBlip2(loaded.captioner, loaded.parts)
    model.load_state_dict({n: t.float() for n, t in load_file(folder / "blip2" / "coordinates.safetensors").items()}, strict=False)
    return model, *(AutoTokenizer.from_pretrained(folder / name) for name in ("blip2", "blip2-itm"))


def train_blip2(drawn, words: list[str], out: Path, steps: int, context: float, accelerator) -> None:
    """All of BLIP-2 but its image encoder, whose outputs are kept: captions, phrases of boxes and, in a share `context` of
    draws, phrases with context, with the aids of `_Step`."""
    captioner, matcher, llm_words, qformer_words = make_blip2(words, out)
    model = RegionBlip2(captioner, nn.ModuleDict({name: getattr(matcher, name) for name in MATCHER_PARTS}))
    nn.init.normal_(model.coordinates.outer.weight, std=0.05)
    with accelerator.autocast():
        images = image_tokens(model, drawn, out)
    step = _Step(model, llm_words, qformer_words, images, Phrases(drawn, context))
    settings = TrainingConfig(
        steps=steps, batch_size=32, learning_rate=1.5e-3, weight_decay=0.05, warmup=100, final_rate=0.02, checkpoint_seconds=60.0,
        validate_every=300,
    )  # fmt: skip
    judged = held_out(24)

    def validate() -> float:
        found = quality(model, llm_words, qformer_words, judged, out, accelerator)
        log.info("BLIP-2: %s", ", ".join(f"{name} {value:.2f}" for name, value in found.items()))
        return found["unique"] + found["phrase_itg"] + found["context_itg"]

    train(step, Indices(len(drawn)), as_is, settings, accelerator, seed=5, work=out / "blip2.work", what="BLIP-2", validate=validate)
    save_blip2(model, matcher, out)


class _Step(nn.Module):
    """The four losses on phrases of boxes, the language model's on captions, and two aids that ship with nothing: half of
    the cross-attention's heads are asked to look into the box, and the queries' mean to tell the object's attributes.
    Nothing else tells a query where to look until it happens to look there."""

    def __init__(self, model: RegionBlip2, llm_words, qformer_words, images, phrases: Phrases, prefixes: float = 0.5):
        super().__init__()
        from ..data.scenes import vocabulary

        self.model, self.llm_words, self.qformer_words, self.images, self.phrases = model, llm_words, qformer_words, images, phrases
        self.drawn, self.prefixes = phrases.drawn, prefixes
        self.lists = WorldLists(vocabulary)
        width = model.region_queries.shape[-1]
        self.names = nn.Linear(width, sum(self.lists.counts))
        self.grid = math.isqrt(images.shape[1])
        self.maps: list[torch.Tensor] = []
        for layer in model.blip2.qformer.encoder.layer[:-1]:  # the last one may look where it likes
            layer.crossattention.attention.register_forward_hook(lambda module, args, output: self.maps.append(output[1]))

    def forward(self, indices: list[int]) -> dict:
        rng = np.random.default_rng(int(torch.randint(2**31, (1,))))
        image = self.images[indices].float()
        few = max(1, len(indices) // 4)
        queries = self.model.regions(image[:few], None)
        losses = {"caption": self._language(queries, [captions.caption(self.drawn[i].scene, rng) for i in indices[:few]])}
        self.maps.clear()
        picks = [(i, int(k)) for i in indices for k in rng.permutation(len(self.drawn[i].boxes))[:REGIONS]]
        where = {i: row for row, i in enumerate(indices)}
        owner = torch.tensor([where[i] for i, _ in picks])
        texts = [self.phrases.draw(i, k, rng) for i, k in picks]
        prefixes = [self.phrases.prefix(i, k, rng) if rng.random() < self.prefixes else "" for i, k in picks]
        exact = torch.stack([self.drawn[i].boxes[k] for i, k in picks])
        boxes = (exact + torch.randn_like(exact) * 0.01).clamp(0, 1)
        encoded = self.qformer_words(texts, padding=True, return_tensors="pt")
        words = Texts(encoded["input_ids"], encoded["attention_mask"], self.qformer_words.bos_token_id)
        queries, out = self.model.read(image, boxes, words.decoded, words.mask, causal=True, owner=owner)
        likelihood = self.model.text_log_likelihood(out, words.ids, words.mask)
        losses["itg"] = (-likelihood.sum(1) / words.mask[:, 1:].sum(1)).mean()
        similarity = self.model.similarity(self.model.region_features(queries), self.model.text_features(words.ids, words.mask))
        holds = self.phrases.hold(picks, texts)
        losses["itc"] = contrast(similarity, holds, smoothing=0.0)
        losses["llm"] = self.model.language_loss(queries, *self._ids(prefixes, True), *self._ids(texts, False)).mean()
        losses["look"] = self._look(exact)
        named = self.names(queries.mean(1)).float().split(self.lists.counts, -1)
        target = attribute_indices([self.drawn[i].scene.objects[k] for i, k in picks], self.lists)
        losses["names"] = 0.5 * sum(F.cross_entropy(logits, target[:, i]) for i, logits in enumerate(named))
        some = (owner < max(1, len(indices) // 3)).nonzero().squeeze(1)  # ITM costs three passes a pair: a third of the images
        losses["itm"] = matching(
            self.model, image, boxes[some], words[some], similarity.detach()[some][:, some], holds[some][:, some], owner[some]
        )
        self.maps.clear()
        return {**losses, "loss": sum(losses.values())}

    def _look(self, boxes: torch.Tensor) -> torch.Tensor:
        """-log of the attention inside the box, of half of the heads, queries averaged."""
        centre = (torch.arange(self.grid) + 0.5) / self.grid
        half = 0.5 / self.grid  # a cell that the box touches counts
        across = (centre > boxes[:, :1] - half) & (centre < boxes[:, 2:3] + half)
        down = (centre > boxes[:, 1:2] - half) & (centre < boxes[:, 3:4] + half)
        inside = (down[:, :, None] & across[:, None]).flatten(1)
        mass = torch.stack([(m[:, : m.shape[1] // 2].float() * inside[:, None, None]).sum(-1).mean((1, 2)) for m in self.maps])
        return -(mass + 1e-4).log().mean()

    def _language(self, queries, texts):
        return self.model.language_loss(queries, *self._ids([""] * len(texts), True), *self._ids(texts, False)).mean()

    def _ids(self, texts, prompt: bool):
        return token_rows(self.llm_words, texts, prompt)


class WorldLists:
    """The world's attribute lists, under the names that `attribute_indices` reads."""

    def __init__(self, vocabulary):
        self.categories, self.colours = vocabulary.CATEGORIES, list(vocabulary.COLOURS)
        self.sizes, self.patterns = list(vocabulary.SIZES), vocabulary.PATTERNS
        self.counts = [len(self.categories), len(self.colours), len(self.sizes), len(self.patterns)]


def save_blip2(model: RegionBlip2, matcher, out: Path) -> None:
    """As published: a captioner without text branch, a matcher with it; and the coordinate embedding beside them."""
    from safetensors.torch import save_file

    captioner = model.blip2
    own = {n: p.detach().half().contiguous() for n, p in model.named_parameters() if n.split(".")[0] in ("region_queries", "coordinates", "word_bias")}
    matcher.vision_model, matcher.query_tokens = captioner.vision_model, captioner.query_tokens
    save_half(matcher, out / "blip2-itm")
    captioner.config.qformer_config.use_qformer_text_input = False
    for layer in captioner.qformer.encoder.layer:
        del layer.intermediate, layer.output
    save_half(captioner, out / "blip2")
    save_file(own, out / "blip2" / "coordinates.safetensors")
