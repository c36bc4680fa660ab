"""The `data` part of a run's config."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..images import MAX_PIXELS

DEFAULT_DATASET = "scenes"


@dataclass
class DataConfig:
    """What is read, and how bad records are met.

    Attributes:
        format: the files' format: scenes (the built-in world), refer, transvg, refclip, realgin, seqtr, flickr30k or folder.
        root: the folder with the annotation files.
        dataset: the data set's name in that folder; refcoco:unc names the split file refs(unc).p where there are several.
        images: the folder with the images; empty: it is looked for beside the annotations.
        train_split: the split whose images and expressions training sees.
        val_split: the split whose regions choose the best model.
        eval_split: the splits that are evaluated, separated by commas.
        on_bad: what a bad record does: error stops with its name, skip leaves it out and counts it.
        check_images: decode reads every image in full first, header only its size.
        limit: at most this many images of the training split (0: all).
        decoder: what decodes JPEG files: auto takes the fastest here; dali (on a CPU where named), simplejpeg or pillow.
        max_pixels: an image of more pixels is refused.
        box_order: the order of the boxes in transvg files whose data set is not known: xyxy or xywh.
        seed: the built-in world's seed.
        world_images: how many training images the built-in world has.
    """

    format: str = "scenes"
    root: str = ""
    dataset: str = DEFAULT_DATASET
    images: str = ""
    train_split: str = "train"
    val_split: str = "val"
    eval_split: str = "val,testA,testB"
    on_bad: Literal["error", "skip"] = "error"
    check_images: Literal["decode", "header"] = "decode"
    limit: int = 0
    decoder: Literal["auto", "dali", "simplejpeg", "pillow"] = "auto"
    max_pixels: int = MAX_PIXELS
    box_order: Literal["auto", "xyxy", "xywh"] = "auto"
    seed: int = 0
    world_images: int = 240
