"""Label tables written in the formats of other code bases, for those who train their own models on the labels."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable
from contextlib import ExitStack, contextmanager
from pathlib import Path

from ..errors import CpgrError, DataError
from ..labels import Label, LabelTable
from ..regions import xyxy_to_xywh


def export_labels(table: LabelTable, format: str, path: str | Path, *, split: str = "train", dropped: bool = False) -> int:
    """Write the kept labels (all with `dropped`) to `path`, whole or not at all; returns how many were written.

    Formats, by what reads them:
        cpl      CPL and TransVG: torch file, [[image, [x1, y1, x2, y2], expression, weight], ...]
        refclip  RefCLIP and SimREC: JSON {split: [{iid, bbox x,y,w,h, cat_id, refs, mask_id, file_name}]}
        seqtr    SeqTR: JSON {split: [{image_id, width, height, bbox x,y,w,h, expressions, mask, file_name}]}
        coco     COCO: instances JSON at `path`, and results JSON beside it as <name>_results.json
        jsonl    one JSON object a line with all fields of the label (read back by the format `folder`)

    Boxes are original pixels; a label without one has its mask's box. Labels without an expression (proposals) are
    left out. In the JSON formats an image without a number in its id or name gets its rank as number. Raises
    `CpgrError` for an unknown format or no labels, `DataError` for a label that the format cannot hold.
    """
    if format not in FORMATS:
        raise CpgrError(f"unknown label format {format!r}; the formats are {', '.join(FORMATS)}")
    rows = [row for row in table if row.expression and (row.kept or dropped)]
    if not rows:
        raise CpgrError(f"there are no labels to write to {path}: {len(table)} rows, none kept with an expression")
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    FORMATS[format](rows, path, split)
    return len(rows)


def _cpl(rows: list[Label], path: Path, split: str) -> None:
    import torch

    items = [[row.file_name, _box(row, path), row.expression, float(row.weight)] for row in rows]
    with _replacing(path) as temporary:
        torch.save(items, temporary)


def _refclip(rows: list[Label], path: Path, split: str) -> None:
    from .proposals.coco import COCO_CLASSES

    numbers, classes = _image_numbers(rows), {name: index for index, name in enumerate(COCO_CLASSES)}
    items = [
        {
            "iid": numbers[row.image_id], "bbox": _xywh(row, path), "cat_id": classes.get(row.category, -1),
            "refs": [row.expression], "mask_id": index, "file_name": row.file_name,
        }
        for index, row in enumerate(rows)
    ]  # fmt: skip
    _write_json({split: items}, path)


def _seqtr(rows: list[Label], path: Path, split: str) -> None:
    numbers = _image_numbers(rows)
    entries = [
        {
            "image_id": numbers[row.image_id], "width": row.width, "height": row.height, "bbox": _xywh(row, path),
            "expressions": [row.expression], "mask": _segmentation(row, path), "file_name": row.file_name,
        }
        for row in rows
    ]  # fmt: skip
    _write_json({split: entries}, path)


def _coco(rows: list[Label], path: Path, split: str) -> None:
    numbers = _image_numbers(rows)
    names = sorted({row.category or "object" for row in rows})
    images = {
        row.image_id: {"id": numbers[row.image_id], "file_name": row.file_name, "width": row.width, "height": row.height} for row in rows
    }
    found = []
    for index, row in enumerate(rows, 1):
        annotation = {
            "id": index, "image_id": numbers[row.image_id], "category_id": names.index(row.category or "object") + 1,
            "bbox": _xywh(row, path), "area": _area(row, path), "iscrowd": 0, "segmentation": _segmentation(row, path),
            "expression": row.expression,
        }  # fmt: skip
        if row.keypoints:
            annotation |= {"keypoints": row.keypoints, "num_keypoints": sum(v > 0 for v in row.keypoints[2::3])}
        found.append(annotation)
    categories = [{"id": index, "name": name} for index, name in enumerate(names, 1)]
    results = [
        {"image_id": a["image_id"], "category_id": a["category_id"], "bbox": a["bbox"], "score": float(row.weight), "expression": row.expression}
        for a, row in zip(found, rows, strict=True)
    ]
    with ExitStack() as both:
        for content, target in (
            ({"images": list(images.values()), "annotations": found, "categories": categories}, path),
            (results, path.with_name(f"{path.stem}_results{path.suffix}")),
        ):
            both.enter_context(_replacing(target)).write_text(_json(content, target), encoding="utf-8")


def _jsonl(rows: list[Label], path: Path, split: str) -> None:
    lines = []
    for row in rows:
        text = {"text": row.expression, "kind": row.kind}
        if row.expression_id:
            text["ref_id"] = row.expression_id
        line = {
            "image": row.file_name, "width": row.width, "height": row.height, "box_xyxy": row.box, "texts": [text],
            "cls": row.category, "attr": row.attributes, "spat": row.spatial, "scores": {k: v for k, v in row.scores.items() if math.isfinite(v)},
            "weight": row.weight, "cycle": row.cycle, "keep": row.kept, "drop_reason": row.reason,
        }  # fmt: skip
        if row.mask:
            line["mask"] = _segmentation(row, path)
        if row.keypoints:
            line["keypoints"] = row.keypoints
        lines.append(_json(line, path))
    with _replacing(path) as temporary:
        temporary.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


FORMATS: dict[str, Callable[[list[Label], Path, str], None]] = {
    "cpl": _cpl, "refclip": _refclip, "seqtr": _seqtr, "coco": _coco, "jsonl": _jsonl,
}  # fmt: skip


@contextmanager
def _replacing(path: Path):
    """A temporary name beside `path` that becomes `path` when the block ends well, and is removed when not."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _json(content, path: Path) -> str:
    try:
        return json.dumps(content, ensure_ascii=False, allow_nan=False)
    except ValueError as error:
        raise DataError(path, "", f"a label holds a number that JSON cannot: {error}", "drop labels with NaN or infinite values") from error


