"""Proposals: the regions of every image that a detector finds, with class, score and words.

A detector is named by a spec (see `build_detector`); `propose` makes its detections the rows of a label table.
Any object with the `Detector` protocol's one method will do in its place.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from ...errors import CpgrError
from ...labels import Label, LabelTable
from ...processes import joined, share
from ..records import Image, Split
from .detections import Detections, select
from .regions import EXTRA, extra_regions
from .words import pixel_colours, spatial_word

__all__ = ["Detections", "Detector", "ProposalConfig", "build_detector", "propose", "summary"]

log = logging.getLogger("cpgr")

SPECS = "builtin, builtin:FOLDER, transformers:NAME_OR_FOLDER, onnx:FILE or file:FILE"


@dataclass
class ProposalConfig:
    """Which detections become proposals, and their words.

    max_regions: the best so many of each image.
    min_score: detections below this score are dropped.
    nms_iou: of two boxes of one class with a greater IoU the lesser score is dropped.
    across_iou: the same for boxes of different classes, which are then one object named twice; 1 keeps all.
    attributes: where attribute words come from: "detector"; "pixels" (the region's main colour); "auto", the
        detector's, and the colour for a region it gives none; or "none".
    colours: how many colour words a region gets from its pixels, at most.
    extra: regions made from the detections, in addition to `max_regions`: "parts" (head, shirt, trousers and shoes of
        persons), "groups" (the box around several of one class), "scenery" (ground, background, whole scene).
    min_attribute: attributes the built-in detector is less sure of than this probability are left out.
    batch_size: images a detector is given at once.
    device: where a network runs: "auto" (a GPU if there is one), "cpu", "cuda", ...; an ONNX file runs on the
        CPU, or on a GPU where onnxruntime-gpu is installed.
    """

    max_regions: int = 12
    min_score: float = 0.25
    nms_iou: float = 0.5
    across_iou: float = 0.8
    attributes: str = "auto"
    colours: int = 1
    extra: list[str] = field(default_factory=list)
    min_attribute: float = 0.5
    batch_size: int = 16
    device: str = "auto"

    def __post_init__(self):
        if self.attributes not in ("auto", "detector", "pixels", "none"):
            raise CpgrError(f"detection.attributes: {self.attributes!r} is none of auto, detector, pixels, none")
        if unknown := set(self.extra) - set(EXTRA):
            raise CpgrError(f"detection.extra: {', '.join(sorted(unknown))} is none of {', '.join(EXTRA)}")
        if min(self.max_regions, self.batch_size, self.colours) < 1:
            raise CpgrError("detection.max_regions, detection.batch_size and detection.colours must be 1 or more")


class Detector(Protocol):
    """Finds objects; `detect` answers in the order of its images, boxes in original pixels, in no fixed order."""

    def detect(self, images: list[Image]) -> list[Detections]: ...


def build_detector(spec: str, config: ProposalConfig) -> Detector:
    """The detector that `spec` names.

    `builtin` (the package's own for the built-in world; `builtin:FOLDER` another of its kind),
    `transformers:NAME_OR_FOLDER` (any object-detection model of Hugging Face), `onnx:FILE` (a YOLOX or FastestDet network),
    `file:FILE` (detections made elsewhere: COCO results or CPL's dump). Raises CpgrError with what to do.
    """
    kind, _, where = spec.partition(":")
    if kind == "builtin":
        from .builtin import BuiltinDetector

        return BuiltinDetector(where or None, config)
    if kind not in ("transformers", "onnx", "file") or not where:
        raise CpgrError(f"proposals: {spec!r} names no detector (write {SPECS})")
    if kind == "transformers":
        from .hf import TransformersDetector

        return TransformersDetector(where, config)
    if kind == "onnx":
        from .onnx import OnnxDetector

        return OnnxDetector(where, config)
    from .file import FileDetector

    return FileDetector(where, config)


def propose(detector: Detector, split: Split, config: ProposalConfig, progress: Callable | None = None) -> LabelTable:
    """The proposals of every image of `split`, in its order: rows of kind "proposal".

    region_id counts an image's rows by falling score; box is x1,y1,x2,y2 in original pixels inside the image.
    An image in which nothing is found gets one row for the whole of it, with no class and score 0.
    progress: wraps the batches while they are gone through, as `cpgr.progress.track(items, what)` does.
    """
    batches = _batches(list(split.images.values()), config.batch_size)
    batches = share(batches)
    rows: list[Label] = []
    for images in progress(batches, "proposals") if progress else batches:
        for image, found in zip(images, detector.detect(images), strict=True):
            chosen = select(found, image, config)
            if config.extra:
                chosen = chosen + extra_regions(chosen, config.extra, image.width, image.height)
            rows += _rows(image, chosen, config)
    table = LabelTable(joined(rows))
    counts = summary(table)
    empty, total = counts["images_without_detection"], counts["images"]
    if empty > total / 2:
        log.warning("nothing was found in %d of %d images: check the detector, or lower min_score", empty, total)
    return table


def summary(table: LabelTable) -> dict[str, float]:
    """Counts of a proposal table: images, regions, regions an image, images where nothing was found."""
    groups = table.by_image()
    empty = sum(rows[0].category == "" and rows[0].scores.get("detector") == 0.0 for rows in groups.values())
    return {
        "images": len(groups),
        "regions": len(table),
        "regions_an_image": len(table) / max(len(groups), 1),
        "images_without_detection": empty,
    }


def _batches(images: list[Image], size: int) -> list[list[Image]]:
    return [images[i : i + size] for i in range(0, len(images), size)]


def _rows(image: Image, found: Detections, config: ProposalConfig) -> Iterator[Label]:
    boxes = [[float(v) for v in box] for box in found.boxes]
    spatial = spatial_word(boxes, found.categories, image.width, image.height)
    attributes = _attributes(image, found, config)
    for region, box in enumerate(boxes):
        yield Label(
            image.image_id, image.file_name, image.width, image.height, box,
            kind="proposal", region_id=region, category=found.categories[region], attributes=attributes[region],
            spatial=spatial[region], scores={"detector": float(found.scores[region])},
        )  # fmt: skip


def _attributes(image: Image, found: Detections, config: ProposalConfig) -> list[list[str]]:
    words = [[]] * len(found) if config.attributes in ("pixels", "none") else found.attributes
    if config.attributes in ("detector", "none") or all(words) or not any(found.categories):
        return words
    from ..images import open_image

    pixels = np.asarray(open_image(image.path, record=f"image {image.image_id}"))
    return [own or pixel_colours(_crop(pixels, box))[: config.colours] for own, box in zip(words, found.boxes, strict=True)]


def _crop(pixels: np.ndarray, box: np.ndarray) -> np.ndarray:
    x1, y1 = np.floor(box[:2]).astype(int)
    x2, y2 = np.ceil(box[2:]).astype(int)
    return pixels[y1:y2, x1:x2]
