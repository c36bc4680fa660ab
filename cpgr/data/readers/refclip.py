"""RefCLIP's and SimREC's JSON: {split: [{"iid", "bbox", "cat_id", "refs", "mask_id"}, ...]}, box x,y,w,h.

    <root>/<dataset>.json, <root>/anns/<dataset>.json or <root>/anns/<dataset>/<dataset>.json

An item's image is COCO_train2014_<iid>.jpg, or <iid>.jpg for RefCLEF (refclef, referit), Visual Genome and Flickr30k;
a `file_name`, which `export` adds, goes before. The masks of these code bases are separate .npy files and not read.
"""

from __future__ import annotations

from ..records import Problems
from .collect import Record, Source
from .config import DataConfig
from .files import COCO_FOLDERS, dataset_file, image_folder, load_json, need_root, split_items, text_id
from .regions import Region

NUMBERED = ("refclef", "referit", "vg", "visual_genome", "flickr", "flickr30k", "saiaprtc12")


def read_refclip(config: DataConfig, split: str, problems: Problems) -> Source:
    """The records of a split; expression ids are `<split>:<item>:<sentence>`."""
    root = need_root(config)
    name = config.dataset.partition(":")[0]
    file = dataset_file(root, config.dataset, [f"{name}.json", f"anns/{name}.json", f"anns/{name}/{name}.json", f"{name}/{name}.json"], "*.json")
    items = split_items(load_json(file), split, file)
    names = (_file_name(item, file.stem) for item in items if isinstance(item, dict))
    source = Source(file, image_folder(config, [root / f.format(ds=name) for f in COCO_FOLDERS], names))
    for index, item in enumerate(items):
        label = f"{split} item {index}"
        image_id = text_id(item.get("iid")) if isinstance(item, dict) else None
        if image_id is None or not isinstance(item.get("refs"), list):
            problems.bad(file, label, "is no item with an iid and a list refs")
            continue
        region = Region(label, item.get("bbox"), "xywh")
        for place, text in enumerate(item["refs"]):
            source.add(Record(label, image_id, _file_name(item, file.stem), f"{split}:{index}:{place}", text), region)
    return source


def _file_name(item: dict, dataset: str):
    if "file_name" in item:
        return item["file_name"]
    return numbered_file(item.get("iid"), item.get("data_source", dataset))


def numbered_file(number, source: object) -> str | None:
    """The file name of an image that a file only gives the number of; `source` is the data set's name."""
    if type(number) is not int or number < 0:
        return None
    return f"{number}.jpg" if str(source).startswith(NUMBERED) else f"COCO_train2014_{number:012d}.jpg"
