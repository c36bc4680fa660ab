"""Regions as files hold them, read into x1, y1, x2, y2 boxes and COCO masks with every number checked."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ...regions import clip_box, xywh_to_xyxy

OVERHANG = 2.0  # pixels outside the image that annotators' rounding explains; clipped without a word


class RegionError(Exception):
    """Why a region cannot be used."""


@dataclass(slots=True, eq=False)
class Region:
    """A record's region, unchecked: `box` in `order` xyxy or xywh, original pixels; `mask` polygons or RLE.

    `size` is the (width, height) the annotations give for the image, `object` the annotation dict, `problem` is set
    where the file has no usable region at all; `optional` where a missing box is no fault (the record has none).
    """

    label: str
    box: object = None
    order: str = "xyxy"
    mask: object = None
    size: tuple | None = None
    object: dict | None = None
    problem: str = ""
    optional: bool = False


def read_box(raw, order: str, width: int, height: int) -> tuple[list[float], str]:
    """The box as x1, y1, x2, y2 inside an image of `width` x `height`, and what was wrong but mended ("" mostly).

    Raises RegionError where it is not four finite numbers, has no area or lies outside the image.
    """
    box = _numbers(raw)
    if box is None or len(box) != 4:
        raise RegionError("the box is missing" if raw is None else "the box is not four finite numbers")
    if order == "xywh":
        box = xywh_to_xyxy(box)
    if not (box[2] > box[0] and box[3] > box[1]):
        raise RegionError("the box has no area")
    clipped = clip_box(box, width, height)
    if clipped is None:
        raise RegionError("the box lies outside the image")
    over = max(-box[0], -box[1], box[2] - width, box[3] - height)
    return clipped, "the box reaches out of the image" if over > OVERHANG else ""


def read_mask(raw, width: int, height: int):
    """COCO polygons (lists of x, y, ...) or one RLE dict with text `counts`; None where there is no mask.

    A list of RLE dicts (RefCLEF) is merged to its union. Raises RegionError for a mask that is neither.
    """
    if raw is None or (isinstance(raw, (list, tuple)) and not raw):
        return None
    if isinstance(raw, dict):
        return _rle(raw, width, height)
    if not isinstance(raw, (list, tuple)):
        raise RegionError("the mask is neither polygons nor RLE")
    if all(isinstance(part, dict) for part in raw):
        parts = [_rle(part, width, height) for part in raw]
        return parts[0] if len(parts) == 1 else _merge(parts)
    polygons = [_numbers(part) for part in raw]
    if any(p is None or len(p) % 2 for p in polygons):
        raise RegionError("a polygon of the mask is not pairs of finite numbers")
    polygons = [p for p in polygons if len(p) >= 6]  # COCO itself holds polygons of two points: they have no area
    if not polygons:
        raise RegionError("no polygon of the mask has three points")
    return polygons


def rle_runs(counts: str) -> list[int]:
    """The run lengths in COCO's compressed `counts`. Raises RegionError where they are damaged."""
    runs: list[int] = []
    value = shift = 0
    for letter in counts:
        bits = ord(letter) - 48
        if not 0 <= bits < 64 or shift > 30:
            raise RegionError("the mask's RLE is damaged")
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        runs.append(value + runs[-2] if len(runs) > 2 else value)
        value = shift = 0
    if shift or any(run < 0 for run in runs):
        raise RegionError("the mask's RLE is damaged")
    return runs


def _numbers(raw) -> list[float] | None:
    if hasattr(raw, "tolist"):
        raw = raw.tolist()
    if not isinstance(raw, (list, tuple)):
        return None
    try:
        numbers = [float(v) for v in raw if type(v) in (int, float)]
    except OverflowError:  # an integer of hundreds of digits
        return None
    return numbers if len(numbers) == len(raw) and all(map(math.isfinite, numbers)) else None


def _rle(raw: dict, width: int, height: int) -> dict:
    """Checked in full, for pycocotools writes past its memory for runs that do not fit the size."""
    counts = raw.get("counts")
    if isinstance(counts, bytes):
        counts = counts.decode("latin-1")
    if raw.get("size") not in ([height, width], (height, width)):
        raise RegionError("the mask is not of the image's size")
    if isinstance(counts, str):
        runs = rle_runs(counts)
    else:
        runs = counts if isinstance(counts, list) and all(type(c) is int and c >= 0 for c in counts) else []
    if sum(runs) != width * height:
        raise RegionError("the mask's RLE does not fill the image")
    if isinstance(counts, list):
        from pycocotools import mask as coco

        counts = coco.frPyObjects({"counts": counts, "size": [height, width]}, height, width)["counts"].decode("ascii")
    return {"size": [height, width], "counts": counts}


def _merge(parts: list[dict]) -> dict:
    from pycocotools import mask as coco

    merged = coco.merge(parts)
    return {"size": list(merged["size"]), "counts": merged["counts"].decode("ascii")}
