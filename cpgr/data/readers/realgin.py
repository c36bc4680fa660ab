"""RealGIN's text files: a line a referent, boxes as corners in whole pixels.

    <root>/anns/<dataset>/<split>.txt, <root>/<dataset>/<split>.txt or <root>/<split>.txt

    COCO_train2014_000000000839.jpg 303,69,597,495,0,482127 ~ guy on the right ~ falling

After the box come the category's number and the mask's; neither is read. A tilde parts the expressions.
"""

from __future__ import annotations

from ...errors import DataError
from ..records import Problems
from .collect import Record, Source
from .config import DataConfig
from .files import COCO_FOLDERS, dataset_file, image_folder, need_root
from .regions import Region


def read_realgin(config: DataConfig, split: str, problems: Problems) -> Source:
    """The records of a split; expression ids are `<split>:<line>:<expression>`."""
    root, name = need_root(config), config.dataset.partition(":")[0]
    file = dataset_file(root, config.dataset, [f"anns/{name}/{split}.txt", f"{name}/{split}.txt", f"{split}.txt"], f"{split}.txt")
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(file, "", f"cannot be read as text: {error}", "get the file again from its source") from error
    parts = [[part.strip() for part in line.split("~")] for line in lines]
    names = (first.split()[0] for first, *_ in parts if first)
    source = Source(file, image_folder(config, [root / f.format(ds=name) for f in COCO_FOLDERS], names))
    for number, (first, *texts) in enumerate(parts, 1):
        if not first and not texts:
            continue  # an empty line
        label, fields = f"line {number}", first.split()
        if len(fields) != 2 or not texts:
            problems.bad(file, label, "is not `image x1,y1,x2,y2,category,mask ~ expression ~ ...`")
            continue
        region = Region(label, _box(fields[1]))
        for place, text in enumerate(texts):
            source.add(Record(label, fields[0], fields[0], f"{split}:{number}:{place}", text), region)
    return source


def _box(text: str) -> list[float] | None:
    try:
        return [float(v) for v in text.split(",")[:4]]
    except ValueError:
        return None
