"""BLIP-2 with its text branch, put together from the published checkpoints.

The captioner's checkpoint (`Blip2ForConditionalGeneration`: Salesforce/blip2-opt-2.7b, -flan-t5-xl) has no Q-Former text
branch; the matcher's (`Blip2ForImageTextRetrieval`: Salesforce/blip2-itm-vit-g) has it, with the ITM head and the
projections; ITG's head is in LAVIS's own `blip2_pretrained.pth` alone. `assemble` names the origin of every tensor and
refuses a partial match: half of a text branch would train without a word of warning.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from ..errors import CpgrError, DataError
from .attention import by_part

log = logging.getLogger("cpgr")

MATCHER_PARTS = ("embeddings", "vision_projection", "text_projection", "itm_head")
# encoder.layer.N.{intermediate,output}.*: the text feed-forward, not attention.output nor the queries' output_query
TEXT_BRANCH = re.compile(r"(?:qformer\.)?encoder\.layer\.\d+\.(?:intermediate|output)\.")
# What RegionBLIP adds to BLIP-2: its region queries, projections and LoRA of several modalities.
REGIONBLIP = re.compile(r"(img|pc)_region|query_tokens_(img|pc)|lora_[AB]_(img|pc)|_pc\b|point_encoder|opt_proj_img|t5_proj_img")
FP32 = ["query_tokens", "qformer", "language_projection"]  # in fp16 the Q-Former overflows (LAVIS issues 111 and 267)
HEAD = {
    "dense.weight": "Qformer.cls.predictions.transform.dense.weight", "dense.bias": "Qformer.cls.predictions.transform.dense.bias",
    "norm.weight": "Qformer.cls.predictions.transform.LayerNorm.weight", "norm.bias": "Qformer.cls.predictions.transform.LayerNorm.bias",
    "bias": "Qformer.cls.predictions.bias",
}  # fmt: skip
DECODER = "Qformer.cls.predictions.decoder.weight"  # LAVIS ties it to the word embeddings


class ItgHead(nn.Module):
    """BERT's prediction head as LAVIS keeps it: dense, GELU, LayerNorm before the tied decoder, whose bias it brings along."""

    def __init__(self, width: int, words: int, device=None):
        super().__init__()
        self.dense, self.norm = nn.Linear(width, width, device=device), nn.LayerNorm(width, eps=1e-12, device=device)
        self.bias = nn.Parameter(torch.zeros(words, device=device))

    def forward(self, text: torch.Tensor) -> torch.Tensor:
        return self.norm(nn.functional.gelu(self.dense(text)))


@dataclass
class Blip2Parts:
    """What `RegionBlip2` is made of, and where each tensor of it comes from."""

    captioner: nn.Module
    parts: nn.ModuleDict
    sources: dict[str, str]


def load_blip2(captioner: str, matcher: str, attention: str = "sdpa", *, itg_head: str = "", weights: str = "float32", device=None) -> Blip2Parts:
    """BLIP-2 from the names or folders of its two checkpoints and, where `itg_head` gives it, LAVIS's file.

    `attention` is as `attention.by_part` takes it. `weights`: float32, bfloat16 or float16 for the image encoder and the
    language model, which stay frozen; all else is fp32. `device` is where the model will run, for `attention: auto`.
    Raises CpgrError where a checkpoint lacks a tensor, has one of another shape, or is RegionBLIP's.
    """
    from transformers import Blip2Config, Blip2ForConditionalGeneration, Blip2ForImageTextRetrieval

    config = Blip2Config.from_pretrained(captioner)
    _check_weights(weights, captioner, config)
    config.qformer_config.use_qformer_text_input = True

    class Kept(Blip2ForConditionalGeneration):
        """transformers keeps the Q-Former in fp32 beside fp16 weights; beside bf16 ones it has to be asked."""

        _keep_in_fp32_modules_strict = FP32

    kind = Blip2ForConditionalGeneration if weights == "float32" else Kept
    model, lacks = _read(kind, captioner, config, getattr(torch, weights))
    model.__class__ = Blip2ForConditionalGeneration
    branch = {f"qformer.{name}" for name in model.qformer.state_dict() if TEXT_BRANCH.match(name)}
    _refuse(captioner, lacks["missing_keys"] - branch, lacks["mismatched_keys"])
    theirs = Blip2Config.from_pretrained(matcher)
    theirs.qformer_config.use_qformer_text_input = True
    theirs.vision_config.num_hidden_layers = 0  # its image encoder, a gigabyte of tensors, is the captioner's
    other, lacks = _read(Blip2ForImageTextRetrieval, matcher, theirs, torch.float32)
    missing = {name for name in lacks["missing_keys"] if not name.startswith("vision_model.")}
    _refuse(matcher, missing, lacks["mismatched_keys"], branch=any(TEXT_BRANCH.match(name) for name in missing))
    head = read_itg_head(itg_head) if itg_head else None
    made = assemble(model, other, head, names=(captioner, matcher, itg_head))
    model.set_attn_implementation(by_part(attention, config.text_config.model_type, weights, device))
    return made


