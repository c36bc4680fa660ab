"""Label files: a table of a run, or any file that the readers read, as labels for the images of a split.

Images are matched by file name and expressions by their words, so a file may number both as it likes.
"""

from __future__ import annotations

import logging
import os
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

from ..errors import CpgrError
from ..labels import Label, LabelTable
from .readers import DataConfig, read_split
from .readers.files import load_json
from .readers.transvg import ALIASES
from .records import Image, Problems, Split, Truth

log = logging.getLogger("cpgr")

KINDS = ".parquet (a run's labels), .json (RefCLIP, SimREC, SeqTR), .pth (TransVG, CPL), .txt (RealGIN), .jsonl, or refs(NAME).p (REFER, MAttNet)"


def read_labels(path: str | Path, split: Split, data: DataConfig) -> LabelTable:
    """The labels in the file that are about images of `split`, in the file's order.

    `data` is the config `split` was read by: its `train_split` is the split that is taken of a file which holds several. Raises
    CpgrError for a file of no known kind, for one about other images, and as the readers do.
    """
    path = label_file(path)
    if path.suffix == ".parquet":
        rows = [row for row in LabelTable.load(path) if row.kept and row.box is not None and row.expression]
    else:
        config = file_config(path, data, split)
        rows = list(held_labels(*read_split(config, config.train_split, Problems(data.on_bad))))
    table = _on_split(rows, split)
    if not table:
        example = f", such as {rows[0].file_name!r}" if rows else ""
        raise CpgrError(f"{path}: none of its {len(rows)} labels{example} is about an image of the split {split.name!r}")
    if len(table) < len(rows):
        log.warning("%s: %d of its %d labels are about images that the split %s does not have", path, len(rows) - len(table), len(rows), split.name)
    return table


def label_file(path: str | Path) -> Path:
    """The path of a label file that is there."""
    if not Path(path).is_file():
        raise CpgrError(f"{path}: there is no such label file (give one ending in {KINDS})")
    return Path(path)


def held_labels(split: Split, truth: Truth) -> LabelTable:
    """Every expression of the split that has a box in `truth`, with that box: labels for full supervision."""
    return LabelTable(
        _label(split.images[e.image_id], e.text, truth.boxes[e.expression_id], expression_id=e.expression_id)
        for e in split.expressions
        if e.expression_id in truth.boxes
    )


def file_config(path: Path, data: DataConfig, split: Split) -> DataConfig:
    """How a reader is told of one file, its images being those of `split`."""
    config = replace(data, root=str(path.parent), images=_folder(split), check_images="header", limit=0)
    if path.suffix == ".json":
        return replace(config, format=_json_format(path), dataset=path.stem)
    if path.suffix == ".pth":
        dataset, line, name = path.stem.rpartition("_")
        if not line:
            raise CpgrError(f"{path}: a .pth of labels is called <dataset>_<split>.pth")
        # by one of TransVG's other names for a data set its reader would look for another file
        return replace(config, format="transvg", dataset="" if dataset in ALIASES else dataset, train_split=name)
    if path.suffix in (".jsonl", ".txt"):
        return replace(config, format="folder" if path.suffix == ".jsonl" else "realgin", dataset="", train_split=path.stem)
    if path.suffix == ".p" and path.name.startswith("refs("):
        return replace(config, format="refer", dataset=f"{path.parent.name}:{path.name[5:-3]}")
    raise CpgrError(f"{path}: is no label file that is known; give one ending in {KINDS}")


def _json_format(path: Path) -> str:
    content = load_json(path)
    if isinstance(content, dict) and "images" in content:
        return "folder"
    items = next((v for v in content.values() if isinstance(v, list) and v), []) if isinstance(content, dict) else []
    keys = set(items[0]) if items and isinstance(items[0], dict) else set()
    if "refs" in keys or "expressions" in keys:
        return "refclip" if "refs" in keys else "seqtr"
    raise CpgrError(f"{path}: holds no labels: neither items with `refs` (RefCLIP, SimREC) nor with `expressions` (SeqTR)")


def _folder(split: Split) -> str:
    """The folder that the split's file names start from."""
    image = next(iter(split.images.values()))
    return str(image.path)[: -len(image.file_name)] or "."


def _on_split(rows: list[Label], split: Split) -> LabelTable:
    """The rows about images of the split, as labels of its images and, where the words are the same, of its expressions."""
    images = {os.path.basename(image.file_name): image for image in split.images.values()}
    expressions = defaultdict(list)
    for e in split.expressions:
        expressions[e.image_id, _words(e.text)].append(e.expression_id)
    out = []
    for row in rows:
        image = images.get(os.path.basename(row.file_name))
        if image is None:
            continue
        same = expressions.get((image.image_id, _words(row.expression)))
        known = {"expression_id": same.pop(0), "kind": "dataset"} if same else {"expression_id": "", "kind": "generated"}
        about = {"category": row.category, "attributes": row.attributes, "scores": row.scores, "weight": row.weight}
        out.append(_label(image, row.expression, row.box, **known, **about))
    return LabelTable(out)


def _words(text: str) -> str:
    return " ".join(text.lower().split())


def _label(image: Image, text: str, box: list[float], **more) -> Label:
    return Label(image.image_id, image.file_name, image.width, image.height, list(box), expression=text, **more)