def _write_json(content, path: Path) -> None:
    with _replacing(path) as temporary:
        temporary.write_text(_json(content, path), encoding="utf-8")


def _image_numbers(rows: list[Label]) -> dict[str, int]:
    """A number for each image: its id where all ids are numbers, else the one that ends its name, else its rank."""
    names = {row.image_id: Path(row.file_name).stem for row in rows}
    if all(image_id.isascii() and image_id.isdigit() for image_id in names):
        return {image_id: int(image_id) for image_id in names}
    ends = {image_id: re.search(r"[0-9]{1,18}$", stem) for image_id, stem in names.items()}
    numbers = {image_id: int(end.group()) for image_id, end in ends.items() if end}
    if len(set(numbers.values())) == len(names):
        return numbers
    return {image_id: rank for rank, image_id in enumerate(names, 1)}


def _label(row: Label) -> str:
    return f"label {row.expression[:60]!r} of image {row.image_id}"


def _mask(row: Label, path: Path):
    try:
        return json.loads(row.mask) if row.mask else None
    except ValueError as error:
        raise DataError(path, _label(row), "its mask is not JSON", "make the label again") from error


def _rle(row: Label, path: Path):
    """The mask as an RLE with byte counts, or None where there is no mask."""
    from pycocotools import mask as coco

    mask = _mask(row, path)
    if isinstance(mask, list):
        return coco.merge(coco.frPyObjects(mask, row.height, row.width))
    return mask and {"size": mask["size"], "counts": mask["counts"].encode("ascii")}


def _box(row: Label, path: Path) -> list[float]:
    box = row.box
    if box is None and row.mask:
        from pycocotools import mask as coco

        x, y, w, h = (float(v) for v in coco.toBbox(_rle(row, path)))
        box = [x, y, x + w, y + h]
    if box is None or not all(math.isfinite(v) for v in box):
        raise DataError(path, _label(row), "has no finite box and no mask, which this format needs", "export as jsonl, or drop it first")
    return [float(v) for v in box]


def _xywh(row: Label, path: Path) -> list[float]:
    return xyxy_to_xywh(_box(row, path))


def _segmentation(row: Label, path: Path):
    """The label's polygons or RLE; the box as a polygon where it has no mask."""
    x1, y1, x2, y2 = _box(row, path)
    return _mask(row, path) or [[x1, y1, x2, y1, x2, y2, x1, y2]]


def _area(row: Label, path: Path) -> float:
    if row.mask:
        from pycocotools import mask as coco

        return float(coco.area(_rle(row, path)))
    _, _, width, height = _xywh(row, path)
    return width * height