def assemble(captioner, matcher, head: Mapping[str, torch.Tensor] | None = None, names: tuple[str, str, str] = ("captioner", "matcher", "itg_head")) -> Blip2Parts:
    """The captioner with the matcher's text branch in its Q-Former, the matcher's own parts, and ITG's head.

    Works on tensors of any device, meta too. `head` holds LAVIS's tensors by their names; None ties the head to the word
    embeddings and starts its bias at zero. Every tensor of the result is listed in `sources`; nothing is left at its
    random start but what no checkpoint has.
    """
    have, qformer = matcher.qformer.state_dict(), captioner.qformer
    wanted = {n: p for n, p in qformer.state_dict().items() if TEXT_BRANCH.match(n)}
    bad = [n for n, p in wanted.items() if n not in have or have[n].shape != p.shape]
    if bad or not wanted:
        raise CpgrError(
            f"the matcher {names[1]} does not fit the captioner {names[0]}: {len(bad)} of {len(wanted)} text-branch "
            f"tensors are missing or of another shape, e.g. {bad[:3]}; take a pair with the same Q-Former"
        )
    qformer.load_state_dict({n: have[n] for n in wanted}, strict=False, assign=True)
    sources = {n: names[0] for n in captioner.state_dict()} | {f"qformer.{n}": names[1] for n in wanted}
    parts = nn.ModuleDict({name: getattr(matcher, name) for name in MATCHER_PARTS})
    width = captioner.config.qformer_config.hidden_size
    odd = [n for n, p in parts.named_parameters() if n.startswith(("embeddings.", "itm_head.weight")) and p.shape[-1] != width]
    if odd:
        raise CpgrError(f"the matcher {names[1]} does not fit the captioner {names[0]}: {odd[0]} is not {width} wide")
    sources |= {n: names[1] for n in parts.state_dict()}
    if head is not None:
        parts["itg_head"] = _itg_head(head, parts["embeddings"].word_embeddings.weight, names)
        sources |= {f"itg_head.{n}": names[2] for n in HEAD}
    log.info("BLIP-2: %s", "; ".join(f"{count} tensors of {name}" for name, count in Counter(sources.values()).items()))
    for name, source in sources.items():
        log.debug("BLIP-2: %s from %s", name, source)
    if head is None:
        log.info("BLIP-2: ITG's head is tied to the word embeddings and starts fresh: neither checkpoint has it (--generation.itg_head)")
    return Blip2Parts(captioner, parts, sources)


