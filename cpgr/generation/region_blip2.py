"""BLIP-2 that speaks of a region: coordinate embedding, Q-Former text branch with ITC, ITM and ITG, LoRA.

Sections of the papers: BLIP-2 3.1 (the three Q-Former objectives and their masks), RegionBLIP 3.2
(position-assisted feature extraction: e(b) added to every region query), CPGR's figure (LoRA in Q-Former and LLM).
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from .shared_images import share_images

QFORMER_LORA = r".*qformer\.encoder\.layer\.\d+\.(attention|crossattention)\.attention\.(query|value)"
LLM_LORA = r".*language_model\..*\.(q_proj|v_proj|SelfAttention\.q|SelfAttention\.v|EncDecAttention\.q|EncDecAttention\.v)"


@dataclass
class LoraSettings:
    """LoRA's rank, scale and places (RegionBLIP: rank 8, alpha 1, query and value of Q-Former and LLM).

    Attributes:
        rank: Rank of the updates.
        alpha: Scale; the update is multiplied by alpha / rank.
        dropout: Dropout before the update.
        qformer: Put LoRA into the Q-Former's self- and cross-attention.
        llm: Put LoRA into the language model's attention.
    """

    rank: int = 8
    alpha: float = 1.0
    dropout: float = 0.0
    qformer: bool = True
    llm: bool = True


class CoordinateEmbedding(nn.Module):
    """e(b) = W2 gelu(W1 b + c1) + c2 of a box x1, y1, x2, y2 in 0..1; W2 and c2 start at zero, so training starts
    from plain BLIP-2 and learns position from there."""

    def __init__(self, width: int, hidden: int = 128):
        super().__init__()
        self.inner, self.outer = nn.Linear(4, hidden), nn.Linear(hidden, width)
        nn.init.zeros_(self.outer.weight)
        nn.init.zeros_(self.outer.bias)

    def forward(self, boxes: torch.Tensor) -> torch.Tensor:
        return self.outer(F.gelu(self.inner(boxes)))


def clip_pixels(frames: torch.Tensor) -> torch.Tensor:
    """uint8 RGB frames [B, 3, S, S] normalised by CLIP's mean and deviation, as BLIP-2's image encoder wants them."""
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073])[:, None, None] * 255
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711])[:, None, None] * 255
    return (frames.float() - mean) / std


class RegionBlip2(nn.Module):
    """The model of the Generation stage: BLIP-2's classes with region queries and the three text objectives.

    Shapes: R regions, K queries, T text tokens, D the Q-Former's width. Boxes are x1, y1, x2, y2 in 0..1 of the
    image; `boxes=None` stands for the whole image and leaves BLIP-2 as it is.
    """

    def __init__(self, captioner, parts: nn.ModuleDict):
        super().__init__()
        self.captioner, self.parts = captioner, parts
        share_images(captioner.qformer)
        width = captioner.config.qformer_config.hidden_size
        self.region_queries = nn.Parameter(captioner.query_tokens.detach().clone().float())
        self.coordinates = CoordinateEmbedding(width)
        self.temperature = nn.Parameter(torch.tensor(0.07))
        # ITG's head is tied to the word embeddings; its bias is LAVIS's where its head was given, else zero
        self.word_bias = nn.Parameter(torch.zeros(parts["embeddings"].word_embeddings.num_embeddings))
        if "itg_head" in parts:
            known = parts["itg_head"].bias
            self.word_bias.data[: len(known)] = known.detach()  # words added since keep a zero bias

    @property
    def blip2(self):
        """transformers' `Blip2ForConditionalGeneration`, with or without LoRA around it."""
        return self.captioner.base_model.model if hasattr(self.captioner, "peft_config") else self.captioner

    def add_lora(self, settings: LoraSettings) -> None:
        """Freeze BLIP-2 and put fresh LoRA updates in; what RegionBLIP trains beside them stays trainable."""
        from peft import LoraConfig, get_peft_model

        places = [p for p, wanted in ((QFORMER_LORA, settings.qformer), (LLM_LORA, settings.llm)) if wanted]
        self.captioner.requires_grad_(False)
        if places:
            config = LoraConfig(
                r=settings.rank, lora_alpha=settings.alpha, lora_dropout=settings.dropout, target_modules="|".join(places)
            )
            self.captioner = get_peft_model(self.captioner, config)
        self.parts.requires_grad_(False)
        for part in (self.parts["vision_projection"], self.parts["text_projection"], self.parts["itm_head"], self.blip2.language_projection):
            part.requires_grad_(True)

    def checkpoint_gradients(self) -> None:
        """Keep no activations inside the layers of Q-Former and language model: they are computed again in the backward
        pass. (transformers' own switch works in training mode only, in which the frozen base's dropout would be on.)"""
        model = self.blip2.language_model
        stacks = [self.blip2.qformer.encoder.layer]
        if self.blip2.config.use_decoder_only_language_model:
            stacks.append(model.get_decoder().layers)
        else:
            stacks += [model.encoder.block, model.decoder.block]
        for layer in (layer for stack in stacks for layer in stack):
            layer.forward = partial(_recomputed, layer.forward)

    # -- Q-Former -----------------------------------------------------------------------------------------------

    def queries(self, boxes: torch.Tensor | None, count: int) -> torch.Tensor:
        """[R, K, D]: Q_region + e(b), or BLIP-2's own queries for whole images."""
        if boxes is None:
            return self.blip2.query_tokens.expand(count, -1, -1)
        return self.region_queries + self.coordinates(boxes)[:, None]

    def qformer(self, **inputs) -> torch.Tensor:
        """The Q-Former's last states. Under fp16 autocast it stays in fp32: its activations overflow fp16 and every loss is
        then NaN (LAVIS issues 111 and 267). bf16 has fp32's range."""
        kind = self.region_queries.device.type
        half = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) == torch.float16
        with torch.autocast(kind, enabled=False) if half else nullcontext():
            return self.blip2.qformer(**inputs).last_hidden_state

    def regions(self, image: torch.Tensor, boxes: torch.Tensor | None, owner: torch.Tensor | None = None) -> torch.Tensor:
        """Query outputs [R, K, D] of image features [R, S, V], or of [I, S, V] with `owner` [R], each region's image."""
        count = len(image) if owner is None else len(owner)
        return self.qformer(query_embeds=self.queries(boxes, count), encoder_hidden_states=image, owner=owner)

    def read(self, image, boxes, ids, mask, *, causal: bool, owner=None) -> tuple[torch.Tensor, torch.Tensor]:
        """One pass over queries and text: (query outputs [R, K, D], text outputs [R, T, D]). `owner` as in `regions`.

        causal=False: everything sees everything (ITM). causal=True: queries see queries, a text token sees all
        queries and the text up to itself (ITG); the query outputs are then those of `regions`.
        """
        queries = self.queries(boxes, len(ids))
        count, words = queries.shape[1], ids.shape[1]
        sequence = self.parts["embeddings"](input_ids=ids, query_embeds=queries)
        seen = torch.ones(len(ids), 1, count + words, count + words, dtype=torch.bool, device=ids.device)
        seen[..., count:] = mask.bool()[:, None, None, :]
        if causal:
            seen[:, :, :count, count:] = False
            seen[:, :, count:, count:] &= torch.ones(words, words, dtype=torch.bool, device=ids.device).tril()
        bias = torch.zeros(seen.shape, dtype=sequence.dtype, device=ids.device).masked_fill(~seen, torch.finfo(sequence.dtype).min)
        out = self.qformer(query_embeds=sequence, query_length=count, attention_mask=bias, encoder_hidden_states=image, owner=owner)
        return out[:, :count], out[:, count:]

    def text_features(self, ids, mask) -> torch.Tensor:
        """ITC's text side: unit vectors [R, P] of the first token's output, text alone."""
        embedded = self.parts["embeddings"](input_ids=ids)
        out = self.qformer(query_embeds=embedded, query_length=0, attention_mask=mask)
        return F.normalize(self.parts["text_projection"](out[:, 0]).float(), dim=-1)

    def region_features(self, queries: torch.Tensor) -> torch.Tensor:
        """ITC's region side: unit vectors [R, K, P] of the query outputs."""
        return F.normalize(self.parts["vision_projection"](queries).float(), dim=-1)

    def similarity(self, regions: torch.Tensor, texts: torch.Tensor) -> torch.Tensor:
        """s(i, j) = max_k z_ik . t_j / temperature: [R, T] of unit vectors [R, K, P] and [T, P]."""
        return torch.einsum("rkp,tp->rtk", regions, texts).amax(-1) / self.temperature.clamp(0.001, 0.5)

    def match_logits(self, queries: torch.Tensor) -> torch.Tensor:
        """ITM: [R, 2] from the joint pass's query outputs, averaged over the queries."""
        return self.parts["itm_head"](queries).float().mean(1)

    def text_log_likelihood(self, text: torch.Tensor, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """ITG: log p of every next token [R, T - 1], 0 at padding, from the causal pass's text outputs."""
        text = self.parts["itg_head"](text) if "itg_head" in self.parts else text
        logits = F.linear(text[:, :-1], self.parts["embeddings"].word_embeddings.weight, self.word_bias).float()
        nats = F.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
        return -nats * mask[:, 1:]

    # -- language model -------------------------------------------------------------------------------------------

    def soft_prompt(self, queries: torch.Tensor) -> torch.Tensor:
        """[R, K, D] -> [R, K, language width]."""
        return self.blip2.language_projection(queries)

    def language_loss(self, queries, prompt, prompt_mask, target, target_mask) -> torch.Tensor:
        """L_LLM, [R]: mean next-token loss on the target given soft prompt and prefix.

        prompt [R, P] is left-padded, target [R, T] right-padded; each sample's loss covers its own target alone,
        whatever the length of its prefix.
        """
        soft = self.soft_prompt(queries)
        embed = self.blip2.language_model.get_input_embeddings()
        if self.blip2.config.use_decoder_only_language_model:
            # padding leads, then soft prompt, prefix and target stand together, as they will when generating
            inputs, mask = _pad_first(soft, embed(prompt), prompt_mask)
            inputs = torch.cat([inputs, embed(target)], 1)
            mask = torch.cat([mask, target_mask], 1)
            # logits of the target alone: those of every position, 50,000 words wide, would be most of a step's memory
            count = target.shape[1] + 1
            logits = self.blip2.language_model(
                inputs_embeds=inputs, attention_mask=mask, position_ids=_positions(mask), use_cache=False, logits_to_keep=count
            ).logits[:, :-1]
        else:
            inputs, mask = _pad_first(soft, embed(prompt), prompt_mask)
            labels = target.masked_fill(target_mask == 0, -100)
            logits = self.blip2.language_model(inputs_embeds=inputs, attention_mask=mask, labels=labels, use_cache=False).logits
        nats = F.cross_entropy(logits.float().transpose(1, 2), target, reduction="none") * target_mask
        return nats.sum(1) / target_mask.sum(1).clamp(min=1)

    @torch.no_grad()
    def write(self, queries, prompt, prompt_mask, **decoding) -> torch.Tensor:
        """Generate token ids for each region; `decoding` goes to transformers' `generate`."""
        embed = self.blip2.language_model.get_input_embeddings()
        inputs, mask = _pad_first(self.soft_prompt(queries).to(embed.weight.dtype), embed(prompt), prompt_mask)
        return self.blip2.language_model.generate(inputs_embeds=inputs, attention_mask=mask, **decoding)

    # -- state ------------------------------------------------------------------------------------------------------

    def own_state(self) -> dict[str, torch.Tensor]:
        """Trainable tensors outside the LoRA adapter (queries, e(b), projections, heads)."""
        return {n: p.detach().cpu().contiguous() for n, p in self.named_parameters() if p.requires_grad and "lora_" not in n}


def _recomputed(forward, *args, **kwargs):
    """`forward` under activation checkpointing where a gradient is wanted."""
    if torch.is_grad_enabled():
        return checkpoint(forward, *args, use_reentrant=False, **kwargs)
    return forward(*args, **kwargs)


def _pad_first(soft, prompt, prompt_mask):
    """Soft prompt and left-padded prefix as one sequence whose padding comes first: [pads][soft][prefix]."""
    rows, count = soft.shape[:2]
    joined = torch.cat([soft.to(prompt.dtype), prompt], 1)
    mask = torch.cat([prompt_mask.new_ones(rows, count), prompt_mask], 1)
    order = mask.argsort(dim=1, stable=True)  # zeros (padding) first, the rest in order
    return joined.gather(1, order[..., None].expand_as(joined)), mask.gather(1, order)


def _positions(mask: torch.Tensor) -> torch.Tensor:
    return (mask.long().cumsum(1) - 1).clamp(min=0)
