"""Thumbnails and attention maps as data URIs, small enough that a report can hold all of them."""

from __future__ import annotations

import base64
import io
from pathlib import Path

from PIL import Image as pil

from ..data.images import open_image
from ..drawing import Heat
from ..errors import DataError

SMALLEST, LARGEST = 256, 400  # the long side of a thumbnail


def thumbnail(path: Path) -> str:
    """The image as a JPEG data URI: a small scene enlarged, a photograph reduced. Empty where it cannot be read."""
    try:
        image = open_image(path)
    except DataError:
        return ""
    longest = max(image.size)
    wanted = min(max(longest, SMALLEST), LARGEST)
    if wanted != longest:
        size = tuple(max(1, round(side * wanted / longest)) for side in image.size)
        image = image.resize(size, pil.Resampling.BICUBIC if wanted > longest else pil.Resampling.LANCZOS)
    return _uri(image, "jpeg", quality=84)


def heat_uri(heat: Heat) -> str:
    """The attention map as a PNG data URI of one pixel a cell; the browser smooths it."""
    return _uri(heat.picture(), "png", optimize=True)


def _uri(image: pil.Image, form: str, **options) -> str:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return f"data:image/{form};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
