"""What BLIP-2 takes in, in pretraining: image tokens and the language model's ids."""

from __future__ import annotations

import torch

from ..generation.region_blip2 import RegionBlip2, clip_pixels
from .scenes import Drawn


@torch.no_grad()
def image_tokens(model: RegionBlip2, drawn: list[Drawn]) -> torch.Tensor:
    """The image encoder's outputs of every scene, [N, 1 + cells, width] bf16."""
    chunks = (torch.stack([d.image for d in drawn[i : i + 32]]) for i in range(0, len(drawn), 32))
    return torch.cat([model.blip2.vision_model(clip_pixels(c)).last_hidden_state.bfloat16() for c in chunks])


def token_rows(tokenizer, texts: list[str], prompt: bool):
    """Ids and mask: prompts left-padded after BOS, targets right-padded before EOS."""
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    rows = [tokenizer(t, add_special_tokens=False)["input_ids"] for t in texts]
    rows = [[bos, *r] if prompt else [*r, eos] for r in rows]
    longest = max(map(len, rows))
    ids = torch.full((len(rows), longest), tokenizer.pad_token_id)
    mask = torch.zeros(len(rows), longest, dtype=torch.long)
    for i, r in enumerate(rows):
        span = slice(longest - len(r), longest) if prompt else slice(0, len(r))
        ids[i, span], mask[i, span] = torch.tensor(r), 1
    return ids, mask
