"""The settings of the Generation stage; published values where a source has them (reference: RegionBLIP, CPGR's figure)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from ..training import TrainingConfig
from .region_blip2 import LoraSettings
from .templates import TemplateConfig


@dataclass
class DecodingConfig:
    """How expressions are decoded.

    Attributes:
        beams: Beams of the search (5 as RegionBLIP; 1 is greedy).
        samples: Further expressions a region drawn by nucleus sampling.
        best: Keep the best so many of a region's texts by ITM on the region (0: all).
        top_p: Nucleus of the sampling.
        max_new_tokens: Longest expression in tokens (soft prompt and prefix not counted).
        min_new_tokens: Shortest expression in tokens.
        batch_size: Regions decoded together.
        by_length: Decode regions with prefixes of like length together, so that little of a batch is padding.
        cache: Key-value cache: `dynamic`, or `static` (of fixed size; on a GPU transformers then compiles the decoding step).
    """

    beams: int = 5
    samples: int = 0
    best: int = 0
    top_p: float = 0.9
    max_new_tokens: int = 30
    min_new_tokens: int = 1
    batch_size: int = 64
    by_length: bool = True
    cache: Literal["dynamic", "static"] = "dynamic"


@dataclass
class GenerationConfig:
    """The Generation stage.

    Attributes:
        captioner: `builtin`, or the name or folder of a `Blip2ForConditionalGeneration` checkpoint.
        matcher: `builtin`, or the name or folder of a `Blip2ForImageTextRetrieval` checkpoint (text branch, ITM, ITC).
        itg_head: LAVIS's `blip2_pretrained.pth`, for ITG's head, which is in neither checkpoint; empty: tied to the word embeddings,
            and fresh.
        weights: Type of the frozen image encoder and language model: `float32`, `bfloat16` (half the memory) or `float16`. The
            Q-Former and all that is trained stay in float32.
        attention: transformers' attention inside BLIP-2: `sdpa`, `eager` (faster at the built-in world's sizes on a CPU),
            `flash_attention_2` (needs flash-attn, a GPU and half-precision weights; the Q-Former, kept in fp32, takes sdpa), or
            `auto`: that where it can run, else sdpa.
        gradient_checkpointing: Compute activations again in the backward pass instead of keeping them.
        image_size: Side of the square the image is stretched to; 0 takes the checkpoint's own.
        prefix: Give the language model the detector's `[Spat] [Attr] [Cls]` words first.
        coordinates: Add the coordinate embedding to the region queries; without it every region of an image is alike.
        crops: Read every region as an image of its own, cut out and stretched, instead of by its coordinates.
        fine_tune: Train from the second cycle on; without it the templates are every cycle's texts and nothing judges.
        latent: Train ITG and ITC on each true expression over all regions of its image, weighted by the last
            pairing, instead of on the chosen region alone.
        carry_over: Go on from the last cycle's LoRA instead of a fresh one.
        keep_templates: Keep the cold start's templates beside the generated expressions in later cycles.
        vocabulary: `extend` adds the training expressions' words that the tokenizers break up, `keep` does not.
        per_image: Labels of one image in a batch, at most.
        loss_itc: Weight of L_ITC (as every other: 1 in CPGR's figure).
        loss_itm: Weight of L_ITM.
        loss_itg: Weight of L_ITG.
        loss_llm: Weight of L_LLM.
        loss_latent: Weight of the latent-region likelihood and contrast.
        lora: LoRA's settings.
        templates: The cold start's templates.
        decoding: How expressions are decoded.
        training: How the model is fine-tuned; `batch_size` counts images.
        memory_mb: Memory for cached image features; what goes beyond lies on disk.
    """

    captioner: str = "Salesforce/blip2-opt-2.7b"
    matcher: str = "Salesforce/blip2-itm-vit-g"
    itg_head: str = ""
    weights: Literal["float32", "bfloat16", "float16"] = "float32"
    attention: str = "sdpa"
    gradient_checkpointing: bool = False
    image_size: int = 0
    prefix: bool = True
    coordinates: bool = True
    crops: bool = False
    fine_tune: bool = True
    latent: bool = True
    carry_over: bool = False
    keep_templates: bool = False
    vocabulary: str = "keep"
    per_image: int = 6
    loss_itc: float = 1.0
    loss_itm: float = 1.0
    loss_itg: float = 1.0
    loss_llm: float = 1.0
    loss_latent: float = 1.0
    lora: LoraSettings = field(default_factory=LoraSettings)
    templates: TemplateConfig = field(default_factory=TemplateConfig)
    decoding: DecodingConfig = field(default_factory=DecodingConfig)
    training: TrainingConfig = field(
        default_factory=lambda: TrainingConfig(
            epochs=10, batch_size=16, learning_rate=1e-4, final_rate=0.1, weight_decay=0.05, warmup=200
        )
    )
    memory_mb: float = 2048.0
