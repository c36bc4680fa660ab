"""Detections made elsewhere, read from a file: COCO results, or CPL's dump of VinVL's objects."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path

from ...errors import DataError
from ...regions import xywh_to_xyxy
from ..pickles import load_pickle, load_torch
from ..records import Image
from .detections import Detections

_MEND = "write the file again in one of the two forms"


class FileDetector:
    """Detections by image, from a .json, .pth or pickle file.

    COCO results: `[{"image_id", "category_id" or "category", "bbox": [x, y, w, h], "score"}, ...]`, or an
    object with such "annotations" and with "categories" and "images" of its own. Class names come from its
    "categories", else from an `instances*.json` beside it; failing both, the id is the word. CPL's dump:
    `{image_stem: [[[attribute, ..., class], score, [x1, y1, x2, y2]], ...]}`.

    An image is matched by its id, file name, stem, or the number that ends its stem (COCO's file names). An
    image that the file does not name has no detections. Raises DataError with file and record.
    """

    def __init__(self, path: str | Path, config):
        self.path = Path(path)
        content = _load(self.path)
        rows = _cpl_rows(self.path, content) if _is_cpl(content) else _coco_rows(self.path, content)
        self.by_key: dict[str, list[tuple]] = {}
        for key, row in rows:
            self.by_key.setdefault(key, []).append(row)

    def detect(self, images: list[Image]) -> list[Detections]:
        return [self._detect(image) for image in images]

    def _detect(self, image: Image) -> Detections:
        rows = next((self.by_key[key] for key in _keys(image) if key in self.by_key), [])
        boxes, scores, words = zip(*rows, strict=True) if rows else ((), (), ())
        return Detections(list(boxes), list(scores), [w[-1] for w in words], [list(w[:-1]) for w in words])


def _keys(image: Image) -> list[str]:
    stem = Path(image.file_name).stem
    number = re.search(r"\d+$", stem)
    keys = [image.image_id, image.file_name, Path(image.file_name).name, stem]
    return [*keys, str(int(number.group()))] if number else keys


def _load(path: Path):
    if path.suffix == ".json":
        return _load_json(path)
    return load_torch(path) if path.suffix in (".pth", ".pt") else load_pickle(path)


def _load_json(path: Path):
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(path, "", f"cannot be read: {error.strerror or error}", "check the path after file:") from error
    except (ValueError, RecursionError) as error:
        raise DataError(path, "", f"is no JSON: {str(error)[:200]}", _MEND) from error


def _is_cpl(content) -> bool:
    return isinstance(content, dict) and "annotations" not in content


def _cpl_rows(path: Path, content: dict) -> Iterator[tuple[str, tuple]]:
    for stem, objects in content.items():
        if not isinstance(objects, (list, tuple)):
            raise DataError(path, f"image {stem}", "its objects are no list", _MEND)
        for index, entry in enumerate(objects):
            record = f"image {stem}, object {index}"
            try:
                words, score, box = entry
            except (TypeError, ValueError) as error:
                raise DataError(path, record, "is not [words, score, box]", _MEND) from error
            if not isinstance(words, (list, tuple)) or not words or not all(isinstance(word, str) for word in words):
                raise DataError(path, record, "its words are not a list of texts that ends with the class", _MEND)
            yield str(stem), (_numbers(path, record, box, 4), *_numbers(path, record, [score], 1), tuple(words))


def _coco_rows(path: Path, content) -> Iterator[tuple[str, tuple]]:
    tables = content if isinstance(content, dict) else {}
    records = tables.get("annotations", content)
    if not isinstance(records, list):
        raise DataError(path, "", "holds neither a list of COCO results nor CPL's dictionary", _MEND)
    names = _category_names(path, tables.get("categories"))
    files = {str(image["id"]): str(image["file_name"]) for image in tables.get("images") or [] if "id" in image and "file_name" in image}
    for index, entry in enumerate(records):
        record = f"record {index}"
        if not isinstance(entry, dict) or "image_id" not in entry or "bbox" not in entry:
            raise DataError(path, record, "has no image_id or no bbox", _MEND)
        name = entry.get("category", names.get(str(entry.get("category_id")), entry.get("category_id")))
        if name is None:
            raise DataError(path, record, "has neither category_id nor category", _MEND)
        box = xywh_to_xyxy(_numbers(path, record, entry["bbox"], 4))
        attributes = entry.get("attributes", [])
        if not isinstance(attributes, list) or not all(isinstance(word, str) for word in attributes):
            raise DataError(path, record, "its attributes are no list of texts", _MEND)
        image = str(entry["image_id"])
        yield files.get(image, image), (box, *_numbers(path, record, [entry.get("score", 1.0)], 1), (*attributes, str(name)))


def _category_names(path: Path, categories) -> dict[str, str]:
    for beside in sorted(path.parent.glob("instances*.json")):
        if categories:
            break
        content = _load_json(beside)
        categories = content.get("categories") if isinstance(content, dict) else None
    try:
        return {str(category["id"]): str(category["name"]) for category in categories or []}
    except (TypeError, KeyError) as error:
        raise DataError(path, "categories", "are not COCO's list of {id, name}", _MEND) from error


def _numbers(path: Path, record: str, values, count: int) -> list[float]:
    """`values` as floats; numpy arrays and tensors of a pickle as well."""
    try:
        numbers = [float(value) for value in values]
    except (TypeError, ValueError) as error:
        raise DataError(path, record, f"{str(values)[:80]} are not numbers", _MEND) from error
    if len(numbers) != count or not all(map(math.isfinite, numbers)):
        raise DataError(path, record, f"{str(values)[:80]} are not {count} finite number{'s' * (count > 1)}", _MEND)
    return numbers
