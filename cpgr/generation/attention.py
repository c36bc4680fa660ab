"""Which attention runs in which part of BLIP-2.

transformers refuses flash attention for BLIP-2 as a whole, because its Q-Former is kept in fp32; by sub-model it takes it.
"""

from __future__ import annotations

from ..errors import CpgrError

KINDS = ("auto", "sdpa", "eager", "flash_attention_2")
NO_FLASH = ("t5",)  # language models whose transformers class has no flash attention


def by_part(attention: str, language_model: str, weights: str, device=None) -> dict[str, str]:
    """`attn_implementation` of vision_config, qformer_config and text_config.

    `auto` is flash_attention_2 where it can run (`flash_reason`) and sdpa else; `flash_attention_2` raises CpgrError where it
    cannot. The Q-Former takes sdpa in both. A language model without flash attention (T5) takes sdpa.
    """
    if attention not in KINDS:
        raise CpgrError(f"generation.attention: {attention!r} is none of {', '.join(KINDS)}")
    if attention == "flash_attention_2" and (reason := flash_reason(weights, device)):
        raise CpgrError(f"generation.attention: flash_attention_2 cannot run: {reason}; take auto, which is sdpa here")
    if attention == "auto":
        attention = "sdpa" if flash_reason(weights, device) else "flash_attention_2"
    if attention != "flash_attention_2":
        return dict.fromkeys(("vision_config", "qformer_config", "text_config"), attention)
    text = "sdpa" if language_model in NO_FLASH else attention
    return {"vision_config": attention, "qformer_config": "sdpa", "text_config": text}


def flash_reason(weights: str, device=None) -> str:
    """Why flash attention cannot run; empty where it can."""
    import torch
    from transformers.utils import is_flash_attn_2_available

    if weights == "float32":
        return "it wants bfloat16 or float16 weights (--generation.weights)"
    if not torch.cuda.is_available() or (device is not None and torch.device(device).type != "cuda"):
        return "it wants a CUDA device"
    if not is_flash_attn_2_available():
        return "flash-attn is not installed (pip install flash-attn --no-build-isolation)"
    return ""
