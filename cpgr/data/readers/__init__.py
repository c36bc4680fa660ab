"""Readers: each turns a format's files into records; `read_split` makes a `Split` and its `Truth` of them."""

from __future__ import annotations

from collections.abc import Callable

from ...errors import CpgrError
from ...progress import track
from ..records import Problems, Split, Truth
from .collect import Source, build_split
from .config import DataConfig
from .flickr30k import read_flickr30k
from .folder import read_folder
from .realgin import read_realgin
from .refclip import read_refclip
from .refer import read_refer
from .seqtr import read_seqtr
from .transvg import read_transvg

__all__ = ["FORMATS", "DataConfig", "read_split"]

Reader = Callable[[DataConfig, str, Problems], Source]

FORMATS: dict[str, Reader] = {
    "scenes": read_refer,  # the built-in world is written as REFER files
    "refer": read_refer,
    "transvg": read_transvg,
    "refclip": read_refclip,
    "realgin": read_realgin,
    "seqtr": read_seqtr,
    "flickr30k": read_flickr30k,
    "folder": read_folder,
}


def read_split(config: DataConfig, split: str, problems: Problems, progress: Callable = track) -> tuple[Split, Truth]:
    """Read one split: what training is given, and the held ground truth of the same expressions.

    A bad record raises `DataError` or is counted in `problems`, as its `on_bad` says. A region never decides what the
    split holds: where it is bad only its entry in the truth is missing. `progress(items, what, total)` is passed the
    images as they are checked and yields them on. Raises `CpgrError` for an unknown format, data set or split.
    """
    if config.format not in FORMATS:
        raise CpgrError(f"unknown data format {config.format!r}; the formats are {', '.join(FORMATS)}")
    source = FORMATS[config.format](config, split, problems)
    return build_split(split, source, config, problems, progress)
