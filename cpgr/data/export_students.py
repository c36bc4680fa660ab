"""Labels in the files that TransVG, RealGIN and MAttNet train on. (SimREC's is RefCLIP's: the format `refclip`.)"""

from __future__ import annotations

import math
import pickle
from contextlib import ExitStack
from pathlib import Path

import torch

from ..errors import CpgrError, DataError
from ..labels import Label, LabelTable
from .export_parts import area_of, box_of, image_numbers, label_name, replacing, segmentation_of, to_json, xywh_of
from .proposals.coco import COCO_CLASSES
from .readers.transvg import ALIASES, XYWH, XYXY

NO_ATTRIBUTES = [(f"r{number}", ["none"]) for number in range(1, 9)]  # what TransVG's files hold where the parser found none


def write_transvg(rows: list[Label], path: Path, split: str) -> None:
    """The tuples of TransVG's own files, in the box order that it takes for the data set the file's name begins with:

        unc, unc+, gref, gref_umd    (image, mask file, [x, y, w, h], expression, attributes)
        referit                      (image, mask file, [x1, y1, x2, y2], expression, attributes)
        flickr                       (image, [x1, y1, x2, y2], expression)
    """
    name = path.name.removesuffix(f"_{split}.pth")
    name = ALIASES.get(name, name)
    if name not in XYWH | XYXY:
        known = ", ".join(sorted(XYWH | XYXY))
        raise CpgrError(f"{path}: TransVG takes the box order from the file's name; call it <data set>_{split}.pth, the data set being {known}")
    items = []
    for index, row in enumerate(rows):
        box = xywh_of(row, path) if name in XYWH else box_of(row, path)
        items.append((row.file_name, box, row.expression) if name == "flickr" else (row.file_name, f"{index}.pth", box, row.expression, NO_ATTRIBUTES))
    with replacing(path) as temporary:
        torch.save(items, temporary)


def write_realgin(rows: list[Label], path: Path, split: str) -> None:
    """A line a label: `image x1,y1,x2,y2,category,mask ~ expression`, whole pixels, COCO's number of the category from 0
    (-1: none of COCO's), the mask's number the label's. A tilde in an expression, which would end it, becomes a space."""
    classes = {name: index for index, name in enumerate(COCO_CLASSES)}
    lines = []
    for index, row in enumerate(rows):
        if len(row.file_name.split()) != 1:
            raise DataError(path, label_name(row), f"its file name {row.file_name!r} has white space, which ends it in this format", "rename the image")
        box = ",".join(map(str, _whole(box_of(row, path))))
        text = " ".join(row.expression.replace("~", " ").split())
        lines.append(f"{row.file_name} {box},{classes.get(row.category, -1)},{index} ~ {text}\n")
    with replacing(path) as temporary:
        temporary.write_text("".join(lines), encoding="utf-8")


def _whole(box: list[float]) -> list[int]:
    """Corners in whole pixels; a box of less than one is widened to it."""
    low, high = [round(v) for v in box[:2]], [round(v) for v in box[2:]]
    for axis in (0, 1):
        if high[axis] <= low[axis]:
            low[axis], high[axis] = math.floor(box[axis]), max(math.ceil(box[axis + 2]), math.floor(box[axis]) + 1)
    return low + high


def write_mattnet(rows: list[Label], path: Path, split: str, candidates: LabelTable | None = None) -> None:
    """REFER's two files, which MAttNet's own preparation reads: `path` is refs(NAME).p, instances.json lies beside it.

    Every label is a ref of one sentence. Its annotation is new, with the label's box; or, with `candidates`, one of those:
    the candidate of the image that the box overlaps best, since MAttNet ranks the objects of a detector.
    """
    if not (path.name.startswith("refs(") and path.name.endswith(").p")):
        raise CpgrError(f"{path}: REFER's readers look for refs(NAME).p; name the file so")
    objects, chosen = (rows, range(len(rows))) if candidates is None else _best(rows, candidates, path)
    numbers = image_numbers([*rows, *objects])
    names = sorted({o.category or "object" for o in objects})
    annotations = [
        {
            "id": index, "image_id": numbers[o.image_id], "category_id": names.index(o.category or "object") + 1, "bbox": xywh_of(o, path),
            "area": area_of(o, path), "iscrowd": 0, "segmentation": segmentation_of(o, path),
        }
        for index, o in enumerate(objects, 1)
    ]  # fmt: skip
    refs = []
    for index, (row, at) in enumerate(zip(rows, chosen, strict=True), 1):
        sentence = {"raw": row.expression, "sent": row.expression, "sent_id": index, "tokens": row.expression.split()}
        annotation = annotations[at]
        refs.append(
            {
                "ref_id": index, "ann_id": annotation["id"], "category_id": annotation["category_id"], "image_id": annotation["image_id"],
                "file_name": row.file_name, "split": split, "sent_ids": [index], "sentences": [sentence],
            }
        )  # fmt: skip
    images = {row.image_id: {"id": numbers[row.image_id], "file_name": row.file_name, "width": row.width, "height": row.height} for row in rows}
    categories = [{"id": index, "name": name, "supercategory": name} for index, name in enumerate(names, 1)]
    instances = {"images": list(images.values()), "annotations": annotations, "categories": categories}
    beside = path.with_name("instances.json")
    with ExitStack() as both:
        both.enter_context(replacing(path)).write_bytes(pickle.dumps(refs, protocol=2))  # MAttNet is of Python 2
        both.enter_context(replacing(beside)).write_text(to_json(instances, beside), encoding="utf-8")


def _best(rows: list[Label], candidates: LabelTable, path: Path) -> tuple[list[Label], list[int]]:
    """The candidates of the labels' images, and for each label the place of the one with the greatest IoU (of equal ones
    the first)."""
    from cpgr_kernels import box_match

    wanted = {row.image_id for row in rows}
    objects = [c for c in candidates if c.image_id in wanted and c.box is not None]
    places: dict[str, list[int]] = {}
    for place, candidate in enumerate(objects):
        places.setdefault(candidate.image_id, []).append(place)
    chosen = []
    for row in rows:
        if row.image_id not in places:
            raise DataError(path, label_name(row), "its image has no candidates", "give candidates of every image, or write new annotations")
        mine = places[row.image_id]
        boxes = torch.tensor([objects[p].box for p in mine], dtype=torch.float64)
        found = box_match(torch.tensor([box_of(row, path)], dtype=torch.float64), boxes)
        chosen.append(mine[int(found.index1[0])])
    return objects, chosen
