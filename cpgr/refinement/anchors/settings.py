"""RefCLIP's settings; the defaults are the published ones for RefCOCO."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from ...language import LanguageConfig
from ...training import TrainingConfig


def published_training() -> TrainingConfig:
    """25 epochs of 662 batches (42,404 referents, a sentence each), 3 of them warm-up, validated after each."""
    return TrainingConfig(
        steps=16_550, batch_size=64, learning_rate=1e-4, weight_decay=0.0, betas=(0.9, 0.98), epsilon=1e-9, warmup=1_986,
        final_rate=0.01, clip=0.15, ema=0.9997, validate_every=662,
    )  # fmt: skip


@dataclass
class AnchorConfig:
    """RefCLIP, which gives each expression its anchor's box.

    Attributes:
        detector: What the anchors come from: `darknet:FILE` (weights like yolov3_coco.pth), `builtin`, `builtin:FOLDER`,
            `transformers:NAME_OR_FOLDER`, or `darknet:random` (for trials; its boxes mean nothing).
        image_size: Side of the detector's letterboxed frame in pixels; 0 takes the detector's own.
        detector_norm: Batch norm of the frozen detector while RefCLIP trains: `eval` leaves its statistics alone, and its
            maps are computed once an image; `train` is what the published code does, whose statistics drift.
        anchors: Cells of an image that are anchors, the most confident (17 of 169; 34 for ReferIt).
        width: Width of the space in which anchors and expressions meet.
        fusion_width: Width of the fused map; 0 takes the detector's own.
        language: The language encoder.
        words: File that numbers the words: RefCLIP's annotations (JSON) or a word a line; empty: the training expressions'.
        weights: A RefCLIP checkpoint to start from; it needs `words`.
        fit: Train; false takes `weights` as they are.
        negatives_per_image: How many of the best anchors of another image are negatives.
        temperature: What the scores are divided by.
        normalize: Compare directions alone (no: raw products).
        same_image: What the anchors of the same picture are to another expression of it: `negatives` as published, or
            `masked`, which large batches need.
        gather: With several processes, which share a batch, take the anchors of all of them as negatives (the published code: its
            own alone). The fusion's batch norms see a process's share.
        in_image: Weight of RefCLIP++'s contrast within the image, whose target is the anchor at the box that the last cycle's
            student gave; from the second cycle on.
        recompute: Images encoded at a time, their activations computed again for the gradient; 0 keeps all at once. A batch
            of thousands needs it; batch norm then sees so many images.
        training: How it is trained.
        cache: Keep the frozen detector's maps, where `detector_norm` allows it.
        memory_mb: Memory for them; what goes beyond lies on disk.
    """

    detector: str = "darknet:yolov3_coco.pth"
    image_size: int = 416
    detector_norm: Literal["eval", "train"] = "eval"
    anchors: int = 17
    width: int = 512
    fusion_width: int = 0
    language: LanguageConfig = field(default_factory=LanguageConfig)
    words: str = ""
    weights: str = ""
    fit: bool = True
    negatives_per_image: int = 2
    temperature: float = 1.0
    normalize: bool = False
    same_image: Literal["negatives", "masked"] = "negatives"
    gather: bool = True
    in_image: float = 0.0
    recompute: int = 0
    training: TrainingConfig = field(default_factory=published_training)
    cache: bool = True
    memory_mb: float = 2048.0
