"""What a pretrained BLIP-2 can do, on scenes that no training has seen: `python -m cpgr.pretrain --only judge`."""

from __future__ import annotations

import numpy as np
import torch

from ..data.scenes.grammar import judge
from ..data.scenes.parsing import parse
from ..data.scenes.programs import denote
from ..generation.objectives import Texts
from .images import image_tokens, token_rows
from .phrases import Phrases
from .scenes import draw

HELD_OUT = 1_000_000  # index of the first scene of the held-out ones


def held_out(count: int):
    """Scenes to judge by."""
    return draw(count, HELD_OUT)


@torch.no_grad()
def quality(model, llm_words, qformer_words, drawn, weights, accelerator) -> dict[str, float]:
    """Shares in 0..1. For phrases of the object alone and phrases with context that are true of one object only:
    `KIND_itg`, `KIND_itc`, `KIND_itm`, how often the score chooses that object among the scene's (`KIND_chance`: by lot). Of
    texts written for every object, greedily after its prefix and without one: `true` and `unique` by the parser."""
    model.eval()
    rng = np.random.default_rng(0)
    found: dict[str, list[float]] = {}
    with accelerator.autocast():
        images = image_tokens(model, drawn, weights)
        for kind, context in (("phrase", 0.0), ("context", 1.0)):
            phrases = Phrases(drawn, context)
            for i, d in enumerate(drawn):
                texts, targets = [], []
                for k in range(len(d.boxes)):
                    if context and not phrases.scene(i)[0][k]:
                        continue
                    text = phrases.draw(i, k, rng)
                    if denote(d.scene, parse(text)) == [k]:
                        texts.append(text)
                        targets.append(k)
                if texts:
                    hits = _choices(model, qformer_words, images[i : i + 1].float(), d.boxes, texts)
                    for name, chosen in hits.items():
                        found.setdefault(f"{kind}_{name}", []).extend((chosen == torch.tensor(targets)).float().tolist())
                    found.setdefault(f"{kind}_chance", []).extend([1 / len(d.boxes)] * len(texts))
        for name, prefixed in (("", True), ("bare_", False)):
            for i, d in enumerate(drawn):
                prefix = [phrases.prefix(i, k, rng) if prefixed else "" for k in range(len(d.boxes))]
                owner = torch.zeros(len(d.boxes), dtype=torch.long)
                queries = model.regions(images[i : i + 1].float(), d.boxes, owner)
                ids = model.write(queries, *token_rows(llm_words, prefix, True), max_new_tokens=12, do_sample=False, pad_token_id=llm_words.pad_token_id)
                for k, text in enumerate(llm_words.batch_decode(ids, skip_special_tokens=True)):
                    true, unique = judge(d.scene, text, k) or (False, False)
                    found.setdefault(f"{name}true", []).append(float(true))
                    found.setdefault(f"{name}unique", []).append(float(unique))
    return {name: sum(values) / len(values) for name, values in found.items()}


def _choices(model, words, image, boxes, texts) -> dict[str, torch.Tensor]:
    """Index of the region that each score chooses for each text."""
    count = len(boxes)
    encoded = words(texts, padding=True, return_tensors="pt")
    held = Texts(encoded["input_ids"], encoded["attention_mask"], words.bos_token_id)
    which = torch.arange(len(texts)).repeat_interleave(count)
    owner, many = torch.zeros(len(which), dtype=torch.long), boxes.repeat(len(texts), 1)
    queries, out = model.read(image, many, held.decoded[which], held.mask[which], causal=True, owner=owner)
    itg = model.text_log_likelihood(out, held.ids[which], held.mask[which]).sum(1)
    similar = model.similarity(model.region_features(queries[:count]), model.text_features(held.ids, held.mask)).t()
    joint, _ = model.read(image, many, held.ids[which], held.mask[which], causal=False, owner=owner)
    itm = model.match_logits(joint)[:, 1]
    return {"itg": itg.view(-1, count).argmax(1), "itc": similar.argmax(1), "itm": itm.view(-1, count).argmax(1)}
