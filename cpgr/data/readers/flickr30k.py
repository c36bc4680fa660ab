"""Flickr30k Entities as published: phrases of captions in text files, boxes of entities in XML files.

    <root>/{train,val,test}.txt        image numbers, one a line
    <root>/Sentences/<number>.txt      [/EN#283585/people A small girl] in [/EN#283586/clothing a green dress] ...
    <root>/Annotations/<number>.xml    boxes by entity number, corners counted from 1 and inclusive
    <root>/flickr30k-images/<number>.jpg

Every phrase is an expression, but for those the sentence itself marks as not visual (entity 0). An entity with
several boxes has their union as its region, the convention of the published results. Entities without a box
(`nobox`, `scene`) have no truth: their phrases can be trained on and are not evaluated.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from pathlib import Path

from ...errors import CpgrError
from ..records import Problems
from .collect import Record, Source
from .config import DataConfig
from .files import image_folder, need_root
from .regions import Region

_PHRASE = re.compile(r"\[/EN#([0-9]{1,18})/(\S+)\s+([^\[\]]*)\]")
_NUMBER = re.compile(r"\w+")


def read_flickr30k(config: DataConfig, split: str, problems: Problems) -> Source:
    """The phrases of a split's images; expression ids are `<image>:<sentence>:<phrase>`, counted from 0."""
    root = need_root(config)
    listing = root / f"{split}.txt"
    if not listing.is_file():
        there = sorted(path.stem for path in root.glob("*.txt") if (root / "Sentences").is_dir())
        raise CpgrError(f"{root}: has no split {split!r} ({listing.name}); " + (f"it has {', '.join(there)}" if there else "it holds no Flickr30k Entities"))
    numbers = listing.read_text(encoding="utf-8", errors="replace").split()
    folders = [root / name for name in ("flickr30k-images", "flickr30k_images", "images", "../flickr30k-images")]
    source = Source(listing, image_folder(config, folders, (f"{number}.jpg" for number in numbers)))
    for number in dict.fromkeys(numbers):
        if not _NUMBER.fullmatch(number):
            problems.bad(listing, number[:40], "is no image number")
        else:
            _add(source, root, number, problems)
    return source


def _add(source: Source, root: Path, number: str, problems: Problems) -> None:
    file = root / "Sentences" / f"{number}.txt"
    try:
        sentences = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        problems.bad(file, f"image {number}", f"its sentences cannot be read: {type(error).__name__}")
        return
    boxes = _Boxes(root / "Annotations" / f"{number}.xml", number)
    for line, sentence in enumerate(sentences):
        phrases = _PHRASE.findall(sentence)
        if len(phrases) != sentence.count("[/EN#"):
            problems.bad(file, f"sentence {line}", "has a phrase that is not [/EN#number/type words]")
        for place, (entity, _kind, text) in enumerate(phrases):
            if int(entity):
                record = Record(f"image {number}, sentence {line}, phrase {place}", number, f"{number}.jpg", f"{number}:{line}:{place}", text)
                source.add(record, boxes.region(entity))


class _Boxes:
    """The regions of an image's entities, from its XML file."""

    def __init__(self, file: Path, number: str):
        self.label, self.problem, self.size = f"image {number}", "", None
        self.boxes: dict[str, list] = {}
        self.regions: dict[str, Region] = {}
        try:
            data = file.read_bytes()
            if b"<!DOCTYPE" in data or b"<!ENTITY" in data:
                self.problem = "its annotations define XML entities"  # they can grow without bound; the true files have none
                return
            tree = ET.fromstring(data)
            size = [tree.findtext(f"size/{side}") for side in ("width", "height")]
            self.size = tuple(int(side) for side in size) if None not in size else None
            for found in tree.iter("object"):
                box = found.find("bndbox")
                for name in found.findall("name") if box is not None else ():
                    self.boxes.setdefault(name.text or "", []).append([float(box.findtext(side) or "nan") for side in ("xmin", "ymin", "xmax", "ymax")])
        except (OSError, ET.ParseError, ValueError) as error:
            self.problem = f"its annotations cannot be read: {type(error).__name__}"

    def region(self, entity: str) -> Region:
        if entity not in self.regions:
            self.regions[entity] = self._region(entity)
        return self.regions[entity]

    def _region(self, entity: str) -> Region:
        label = f"{self.label}, entity {entity}"
        if self.problem:
            return Region(label, problem=self.problem)
        boxes = self.boxes.get(entity)
        if not boxes:
            return Region(label, optional=True)
        if any(v != v for box in boxes for v in box):
            return Region(label, problem="the box is not four finite numbers")
        left, top, right, bottom = zip(*boxes, strict=True)
        return Region(label, [min(left) - 1, min(top) - 1, max(right), max(bottom)], "xyxy", size=self.size)
