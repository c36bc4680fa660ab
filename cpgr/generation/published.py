"""The architectures of the published BLIP-2 checkpoints, as transformers' configurations: what their config.json say.

For counting, for tests at the true shapes and for benchmarks with random weights; `from_pretrained` reads its own.
"""

from __future__ import annotations

import torch
from torch import nn

CAPTIONERS = ("blip2-opt-2.7b", "blip2-flan-t5-xl")


def captioner_config(name: str = "blip2-opt-2.7b"):
    """ViT-g (1408 x 39), Q-Former (768 x 12, no text branch), and OPT-2.7B (2560 x 32) or Flan-T5-XL (2048 x 24 + 24)."""
    from transformers import Blip2Config, Blip2QFormerConfig, Blip2VisionConfig, OPTConfig, T5Config

    if name == "blip2-opt-2.7b":
        text = OPTConfig(
            vocab_size=50304, hidden_size=2560, word_embed_proj_dim=2560, ffn_dim=10240, num_hidden_layers=32, num_attention_heads=32,
            eos_token_id=50118,
        )  # fmt: skip
    elif name == "blip2-flan-t5-xl":
        text = T5Config(
            vocab_size=32128, d_model=2048, d_kv=64, d_ff=5120, num_layers=24, num_heads=32, feed_forward_proj="gated-gelu",
            tie_word_embeddings=False, decoder_start_token_id=0,
        )  # fmt: skip
    else:
        raise ValueError(f"{name!r} is none of {CAPTIONERS}")
    vision, qformer = Blip2VisionConfig(initializer_range=0.02), Blip2QFormerConfig()
    return Blip2Config(vision_config=vision, qformer_config=qformer, text_config=text, num_query_tokens=32, image_text_hidden_size=256)


def matcher_config():
    """blip2-itm-vit-g: the same with a text branch and BERT's vocabulary with [DEC]."""
    config = captioner_config()
    config.qformer_config.use_qformer_text_input, config.qformer_config.vocab_size = True, 30523
    return config


def random_models(captioner, matcher, device="meta", dtype=torch.float32):
    """The two models of transformers, of these configurations: on `meta` by shape alone, else with random weights of `dtype`.

    The captioner has a text branch in its Q-Former, as `checkpoints.load_blip2` gives it one.
    """
    from transformers import Blip2ForConditionalGeneration, Blip2ForImageTextRetrieval, Blip2QFormerModel

    captioner.qformer_config.use_qformer_text_input = True
    matcher.vision_config.num_hidden_layers = 0  # the matcher's image encoder is never used
    width = captioner.qformer_config.hidden_size
    with torch.device(device):
        default = torch.get_default_dtype()
        torch.set_default_dtype(dtype)
        try:
            model = Blip2ForConditionalGeneration(captioner)
        finally:
            torch.set_default_dtype(default)
        model.qformer = Blip2QFormerModel._from_config(captioner.qformer_config)
        model.language_projection = nn.Linear(width, model.language_projection.out_features)
        # transformers leaves the queries zero: all of them would be one
        model.query_tokens = nn.Parameter(torch.randn(1, captioner.num_query_tokens, width) * 0.02)
        other = Blip2ForImageTextRetrieval(matcher)
    return model.eval(), other.eval()
