"""A folder of images with a list of expressions: what a user writes for a data set of one's own.

    <root>/<split>.jsonl or <root>/<dataset>_<split>.jsonl, a JSON object a line:
        {"image": "a.jpg", "expression": "the dog on the left", "box": [x1, y1, x2, y2], "id": "17"}
        {"image": "a.jpg", "texts": [{"text": "the dog on the left"}], "box_xyxy": [x1, y1, x2, y2]}   (`export`, jsonl)
    <root>/<dataset>.json, all splits in one file:
        {"images": [{"image_id", "file_name", "refs": [{"split", "sentences": [...], "bbox": [x, y, w, h]}, ...]}, ...]}
    images in <root>/images or in <root>

The box may be missing or null: training never sees it, and such expressions are not evaluated.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

from ...errors import CpgrError
from ..records import Problems
from .collect import Record, Source
from .config import DataConfig
from .files import dataset_file, image_folder, load_json, need_root, of_split, text_id
from .regions import Region


def read_folder(config: DataConfig, split: str, problems: Problems) -> Source:
    """The records of a split; expression ids are the file's, else `<split>:<line>`."""
    root = need_root(config)
    name = config.dataset
    for path in (root / f"{name}_{split}.jsonl", root / f"{split}.jsonl", root / name / f"{split}.jsonl"):
        if path.is_file():
            return _lines(config, split, path, [path.parent / "images", root / "images", path.parent, root], problems)
    if any(root.glob("*.jsonl")) and not (root / f"{name}.json").is_file():
        there = ", ".join(sorted(path.name for path in root.glob("*.jsonl")))
        raise CpgrError(f"{root}: has no {split}.jsonl for the split {split!r}; it has {there}")
    return _flat(config, split, dataset_file(root, name, [f"{name}.json"], "*.json"), [root / "images", root], problems)


def _lines(config: DataConfig, split: str, file: Path, folders: list[Path], problems: Problems) -> Source:
    found = []
    for number, line in enumerate(file.read_bytes().split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line.decode("utf-8-sig"))
        except (ValueError, RecursionError):
            entry = None
        if isinstance(entry, dict) and isinstance(entry.get("image"), str):
            found.append((number, entry))
        else:
            problems.bad(file, f"line {number}", "is no JSON object with an image")
    source = Source(file, image_folder(config, folders, (entry["image"] for _, entry in found)))
    for number, entry in found:
        label = f"line {number}"
        region = Region(label, entry.get("box", entry.get("box_xyxy")), "xyxy", entry.get("mask"), optional=True)
        for place, (text, given) in enumerate(_texts(entry)):
            expression_id = text_id(given) or f"{split}:{number}" + (f":{place}" if place else "")
            source.add(Record(label, entry["image"], entry["image"], expression_id, text), region)
    return source


def _texts(entry: dict) -> list[tuple]:
    """The expressions of a line and the ids it gives them."""
    texts = entry.get("texts")
    if "expression" in entry or not isinstance(texts, list):
        return [(entry.get("expression"), entry.get("id"))]
    return [(text.get("text"), text.get("id")) if isinstance(text, dict) else (text, None) for text in texts]


def _flat(config: DataConfig, split: str, file: Path, folders: list[Path], problems: Problems) -> Source:
    content = load_json(file)
    images = content.get("images") if isinstance(content, dict) else None
    if not isinstance(images, list):
        raise CpgrError(f"{file}: must hold an object with a list of images")
    splits: Counter = Counter()
    source = Source(file, image_folder(config, folders, (image.get("file_name") for image in images if isinstance(image, dict))))
    for place, image in enumerate(images):
        image_id = text_id(image.get("image_id", image.get("file_name"))) if isinstance(image, dict) else None
        if image_id is None or not isinstance(image.get("refs"), list):
            problems.bad(file, f"image {place}", "is no object with an image_id and a list of refs")
            continue
        for index, ref in enumerate(image["refs"]):
            label = f"image {image_id}, ref {index}"
            if not isinstance(ref, dict) or not isinstance(ref.get("sentences"), list):
                problems.bad(file, label, "has no list of sentences")
                continue
            splits[str(ref.get("split"))] += 1
            if ref.get("split") == split:
                _add_ref(source, label, image_id, image, index, ref)
    return source if source.records else of_split(dict(splits), split, file)


def _add_ref(source: Source, label: str, image_id: str, image: dict, index: int, ref: dict) -> None:
    size = (image.get("width"), image.get("height"))
    region = Region(label, ref.get("bbox"), "xywh", ref.get("segmentation"), size if None not in size else None, optional=True)
    for place, text in enumerate(ref["sentences"]):
        source.add(Record(label, image_id, image.get("file_name"), f"{image_id}:{index}:{place}", text), region)
