"""REFER files (RefCOCO, RefCOCO+, RefCOCOg, RefCLEF; the built-in world): refs(<who split it>).p, instances.json.

    <root>/<dataset>/{refs(unc).p, instances.json}
    images in <root>/<dataset>/images, <root>/images/<dataset>, <root>/images/train2014,
    <root>/images/mscoco/images/train2014, <root>/train2014, <root>/images/saiapr_tc-12 or <root>/images

A folder with several refs files needs the choice in the data set's name: `refcocog:umd` is refs(umd).p. The ids of
images are those of instances.json, those of expressions the sent_ids.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from ...errors import CpgrError
from ..pickles import load_pickle
from ..records import Problems
from .collect import Record, Source
from .config import DEFAULT_DATASET, DataConfig
from .files import COCO_FOLDERS, image_folder, load_json, need_root, of_split, text_id
from .regions import Region


def read_refer(config: DataConfig, split: str, problems: Problems) -> Source:
    """The records of a split, `test` being all splits whose name begins so, `testA` also testAB (as REFER has it)."""
    root = need_root(config)
    name, _, chosen = config.dataset.partition(":")
    folder = _dataset_folder(root, name)
    refs_file, instances_file = _refs_file(folder, name, chosen), folder / "instances.json"
    refs, instances = load_pickle(refs_file), load_json(instances_file)
    if not isinstance(refs, list) or not isinstance(instances, dict):
        raise CpgrError(f"{folder}: refs(...).p must hold a list and instances.json an object: these are no REFER files")
    wanted = _of_split(refs, split, refs_file, problems)
    images = {text_id(i.get("id")): i for i in _dicts(instances, "images")}
    annotations = {text_id(a.get("id")): a for a in _dicts(instances, "annotations")}
    categories = {text_id(c.get("id")): c.get("name") for c in _dicts(instances, "categories")}
    names = (images.get(text_id(ref.get("image_id")), {}).get("file_name") for ref in wanted)
    source = Source(refs_file, image_folder(config, [root / f.format(ds=name) for f in COCO_FOLDERS], names))
    for ref in wanted:
        _add(source, ref, images, annotations, problems)
    used = {record.image_id for record in source.records}
    for found in annotations.values():
        image_id = text_id(found.get("image_id"))
        if image_id in used:
            found.setdefault("category", categories.get(text_id(found.get("category_id"))) or "")
            source.objects.setdefault(image_id, []).append(found)
    return source


def _dataset_folder(root: Path, name: str) -> Path:
    for folder in (root / name, root / "refer" / name, root):
        if any(folder.glob("refs(*).p")):
            return folder
    there = sorted({path.parent.name for path in root.glob("*/refs(*).p")})
    if name in ("", DEFAULT_DATASET) and len(there) == 1:
        return root / there[0]
    raise CpgrError(f"{root}: has no REFER data set {name!r}; " + (f"it has {', '.join(there)}" if there else "no folder in it holds refs(...).p"))


def _refs_file(folder: Path, name: str, chosen: str) -> Path:
    there = {path.name[5:-3]: path for path in sorted(folder.glob("refs(*).p"))}
    if chosen in there:
        return there[chosen]
    if len(there) == 1 and not chosen:
        return next(iter(there.values()))
    choices = ", ".join(f"{name}:{by}" for by in there)
    raise CpgrError(f"{folder}: " + (f"has no refs({chosen}).p" if chosen else "has several refs files") + f"; give --data.dataset as {choices}")


def _of_split(refs: list, split: str, file: Path, problems: Problems) -> list[dict]:
    wanted, found = [], Counter()
    for index, ref in enumerate(refs):
        if not isinstance(ref, dict) or not isinstance(ref.get("split"), str):
            problems.bad(file, f"entry {index}", "is no ref with a split")
            continue
        found[ref["split"]] += 1
        if _in_split(ref["split"], split):
            wanted.append(ref)
    return wanted or of_split(dict(found), split, file)


def _in_split(name: str, wanted: str) -> bool:
    if name == wanted or (wanted == "test" and name.startswith("test")):
        return True
    return wanted in ("testA", "testB", "testC") and name.startswith("test") and wanted[-1] in name[4:]


def _dicts(instances: dict, key: str) -> list[dict]:
    values = instances.get(key)
    return [value for value in values if isinstance(value, dict)] if isinstance(values, list) else []


def _add(source: Source, ref: dict, images: dict, annotations: dict, problems: Problems) -> None:
    label = f"ref {text_id(ref.get('ref_id'))}"
    image_id = text_id(ref.get("image_id"))
    sentences = ref.get("sentences")
    if image_id not in images or image_id is None:
        problems.bad(source.file, label, "its image is not in instances.json")
        return
    if not isinstance(sentences, list):
        problems.bad(source.file, label, "has no list of sentences")
        return
    image = images[image_id]
    region = _region(label, annotations.get(text_id(ref.get("ann_id"))), image)
    for index, sentence in enumerate(sentences):
        where = f"{label}, sentence {index + 1}"
        sentence_id = text_id(sentence.get("sent_id")) if isinstance(sentence, dict) else None
        if sentence_id is None:
            problems.bad(source.file, where, "is no sentence with a sent_id")
            continue
        # `raw` keeps the writer's case and punctuation, but REFER's users and its papers train on `sent`.
        text = sentence.get("sent", sentence.get("raw"))
        source.add(Record(where, image_id, image.get("file_name"), sentence_id, text), region)


def _region(label: str, found: dict | None, image: dict) -> Region:
    if found is None:
        return Region(label, problem="its annotation is not in instances.json")
    size = (image.get("width"), image.get("height"))
    # `has_mask` false marks a polygon that only repeats the box.
    mask = found.get("segmentation") if found.get("has_mask", True) else None
    return Region(label, found.get("bbox"), "xywh", mask, size if None not in size else None, found)
