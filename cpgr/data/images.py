"""Image files: opened with checks, and put into a network's square frame.

The Exif orientation is not applied: COCO, Flickr30k and RefCLEF boxes were drawn on the stored pixels (so
pycocotools, torchvision and the papers' code read them), and a rotated picture would not match its boxes.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..errors import DataError
from ..regions import Frame
from . import decoding

MAX_PIXELS = 100_000_000
# Only formats that Pillow decodes itself: an EPS file, for one, would be handed to Ghostscript to run.
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM")
_DRIVE = re.compile(r"^[A-Za-z]:")


def safe_join(root: str | Path, name: str, *, file: str | Path = "", record: str = "") -> Path:
    """The path of `name` inside `root`, for a name that a data file gives.

    An annotation file must not reach what lies outside its image folder: a NUL, an absolute path, a drive letter,
    `..` (with either slash) and a symbolic link that leaves `root` raise `DataError` naming `file` and `record`.
    `root` itself may be a link: the user chose it.
    """

    def refuse(problem: str) -> DataError:
        shown = repr(name if isinstance(name, str) else type(name).__name__)[:120]
        return DataError(file or root, record, f"the file name {shown} {problem}", "give names inside the image folder")

    if not isinstance(name, str) or not name.strip():
        raise refuse("is not a file name")
    if "\0" in name:
        raise refuse("holds a NUL character")
    if name.startswith(("/", "\\")) or _DRIVE.match(name):
        raise refuse("is an absolute path")
    if ".." in re.split(r"[/\\]", name):
        raise refuse("leaves the image folder")
    base = os.path.realpath(root)
    path = os.path.join(base, name)
    try:
        real = os.path.realpath(path)
    except (OSError, ValueError) as error:
        raise refuse(f"cannot be used: {error}") from error
    if os.path.commonpath([base, real]) != base:
        raise refuse("is a symbolic link that leaves the image folder")
    return Path(root) / name


def image_size(path: str | Path, *, record: str = "", max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """Width and height in pixels, from the header alone. Errors as `open_image`, but for a damaged body."""
    with _guarded(path, record, max_pixels) as image:
        return image.size


def check_image(path: str | Path, *, record: str = "", max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """Width and height in pixels, after decoding the whole file. Errors as `open_image`."""
    with _guarded(path, record, max_pixels) as image:
        size = image.size
        # JPEG at an eighth of the size: every coded block is still read, the inverse transform is mostly saved.
        image.draft(None, (max(1, size[0] // 8), max(1, size[1] // 8)))
        image.load()
        return size


def decode_images(files: Sequence[tuple[str | Path, str]], *, max_pixels: int = MAX_PIXELS) -> list:
    """Decode image files, each given with its record's name, by the engine in force (`decoding`), several at once.

    Each becomes its pixels, uint8 [H, W, 3] RGB (a numpy array; a tensor where the engine leaves them on a GPU), or a
    PIL image where it was Pillow's to decode. Errors as `open_image`.
    """
    engine = decoding.current()
    read = [_plain_jpeg(engine, path, max_pixels) for path, _ in files]
    plain = [i for i, data in enumerate(read) if data is not None]
    found: list = [None] * len(files)
    try:
        for i, pixels in zip(plain, engine.decode([read[i] for i in plain]) if plain else (), strict=True):
            found[i] = pixels
    except Exception:  # some file of the batch is bad: Pillow says which, or reads it after all
        pass
    for i, (path, record) in enumerate(files):
        if found[i] is None:
            found[i] = _open_by_pillow(path, record, max_pixels)
    return found


def open_image(path: str | Path, *, record: str = "", max_pixels: int = MAX_PIXELS):
    """Decode an image file to an RGB PIL image, in the orientation of its stored pixels.

    16-bit grey becomes 8-bit by its high byte, CMYK and palettes are converted, transparent pixels are laid over
    white. A missing, empty, truncated or foreign file, and one of more than `max_pixels` pixels (refused before
    anything is decoded), raise `DataError` naming the file and `record`.
    """
    return as_picture(*decode_images([(path, record)], max_pixels=max_pixels))


def as_picture(pixels):
    """What `decode_images` gave as a PIL image."""
    from PIL import Image as pil

    if isinstance(pixels, pil.Image):
        return pixels
    return pil.fromarray(pixels if isinstance(pixels, np.ndarray) else pixels.cpu().numpy())


def _plain_jpeg(engine: decoding.Engine, path: str | Path, max_pixels: int) -> bytes | None:
    """The bytes of a JPEG file that the engine is to decode; None for any other file, good or bad."""
    if engine.name == "pillow":
        return None
    try:
        with open(path, "rb", opener=_without_waiting) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode) or file.read(2) != b"\xff\xd8":
                return None
            file.seek(0)
            data = file.read()
        size = engine.header(data)
    except Exception:
        return None
    return data if size and size[0] * size[1] <= max_pixels else None


def _without_waiting(path, flags):
    return os.open(path, flags | os.O_NONBLOCK)  # a pipe would keep us waiting for ever


def _open_by_pillow(path: str | Path, record: str, max_pixels: int):
    with _guarded(path, record, max_pixels) as image:
        image.load()
        return _to_rgb(image)


def to_frame(image, frame: Frame, *, resample: str = "bilinear", fill: tuple[int, int, int] = (0, 0, 0)):
    """The picture as a network sees it: uint8 tensor [3, size, size].

    `image` is an RGB PIL image of the frame's `width` x `height`, or its pixels as a tensor [H, W, 3], framed where they lie: the
    same geometry, values that rounding may move by one. `resample` is bilinear or bicubic (antialiased);
    `fill` colours a letterbox's padding: black, or the mean colour that the network's normalisation subtracts.
    """
    import torch
    from PIL import Image as pil

    filters = {"bilinear": pil.Resampling.BILINEAR, "bicubic": pil.Resampling.BICUBIC}
    if resample not in filters:
        raise ValueError(f"resample is {resample!r}; it is one of {sorted(filters)}")
    given = (image.shape[1], image.shape[0]) if isinstance(image, torch.Tensor) else image.size
    if given != (frame.width, frame.height):
        raise ValueError(f"the image is {given}, the frame is made for {(frame.width, frame.height)}")
    if isinstance(image, torch.Tensor):
        return _tensor_to_frame(image, frame, resample, fill)
    left, top, width, height = frame.content
    picture = image if image.size == (width, height) else image.resize((width, height), filters[resample])
    if (width, height) != (frame.size, frame.size):
        canvas = pil.new("RGB", (frame.size, frame.size), tuple(fill))
        canvas.paste(picture, (left, top))
        picture = canvas
    # bytearray: torch wants memory that it may write to, and one copy is made either way.
    pixels = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
    return pixels.view(frame.size, frame.size, 3).permute(2, 0, 1).contiguous()


def _tensor_to_frame(pixels, frame: Frame, resample: str, fill: tuple[int, int, int]):
    import torch

    left, top, width, height = frame.content
    picture = pixels.permute(2, 0, 1)[None]
    for shape in ((picture.shape[2], width), (height, width)):  # rows, then columns, rounded after each, as Pillow does
        if tuple(picture.shape[2:]) != shape:
            scaled = torch.nn.functional.interpolate(picture.float(), shape, mode=resample, antialias=True)
            picture = scaled.round().clamp(0, 255).to(torch.uint8)
    out = torch.tensor(fill, dtype=torch.uint8, device=pixels.device)[:, None, None].repeat(1, frame.size, frame.size)
    out[:, top : top + height, left : left + width] = picture[0]
    return out


class _guarded:
    """Open `path` with Pillow, and turn whatever it raises, then or inside the block, into a DataError."""

    def __init__(self, path, record, max_pixels):
        self.path, self.record, self.max_pixels, self.image = Path(path), record, max_pixels, None

    def __enter__(self):
        from PIL import Image as pil

        # Asked before opening: opening a pipe would wait for ever.
        if not os.path.isfile(self.path):
            raise self._error("is no file" if os.path.exists(self.path) else "the image file is missing")
        try:
            if self.path.stat().st_size == 0:
                raise ValueError("the file is empty (zero bytes)")
            pil.init()  # a Pillow built without WebP, say, cannot be asked for it
            self.image = pil.open(self.path, formats=[name for name in FORMATS if name in pil.OPEN])
        except Exception as error:
            raise self._named(error) from error
        width, height = self.image.size
        if width * height > self.max_pixels:
            self.image.close()
            raise self._error(
                f"the image has {width} x {height} pixels, more than the limit of {self.max_pixels}",
                "make it smaller, or raise --data.max_pixels",
            )
        return self.image

    def __exit__(self, kind, error, trace):
        self.image.close()
        # A damaged file makes Pillow's decoders raise nearly anything (OSError, SyntaxError, struct.error, ...).
        if isinstance(error, Exception) and not isinstance(error, DataError):
            raise self._named(error) from error
        return False

    def _named(self, error: Exception) -> DataError:
        from PIL import Image as pil
        from PIL import UnidentifiedImageError

        if isinstance(error, UnidentifiedImageError):
            return self._error("is not an image of a known format", f"known formats: {', '.join(FORMATS)}")
        if isinstance(error, (pil.DecompressionBombError, pil.DecompressionBombWarning)):
            return self._error("the image is too large to decode safely", "make it smaller")
        if "truncated" in str(error).lower():
            return self._error("the image file is truncated")
        return self._error(f"the image cannot be decoded: {str(error)[:200] or type(error).__name__}")

    def _error(self, problem: str, mend: str = "get the file again, or skip such records with --data.on_bad skip") -> DataError:
        return DataError(self.path, self.record, problem, mend)


def _to_rgb(image):
    from PIL import Image as pil

    if image.mode.startswith("I"):

        # convert() would clip 16-bit values at 255 and give a white picture.
        pixels = np.clip(np.asarray(image).astype(np.int64), 0, 65535) >> 8
        return pil.fromarray(pixels.astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise ValueError("floating-point pixels have no known range")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        picture = image.convert("RGBA")
        canvas = pil.new("RGBA", picture.size, (255, 255, 255, 255))
        return pil.alpha_composite(canvas, picture).convert("RGB")
    return image.convert("RGB")  # a copy even of RGB: the file's own image goes with the file
