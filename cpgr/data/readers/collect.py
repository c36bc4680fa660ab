"""From the records of any format to a `Split` and its `Truth`: the weak-supervision boundary.

`_split` decides which images and expressions there are; it is never handed a region. `_truth` looks at the regions
of the finished split, and can change nothing in it.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from ...errors import CpgrError, DataError
from ..images import check_image, image_size, safe_join
from ..records import Expression, Image, Problems, Split, Truth
from .config import DataConfig
from .regions import Region, RegionError, read_box, read_mask

_CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]+")
_AHEAD = 64  # images checked ahead of the one whose turn it is


@dataclass(slots=True)
class Record:
    """One expression of a file. `label` is what messages call it ("ref 7")."""

    label: str
    image_id: str
    file_name: object
    expression_id: str
    text: object


@dataclass
class Source:
    """What a reader found: the records of a split in file order, and apart from them their regions.

    `regions` has a region for each record, sentences of one referent sharing theirs; `objects` the labelled objects
    of an image by its id. `folder` holds the images, `file` is what messages name.
    """

    file: Path
    folder: Path
    records: list[Record] = field(default_factory=list)
    regions: list[Region] = field(default_factory=list)
    objects: dict[str, list[dict]] = field(default_factory=dict)

    def add(self, record: Record, region: Region) -> None:
        self.records.append(record)
        self.regions.append(region)


def build_split(name: str, source: Source, config: DataConfig, problems: Problems, progress: Callable) -> tuple[Split, Truth]:
    """The split and the truth of `source`; at most `config.limit` images where it is the training split."""
    split, chosen = _split(name, source.file, source.folder, source.records, config, problems, progress)
    if not split.expressions:
        first = f"; the first problem: {problems.skipped[0]}" if problems.skipped else ""
        raise CpgrError(f"{source.file}: the split {name!r} has no expression that can be used{first}")
    regions = [source.regions[index] for index in chosen]
    return split, _truth(split, source.file, regions, source.objects, problems)


def clean_text(text: str) -> str:
    """NFC form, control characters and lone surrogates out, runs of white space as one space; the case is kept."""
    if not text.isascii():
        text = unicodedata.normalize("NFC", text)
    if not text.isprintable():
        text = _CONTROLS.sub(" ", text)
    return " ".join(text.split())


def _split(
    name: str, file: Path, folder: Path, records: list[Record], config: DataConfig, problems: Problems, progress: Callable
) -> tuple[Split, list[int]]:
    """The split, and the index of each of its expressions among `records`."""
    split, groups = Split(name), {}
    for index, record in enumerate(records):
        groups.setdefault(record.image_id, []).append(index)
    limit = len(groups)
    if config.limit > 0 and name == config.train_split:
        limit = min(limit, config.limit)
    texts: dict[int, str] = {}
    seen: set[str] = set()

    def candidates() -> Iterator[Record]:
        """The first record of each image that has a usable expression."""
        for group in groups.values():
            texts.update((index, text) for index in group if (text := _text(records[index], seen, file, problems)))
            if any(index in texts for index in group):
                yield records[group[0]]

    look = check_image if config.check_images == "decode" else image_size

    def check(record: Record) -> Image | DataError:
        label = f"image {record.image_id}"
        try:
            path = safe_join(folder, record.file_name, file=file, record=label)
            width, height = look(path, record=label, max_pixels=config.max_pixels)
        except DataError as error:
            return error
        return Image(record.image_id, str(record.file_name), path, width, height)

    with closing(_ahead(check, candidates())) as checked:
        for result in progress(checked, f"checking the images of {name}", limit):
            if isinstance(result, DataError):
                problems.bad(result.file, result.record, result.problem)
                continue
            split.images[result.image_id] = result
            if len(split.images) >= limit:
                break
    chosen = [index for index, record in enumerate(records) if index in texts and record.image_id in split.images]
    split.expressions = [Expression(records[i].expression_id, records[i].image_id, texts[i]) for i in chosen]
    return split, chosen


def _text(record: Record, seen: set[str], file: Path, problems: Problems) -> str:
    """The cleaned expression, or "" where it cannot be used."""
    if not isinstance(record.text, str):
        problems.bad(file, record.label, "the expression is not a text")
        return ""
    text = clean_text(record.text)
    if not text:
        problems.bad(file, record.label, "the expression is empty")
        return ""
    if record.expression_id in seen:
        problems.bad(file, record.label, "the expression's id is used twice")
        return ""
    seen.add(record.expression_id)
    return text


def _ahead(check: Callable, items: Iterable) -> Iterator:
    """`check` of every item, in order, by a few threads that work ahead (Pillow decodes outside Python's lock)."""
    pool, waiting = ThreadPoolExecutor(min(4, os.cpu_count() or 1)), deque()
    try:
        for item in items:
            waiting.append(pool.submit(check, item))
            if len(waiting) >= _AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _truth(split: Split, file: Path, regions: list[Region], objects: dict[str, list[dict]], problems: Problems) -> Truth:
    truth, places = Truth(), {}
    for image_id, image in split.images.items():
        usable = [found for found in objects.get(image_id, ()) if _usable(found, image)]
        places.update((id(found), place) for place, found in enumerate(usable))
        if usable:
            truth.objects[image_id] = usable
    read: dict[int, tuple] = {}  # a referent's region is read, and complained of, once for all its sentences
    for expression, region in zip(split.expressions, regions, strict=True):
        if id(region) not in read:
            read[id(region)] = _read(region, split.images[expression.image_id], file, problems)
        box, mask = read[id(region)]
        if box is not None:
            truth.boxes[expression.expression_id] = box
        if mask is not None:
            truth.masks[expression.expression_id] = mask
        if id(region.object) in places:
            truth.object_ids[expression.expression_id] = places[id(region.object)]
    return truth


def _usable(found: dict, image: Image) -> bool:
    try:
        read_box(found.get("bbox"), "xywh", image.width, image.height)
    except RegionError:
        return False
    return True


def _read(region: Region, image: Image, file: Path, problems: Problems) -> tuple:
    """Box and mask, each None where it cannot be used."""
    if region.problem:
        problems.bad(file, region.label, region.problem)
        return None, None
    if region.box is None and region.optional:
        return None, None
    if region.size is not None and tuple(region.size) != (image.width, image.height):
        problems.bad(file, region.label, "the annotations are for an image of another size")
        return None, None
    box = mask = None
    try:
        box, mended = read_box(region.box, region.order, image.width, image.height)
        if mended:
            problems.bad(file, region.label, mended)
        mask = read_mask(region.mask, image.width, image.height)
    except RegionError as error:
        problems.bad(file, region.label, str(error))
    return box, mask
