"""Boxes, attention and a caption drawn on a picture: what `cpgr ground` writes, in the report's colours and lines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from PIL import Image as pil
from PIL import ImageDraw, ImageFont

from .regions import Frame

# Light stops of a heat scale that rises in lightness alone, so it reads in grey and for every kind of colour sight.
_HEAT = ((20, 11, 52), (132, 32, 107), (229, 92, 48), (246, 215, 70), (252, 255, 200))
_CLEAR = 0.1
_LEVELS = 48  # few levels, so that a map embedded in a page stays small
CASING = (16, 18, 24)
_CAPTION_INK = (240, 242, 246)


@dataclass(frozen=True)
class Style:
    """How one kind of box is drawn. `dash` alternates drawn and blank lengths, in line widths; empty is solid."""

    color: str
    width: int
    dash: tuple[int, ...]
    meaning: str


# Colours of the Okabe-Ito palette, each with a line of its own: no meaning hangs on colour alone.
STYLES = {
    "proposal": Style("#ffffff", 1, (3, 3), "proposal of the detector"),
    "prediction": Style("#ff8ad0", 2, (5, 2, 1, 2), "model's answer"),
    "chosen": Style("#ffb000", 3, (), "chosen region"),
    "true": Style("#56b4e9", 3, (3, 3), "true box (analysis only)"),  # dashed and on top: what it covers shows between
}


@dataclass
class Mark:
    """A box x1, y1, x2, y2 in pixels of the original image, and the name of its style."""

    box: Sequence[float]
    style: str = "chosen"


@dataclass
class Heat:
    """An attention map: `grid` x `grid` values, row-major, over a frame of `size` pixels (see `regions.Frame`)."""

    values: Sequence[float]
    grid: int
    size: int
    mode: str = "letterbox"

    def place(self, width: int, height: int) -> tuple[float, float, float, float]:
        """Left, top, width, height of the whole map in pixels of an image of `width` x `height`; padding lies outside."""
        left, top, across, down = Frame(self.size, width, height, self.mode).content
        x, y = width / across, height / down
        return -left * x, -top * y, self.size * x, self.size * y

    def picture(self) -> pil.Image:
        """The map as RGBA of `grid` x `grid` pixels: more attention is lighter and less transparent.

        Shares of the greatest value; cells under a tenth of it stay clear, or noise would veil the whole picture.
        """
        top = max(max(self.values, default=0.0), 1e-12)
        pixels = []
        for value in self.values:
            share = round(max(0.0, (value / top - _CLEAR) / (1 - _CLEAR)) * _LEVELS) / _LEVELS
            pixels.append((*_heat_color(share**0.8), round(175 * share**0.6)))
        image = pil.new("RGBA", (self.grid, self.grid))
        image.putdata(pixels)
        return image


@dataclass
class Panel:
    """One picture to draw: marks in drawing order (the last on top), an attention map or none, a caption."""

    marks: list[Mark] = field(default_factory=list)
    heat: Heat | None = None
    caption: str = ""


def draw(image: pil.Image, panel: Panel, *, least: int = 512) -> pil.Image:
    """The picture with its panel drawn on it; one whose long side is under `least` pixels is enlarged first."""
    width, height = image.size
    scale = max(1.0, least / max(width, height))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    picture = image.convert("RGB").resize(size, pil.Resampling.BICUBIC)
    if panel.heat is not None:
        x, y, across, down = (round(v * scale) for v in panel.heat.place(width, height))
        heat = panel.heat.picture().resize((max(1, across), max(1, down)), pil.Resampling.BICUBIC)
        picture.paste(heat, (x, y), heat)
    pen = ImageDraw.Draw(picture)
    unit = max(1.0, max(size) / 512)
    for mark in panel.marks:
        x1, y1, x2, y2 = (v * scale for v in mark.box)
        _box(pen, (x1, y1, max(x1, x2 - 1), max(y1, y2 - 1)), STYLES[mark.style], unit)
    return _captioned(picture, panel.caption, unit) if panel.caption else picture


def side_by_side(pictures: Sequence[pil.Image], columns: int = 3, gap: int = 8) -> pil.Image:
    """Pictures in rows of at most `columns`, each in a cell of the largest one's size."""
    if len(pictures) == 1:
        return pictures[0]
    across = min(columns, len(pictures))
    width, height = max(p.width for p in pictures), max(p.height for p in pictures)
    rows = -(-len(pictures) // across)
    sheet = pil.new("RGB", (across * (width + gap) - gap, rows * (height + gap) - gap), "white")
    for i, picture in enumerate(pictures):
        sheet.paste(picture, (i % across * (width + gap), i // across * (height + gap)))
    return sheet


def _heat_color(share: float) -> tuple[int, int, int]:
    place = min(share, 1.0) * (len(_HEAT) - 1)
    low = min(int(place), len(_HEAT) - 2)
    return tuple(round(a + (b - a) * (place - low)) for a, b in zip(_HEAT[low], _HEAT[low + 1], strict=True))


def _box(pen: ImageDraw.ImageDraw, box: tuple[float, ...], style: Style, unit: float) -> None:
    """A box in its style over a dark casing, so that it shows on any picture."""
    x1, y1, x2, y2 = box
    width = max(1, round(style.width * unit))
    sides = ((x1, y1, x2, y1), (x2, y1, x2, y2), (x2, y2, x1, y2), (x1, y2, x1, y1))
    for color, extra in ((CASING, 2), (style.color, 0)):
        for side in sides:
            for piece in _pieces(side, [d * width for d in style.dash]):
                pen.line(piece, fill=color, width=width + extra)


def _pieces(line: tuple[float, ...], dash: list[int]):
    """The drawn parts of a line from (x1, y1) to (x2, y2)."""
    x1, y1, x2, y2 = line
    length = max(abs(x2 - x1), abs(y2 - y1))
    if not dash or length == 0:
        yield line
        return
    at, turn = 0.0, 0
    while at < length:
        end = min(length, at + dash[turn % len(dash)])
        if turn % 2 == 0:
            yield tuple(a + (b - a) * t / length for t in (at, end) for a, b in ((x1, x2), (y1, y2)))
        at, turn = end, turn + 1


def _captioned(picture: pil.Image, caption: str, unit: float) -> pil.Image:
    """The picture with a dark strip under it that holds the caption, wrapped."""
    from pathlib import Path

    import matplotlib

    # matplotlib's own font: it is always there and knows far more letters than Pillow's.
    font = ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf"), round(17 * unit))
    margin, pitch = round(10 * unit), round(23 * unit)
    lines = _wrapped(caption, font, picture.width - 2 * margin)
    sheet = pil.new("RGB", (picture.width, picture.height + 2 * margin + pitch * len(lines)), CASING)
    sheet.paste(picture, (0, 0))
    pen = ImageDraw.Draw(sheet)
    for i, line in enumerate(lines):
        pen.text((margin, picture.height + margin + i * pitch), line, font=font, fill=_CAPTION_INK)
    return sheet


def _wrapped(text: str, font, width: int) -> list[str]:
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines
