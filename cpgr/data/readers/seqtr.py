"""SeqTR's JSON: {split: [{"image_id", "width", "height", "bbox", "expressions", "mask"}, ...]}, box x,y,w,h.

    <root>/annotations/<dataset>/instances.json, <root>/<dataset>/instances.json or <root>/instances.json

Data sets are called refcoco-unc, refcocoplus-unc, refcocog-umd, ... there; refcoco+:unc means refcocoplus-unc. A mask
is a list of polygons or an RLE. Image files are named as RefCLIP's (`file_name` goes before; `data_source` tells the
sources of the mixed set apart).
"""

from __future__ import annotations

from ..records import Problems
from .collect import Record, Source
from .config import DataConfig
from .files import COCO_FOLDERS, dataset_file, image_folder, load_json, need_root, split_items, text_id
from .refclip import numbered_file
from .regions import Region


def read_seqtr(config: DataConfig, split: str, problems: Problems) -> Source:
    """The records of a split; expression ids are `<split>:<entry>:<expression>`."""
    root = need_root(config)
    name = config.dataset.replace("+", "plus").replace(":", "-")
    file = dataset_file(root, config.dataset, [f"annotations/{name}/instances.json", f"{name}/instances.json", f"{name}.json", "instances.json"], "*.json")
    entries = split_items(load_json(file), split, file)
    family = config.dataset.partition(":")[0]
    names = (_file_name(entry, name) for entry in entries if isinstance(entry, dict))
    source = Source(file, image_folder(config, [root / f.format(ds=family) for f in COCO_FOLDERS], names))
    for index, entry in enumerate(entries):
        label = f"{split} entry {index}"
        image_id = text_id(entry.get("image_id")) if isinstance(entry, dict) else None
        if image_id is None or not isinstance(entry.get("expressions"), list):
            problems.bad(file, label, "is no entry with an image_id and a list expressions")
            continue
        size = (entry.get("width"), entry.get("height"))
        region = Region(label, entry.get("bbox"), "xywh", entry.get("mask"), size if None not in size else None)
        for place, text in enumerate(entry["expressions"]):
            source.add(Record(label, image_id, _file_name(entry, name), f"{split}:{index}:{place}", text), region)
    return source


def _file_name(entry: dict, dataset: str):
    if "file_name" in entry:
        return entry["file_name"]
    return numbered_file(entry.get("image_id"), entry.get("data_source", dataset))
