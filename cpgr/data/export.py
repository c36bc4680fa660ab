"""Label tables written in the formats of other code bases, for those who train their own models on the labels."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from ..errors import CpgrError
from ..labels import Label, LabelTable
from .export_parts import area_of, box_of, image_numbers, replacing, segmentation_of, to_json, write_json, xywh_of
from .export_students import write_mattnet, write_realgin, write_transvg


def export_labels(
    table: LabelTable, format: str, path: str | Path, *, split: str = "train", dropped: bool = False, candidates: LabelTable | None = None
) -> int:
    """Write the kept labels (all with `dropped`) to `path`, whole or not at all; returns how many were written.

    Formats, by what reads them:
        cpl      CPL and TransVG: torch file, [[image, [x1, y1, x2, y2], expression, weight], ...]
        transvg  TransVG itself: torch file of the tuples of its data sets, (image, mask file, box, expression, attributes)
        refclip  RefCLIP and SimREC: JSON {split: [{iid, bbox x,y,w,h, cat_id, refs, mask_id, file_name}]}
        realgin  RealGIN: text, a line "image x1,y1,x2,y2,category,mask ~ expression" a label
        mattnet  MAttNet: REFER's refs(NAME).p at `path` and instances.json beside it; a new annotation for each label, or,
                 where `candidates` are given, those as annotations and each label pointing at the one it overlaps best
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
    write = FORMATS[format]
    if candidates is not None:
        if format != "mattnet":
            raise CpgrError(f"only the format mattnet points labels at candidates, not {format!r}")
        write = partial(write, candidates=candidates)
    write(rows, path, split)
    return len(rows)


def _cpl(rows: list[Label], path: Path, split: str) -> None:
    import torch

    items = [[row.file_name, box_of(row, path), row.expression, float(row.weight)] for row in rows]
    with replacing(path) as temporary:
        torch.save(items, temporary)


def _refclip(rows: list[Label], path: Path, split: str) -> None:
    from .proposals.coco import COCO_CLASSES

    numbers, classes = image_numbers(rows), {name: index for index, name in enumerate(COCO_CLASSES)}
    items = [
        {
            "iid": numbers[row.image_id], "bbox": xywh_of(row, path), "cat_id": classes.get(row.category, -1),
            "refs": [row.expression], "mask_id": index, "file_name": row.file_name,
        }
        for index, row in enumerate(rows)
    ]  # fmt: skip
    write_json({split: items}, path)


def _seqtr(rows: list[Label], path: Path, split: str) -> None:
    numbers = image_numbers(rows)
    entries = [
        {
            "image_id": numbers[row.image_id], "width": row.width, "height": row.height, "bbox": xywh_of(row, path),
            "expressions": [row.expression], "mask": segmentation_of(row, path), "file_name": row.file_name,
        }
        for row in rows
    ]  # fmt: skip
    write_json({split: entries}, path)


def _coco(rows: list[Label], path: Path, split: str) -> None:
    numbers = image_numbers(rows)
    names = sorted({row.category or "object" for row in rows})
    images = {
        row.image_id: {"id": numbers[row.image_id], "file_name": row.file_name, "width": row.width, "height": row.height} for row in rows
    }
    found = []
    for index, row in enumerate(rows, 1):
        annotation = {
            "id": index, "image_id": numbers[row.image_id], "category_id": names.index(row.category or "object") + 1,
            "bbox": xywh_of(row, path), "area": area_of(row, path), "iscrowd": 0, "segmentation": segmentation_of(row, path),
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
            both.enter_context(replacing(target)).write_text(to_json(content, target), encoding="utf-8")


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
            line["mask"] = segmentation_of(row, path)
        if row.keypoints:
            line["keypoints"] = row.keypoints
        lines.append(to_json(line, path))
    with replacing(path) as temporary:
        temporary.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


FORMATS: dict[str, Callable[[list[Label], Path, str], None]] = {
    "cpl": _cpl, "transvg": write_transvg, "refclip": _refclip, "realgin": write_realgin, "mattnet": write_mattnet,
    "seqtr": _seqtr, "coco": _coco, "jsonl": _jsonl,
}  # fmt: skip
