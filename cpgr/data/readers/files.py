"""Finding and opening a data set's files, with messages that say what was looked for and what there is."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NoReturn

from ...errors import CpgrError, DataError
from .config import DEFAULT_DATASET, DataConfig

COCO_FOLDERS = (
    "{ds}/images", "images/{ds}", "images/train2014", "images/mscoco/images/train2014", "train2014", "images/mscoco/train2014",
    "images/saiapr_tc-12", "images/referit", "images",
)  # fmt: skip


def load_json(path: Path):
    """A JSON file's value. A damaged file raises DataError; NaN and Infinity are let through for later checks."""
    try:
        return json.loads(path.read_bytes().decode("utf-8-sig"))
    except OSError as error:
        raise DataError(path, "", f"cannot be read: {error.strerror or error}", "check the path") from error
    except (ValueError, RecursionError) as error:
        raise DataError(path, "", f"is not readable JSON: {str(error)[:200]}", "get the file again from its source") from error


def need_root(config: DataConfig) -> Path:
    """The folder of `config.root`, or an error that says how to give it."""
    if not config.root:
        raise CpgrError(f"the format {config.format} needs the folder with the data: give --data.root")
    root = Path(config.root).expanduser()
    if not root.is_dir():
        raise CpgrError(f"{root}: is no folder (give the data set's folder as --data.root)")
    return root


def dataset_file(root: Path, dataset: str, tried: Sequence[str], pattern: str) -> Path:
    """The first of `tried` under `root` that is a file; with no data set named, the only file that fits `pattern`."""
    for name in tried:
        if (root / name).is_file():
            return root / name
    there = sorted(root.glob(pattern))
    if dataset in ("", DEFAULT_DATASET) and len(there) == 1:
        return there[0]
    listed = f"; it has {', '.join(path.name for path in there)}" if there else ""
    raise CpgrError(f"{root}: has no data set {dataset!r}; looked for {', '.join(tried)}{listed} (give --data.dataset)")


def split_items(content, split: str, file: Path) -> list:
    """The list under `split` in a file of the form {split: [...]}."""
    lists = {name: items for name, items in content.items() if isinstance(items, list)} if isinstance(content, dict) else {}
    if split not in lists:
        of_split({name: len(items) for name, items in lists.items()}, split, file)
    return lists[split]


def image_folder(config: DataConfig, tried: Sequence[Path], names: Iterable[object]) -> Path:
    """The folder with the images: `config.images`, else the first of `tried` that holds any of `names`."""
    if config.images:
        folder = Path(config.images).expanduser()
        if not folder.is_dir():
            raise CpgrError(f"{folder}: is no folder (give the image folder as --data.images)")
        return folder
    wanted = dict.fromkeys(name for name in names if isinstance(name, str))
    for folder in tried:
        # isfile, unlike Path.is_file, takes names that no file can have.
        if folder.is_dir() and any(os.path.isfile(os.path.join(folder, name)) for name in wanted):
            return folder
    raise CpgrError(f"the images were not found; looked in {', '.join(map(str, tried))} (give the folder as --data.images)")


def of_split(found: dict[str, int], split: str, file: Path) -> NoReturn:
    """Raise an error that lists the splits `found` in the file, with their sizes: `split` is none of them."""
    there = ", ".join(f"{name} ({count})" for name, count in found.items()) or "none"
    raise CpgrError(f"{file}: has no split {split!r}; its splits are {there}")


def text_id(value) -> str | None:
    """An id as text: ids are numbers in some files and texts in others. None where it is neither."""
    return str(value) if type(value) in (int, str) and value != "" else None
