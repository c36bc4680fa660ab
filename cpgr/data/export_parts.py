"""What the writers of labels share: files that are whole or absent, numbers of images, boxes and masks of a label."""

from __future__ import annotations

import json
import math
import os
import re
from contextlib import contextmanager
from pathlib import Path

from ..errors import DataError
from ..labels import Label
from ..regions import xyxy_to_xywh


@contextmanager
def replacing(path: Path):
    """A temporary name beside `path` that becomes `path` when the block ends well, and is removed when not."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def to_json(content, path: Path) -> str:
    """JSON text; `path` is what the message about an impossible number names."""
    try:
        return json.dumps(content, ensure_ascii=False, allow_nan=False)
    except ValueError as error:
        raise DataError(path, "", f"a label holds a number that JSON cannot: {error}", "drop labels with NaN or infinite values") from error


def write_json(content, path: Path) -> None:
    """A JSON file, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(to_json(content, path), encoding="utf-8")


def image_numbers(rows: list[Label]) -> dict[str, int]:
    """A number for each image: its id where all ids are numbers, else the one that ends its name, else its rank."""
    names = {row.image_id: Path(row.file_name).stem for row in rows}
    if all(image_id.isascii() and image_id.isdigit() for image_id in names):
        return {image_id: int(image_id) for image_id in names}
    ends = {image_id: re.search(r"[0-9]{1,18}$", stem) for image_id, stem in names.items()}
    numbers = {image_id: int(end.group()) for image_id, end in ends.items() if end}
    if len(set(numbers.values())) == len(names):
        return numbers
    return {image_id: rank for rank, image_id in enumerate(names, 1)}


def label_name(row: Label) -> str:
    """What messages call a label."""
    return f"label {row.expression[:60]!r} of image {row.image_id}"


def mask_of(row: Label, path: Path):
    """The mask as it is kept, or None."""
    try:
        return json.loads(row.mask) if row.mask else None
    except ValueError as error:
        raise DataError(path, label_name(row), "its mask is not JSON", "make the label again") from error


def rle_of(row: Label, path: Path):
    """The mask as an RLE with byte counts, or None where there is no mask."""
    from pycocotools import mask as coco

    mask = mask_of(row, path)
    if isinstance(mask, list):
        return coco.merge(coco.frPyObjects(mask, row.height, row.width))
    return mask and {"size": mask["size"], "counts": mask["counts"].encode("ascii")}


def box_of(row: Label, path: Path) -> list[float]:
    """The label's box, or its mask's: x1, y1, x2, y2. Raises DataError where there is neither."""
    box = row.box
    if box is None and row.mask:
        from pycocotools import mask as coco

        x, y, w, h = (float(v) for v in coco.toBbox(rle_of(row, path)))
        box = [x, y, x + w, y + h]
    if box is None or not all(math.isfinite(v) for v in box):
        raise DataError(path, label_name(row), "has no finite box and no mask, which this format needs", "export as jsonl, or drop it first")
    return [float(v) for v in box]


def xywh_of(row: Label, path: Path) -> list[float]:
    """The same as x, y, width, height."""
    return xyxy_to_xywh(box_of(row, path))


def segmentation_of(row: Label, path: Path):
    """The label's polygons or RLE; the box as a polygon where it has no mask."""
    x1, y1, x2, y2 = box_of(row, path)
    return mask_of(row, path) or [[x1, y1, x2, y1, x2, y2, x1, y2]]


def area_of(row: Label, path: Path) -> float:
    """Of the mask, or of the box where there is none; square pixels."""
    if row.mask:
        from pycocotools import mask as coco

        return float(coco.area(rle_of(row, path)))
    _, _, width, height = xywh_of(row, path)
    return width * height
