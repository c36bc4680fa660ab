"""BLIP-2 with its text branch, put together from the two kinds of published checkpoint.

The captioner's checkpoint (`Blip2ForConditionalGeneration`) has no Q-Former text branch; the matcher's
(`Blip2ForImageTextRetrieval`) has it, with the ITM head and the projections. What is taken from which is listed
in the log, and a partial match is refused: half of a text branch would train without a word of warning.
"""

from __future__ import annotations

import logging

import torch
from torch import nn

from ..errors import CpgrError

log = logging.getLogger("cpgr")


def load_blip2(captioner: str, matcher: str, attention: str = "sdpa"):
    """The captioner with the matcher's text branch in its Q-Former, and the matcher's own parts.

    Returns (Blip2ForConditionalGeneration, nn.ModuleDict of embeddings, vision_projection, text_projection, itm_head).
    """
    from transformers import Blip2Config, Blip2ForConditionalGeneration, Blip2ForImageTextRetrieval
    from transformers.utils import logging as hf_logging

    config = Blip2Config.from_pretrained(captioner)
    config.qformer_config.use_qformer_text_input = True
    quiet = hf_logging.get_verbosity()
    hf_logging.set_verbosity_error()  # it would warn of the text branch, which is loaded next
    try:
        model = Blip2ForConditionalGeneration.from_pretrained(captioner, config=config, dtype=torch.float32)
        other = Blip2ForImageTextRetrieval.from_pretrained(matcher, dtype=torch.float32)
    finally:
        hf_logging.set_verbosity(quiet)
    # transformers refuses flash attention for BLIP-2 as a whole, because of the Q-Former; by sub-model it takes it
    qformer = "sdpa" if attention.startswith("flash") else attention
    model.set_attn_implementation({"vision_config": attention, "text_config": attention, "qformer_config": qformer})
    taken = take_text_branch(model.qformer, other.qformer, captioner, matcher)
    parts = nn.ModuleDict(
        {name: getattr(other, name) for name in ("embeddings", "vision_projection", "text_projection", "itm_head")}
    )
    log.info("BLIP-2: %s, with %d text-branch tensors, embeddings, projections and ITM head of %s", captioner, len(taken), matcher)
    for name in taken:
        log.debug("BLIP-2: %s from %s", name, matcher)
    return model, parts


def take_text_branch(qformer, source, captioner: str, matcher: str) -> list[str]:
    """Copy the text feed-forward parts of `source` into `qformer`; returns the names of all tensors taken."""
    wanted = {n: p for n, p in qformer.state_dict().items() if ".intermediate." in n or _is_text_output(n)}
    have = source.state_dict()
    bad = [n for n, p in wanted.items() if n not in have or have[n].shape != p.shape]
    if bad or not wanted:
        raise CpgrError(
            f"the matcher {matcher} does not fit the captioner {captioner}: {len(bad)} of {len(wanted)} text-branch "
            f"tensors are missing or of another shape, e.g. {bad[:3]}; take a pair with the same Q-Former"
        )
    qformer.load_state_dict({n: have[n] for n in wanted}, strict=False)
    return sorted(wanted)


def _is_text_output(name: str) -> bool:
    parts = name.split(".")
    # encoder.layer.N.output.*: the text feed-forward's output, not attention.output nor output_query
    return len(parts) > 3 and parts[3] == "output"