def _itg_head(head: Mapping[str, torch.Tensor], words: torch.Tensor, names) -> ItgHead:
    made = ItgHead(words.shape[1], head[HEAD["bias"]].shape[0], device="meta")
    state = {own: head[theirs].float() for own, theirs in HEAD.items()}
    odd = [n for n, p in made.state_dict().items() if p.shape != state[n].shape]
    decoder = head[DECODER]
    if odd or decoder.shape != words.shape or len(state["bias"]) != len(words):
        raise CpgrError(f"{names[2]}: its head ({tuple(decoder.shape)}) does not fit the word embeddings of {names[1]} ({tuple(words.shape)})")
    if not decoder.is_meta and not torch.allclose(decoder.float(), words.float(), atol=1e-3, rtol=1e-3):  # the rounding of fp16
        raise CpgrError(f"{names[2]}: its decoder is not the word embeddings of {names[1]}: the two files are of different trainings")
    made.load_state_dict(state, assign=True)
    return made


def read_itg_head(path: str) -> dict[str, torch.Tensor]:
    """ITG's head from LAVIS's `blip2_pretrained.pth`, by LAVIS's names. Nothing in the file is executed."""
    try:
        content = torch.load(path, weights_only=True, map_location="cpu", mmap=True)
    except OSError as error:
        raise DataError(path, "", f"cannot be read: {error.strerror or error}", "give LAVIS's blip2_pretrained.pth as --generation.itg_head") from error
    except Exception as error:  # a foreign or damaged file makes torch raise nearly anything
        raise DataError(path, "", f"is no file of tensors: {str(error)[:200]}", "get blip2_pretrained.pth again from LAVIS") from error
    state = content.get("model", content) if isinstance(content, dict) else None
    if not isinstance(state, dict):
        raise DataError(path, "", "holds no model", "give LAVIS's blip2_pretrained.pth")
    refuse_regionblip(path, state)
    lacking = [name for name in (*HEAD.values(), DECODER) if not isinstance(state.get(name), torch.Tensor)]
    if lacking:
        raise DataError(path, "", f"has no {lacking[0]}: it is not BLIP-2's first stage", "give LAVIS's blip2_pretrained.pth (not a stage-2 file)")
    return {name: state[name] for name in (*HEAD.values(), DECODER)}


def refuse_regionblip(where: str, names: Iterable[str]) -> None:
    """RegionBLIP's published weights were trained on the boxes of RefCOCO's and RefCOCOg's training splits: to start from
    them is full supervision."""
    found = next((name for name in names if REGIONBLIP.search(name)), None)
    if found:
        raise CpgrError(
            f"{where}: holds RegionBLIP's weights ({found}), which were trained on RefCOCO's labelled boxes; a weakly supervised "
            "run must start from plain BLIP-2 (Salesforce/blip2-opt-2.7b, Salesforce/blip2-itm-vit-g)"
        )


def _read(kind, name: str, config, dtype) -> tuple[nn.Module, dict]:
    from transformers.utils import logging as hf_logging

    quiet = hf_logging.get_verbosity()
    hf_logging.set_verbosity_error()  # it would warn of the text branch, which is loaded next
    try:
        model, lacks = kind.from_pretrained(name, config=config, dtype=dtype, output_loading_info=True, ignore_mismatched_sizes=True)
    finally:
        hf_logging.set_verbosity(quiet)
    lacks = {key: set(values) for key, values in lacks.items() if key.endswith("_keys")}
    refuse_regionblip(name, lacks["unexpected_keys"])
    return model, lacks


def _refuse(name: str, missing: set[str], mismatched: set, branch: bool = False) -> None:
    if missing or mismatched:
        first = [str(n[0] if isinstance(n, tuple) else n) for n in sorted(missing | mismatched, key=str)[:3]]
        why = "; it has no text branch: take a Blip2ForImageTextRetrieval checkpoint (Salesforce/blip2-itm-vit-g)" if branch else ""
        raise CpgrError(f"{name}: {len(missing)} tensors are missing and {len(mismatched)} of another shape, e.g. {first}{why}")


def _check_weights(weights: str, name: str, config) -> None:
    if weights not in ("float32", "bfloat16", "float16"):
        raise CpgrError(f"generation.weights: {weights!r} is none of float32, bfloat16, float16")
    if weights == "float16" and not config.use_decoder_only_language_model:
        raise CpgrError(f"generation.weights: {name} overflows in float16 (T5); take bfloat16")
