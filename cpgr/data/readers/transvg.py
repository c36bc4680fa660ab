"""The .pth lists of TransVG, Pseudo-Q and CPL: <root>/<data set>_<split>.pth, one element an expression.

    (image, mask file, box, phrase, attributes)   box x,y,w,h for RefCOCO, RefCOCO+ and RefCOCOg, corners for ReferIt
    (image, box, phrase)                          box x1,y1,x2,y2
    (image, box, phrase, confidence)              box x1,y1,x2,y2

The box order of the first form is known by the data set's name; another name needs `box_order`. The data sets are
called unc, unc+, gref, gref_umd, referit and flickr there; the names refcoco, refcoco+, refcocog, refclef and
flickr30k mean the same. Where no data set is named and the folder has one, it is that one.
"""

from __future__ import annotations

from pathlib import Path

from ...errors import CpgrError
from ..pickles import load_torch
from ..records import Problems
from .collect import Record, Source
from .config import DEFAULT_DATASET, DataConfig
from .files import image_folder, need_root
from .regions import Region

ALIASES = {
    "refcoco": "unc", "refcoco:unc": "unc", "refcoco+": "unc+", "refcoco+:unc": "unc+", "refcocog": "gref_umd",
    "refcocog:umd": "gref_umd", "refcocog:google": "gref", "refclef": "referit", "flickr30k": "flickr",
}  # fmt: skip
XYWH, XYXY = {"unc", "unc+", "gref", "gref_umd"}, {"referit", "flickr"}
IMAGE_FOLDERS = (
    "images", "{ds}/images", "images/train2014", "images/mscoco/images/train2014", "train2014", "referit/images", "flickr30k-images",
    "other/images/mscoco/images/train2014", "Flickr30k/flickr30k-images", "flickr30k/flickr30k-images", "images/saiapr_tc-12",
)  # fmt: skip


def read_transvg(config: DataConfig, split: str, problems: Problems) -> Source:
    """The records of <data set>_<split>.pth; expression ids are `<data set>_<split>:<index in the list>`."""
    root = need_root(config)
    file, dataset = _file(root, config.dataset, split)
    items = load_torch(file)
    if not isinstance(items, list):
        raise CpgrError(f"{file}: must hold a list of tuples, not a {type(items).__name__}")
    names = (item[0] for item in items if isinstance(item, (list, tuple)) and item)
    source = Source(file, image_folder(config, [root / f.format(ds=dataset) for f in IMAGE_FOLDERS], names))
    for index, item in enumerate(items):
        label = f"element {index}"
        if not isinstance(item, (list, tuple)) or len(item) not in (3, 4, 5):
            problems.bad(file, label, "is no tuple of 3, 4 or 5 values")
            continue
        name, box, text = (item[0], item[2], item[3]) if len(item) == 5 else item[:3]
        if not isinstance(name, str):
            problems.bad(file, label, "its image is no file name")
            continue
        order = _order(config, dataset, file) if len(item) == 5 else "xyxy"
        source.add(Record(label, name, name, f"{file.stem}:{index}", text), Region(label, box, order))
    return source


def _file(root: Path, dataset: str, split: str) -> tuple[Path, str]:
    name = ALIASES.get(dataset, dataset)
    for folder in (root, root / name, root / "data" / name):
        if (folder / f"{name}_{split}.pth").is_file():
            return folder / f"{name}_{split}.pth", name
    there = sorted(root.glob("*.pth"))
    sole = [path for path in there if path.name.endswith(f"_{split}.pth")]
    if dataset in ("", DEFAULT_DATASET) and len(sole) == 1:
        return sole[0], sole[0].name[: -len(f"_{split}.pth")]
    listed = f"it has {', '.join(path.name for path in there)}" if there else "it has no .pth files"
    shown = "<dataset>" if dataset in ("", DEFAULT_DATASET) else name
    raise CpgrError(f"{root}: has no {shown}_{split}.pth; {listed} (give --data.dataset and the splits so that <dataset>_<split>.pth is there)")


def _order(config: DataConfig, dataset: str, file: Path) -> str:
    if config.box_order != "auto":
        return config.box_order
    name = ALIASES.get(dataset, dataset)
    if name not in XYWH | XYXY:
        known = ", ".join(sorted(XYWH | XYXY))
        raise CpgrError(f"{file}: the box order of the data set {dataset!r} is not known (known: {known}); give --data.box_order xyxy or xywh")
    return "xywh" if name in XYWH else "xyxy"
