"""What BLIP-2 takes in, in pretraining: image tokens and the language model's ids."""

from __future__ import annotations

from pathlib import Path

import torch

from ..generation.image_encoders import image_encoder
from ..generation.region_blip2 import RegionBlip2
from .scenes import Drawn


@torch.no_grad()
def image_tokens(model: RegionBlip2, drawn: list[Drawn], weights: Path) -> torch.Tensor:
    """The image encoder's outputs of every scene, [N, cells, width] bf16, by the detector in the folder `weights`."""
    encoder = image_encoder(model.blip2, detector=weights / "detector")
    return torch.cat([encoder(torch.stack([d.image for d in drawn[i : i + 32]])).bfloat16() for i in range(0, len(drawn), 32)])


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
