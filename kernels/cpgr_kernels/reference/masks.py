"""Masks: a bit a pixel, COCO's run lengths, intersection over union."""

import torch
import torch.nn.functional as F
from torch import Tensor

TILE_ROWS, TILE_COLUMNS = 8, 64


def packed_words(height: int, width: int) -> int:
    """The 64-bit words of a packed mask."""
    return -(-height // TILE_ROWS) * -(-width // TILE_COLUMNS) * TILE_ROWS


def pack_masks(masks: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Masks of one bit a pixel: bits, areas and boxes.

    masks [..., H, W], bool or integers, non-zero inside. Returns
    - bits [..., words] (int64): tiles of 8 rows x 64 columns, row by row of tiles; a tile is eight words, one a row,
      whose lowest bit is the leftmost column. Pixels beyond the mask's edges are 0.
    - areas [...] (int64): pixels inside.
    - boxes [..., 4] (int32): x1, y1, x2, y2 of the pixels inside, x2 and y2 exclusive; zeros for an empty mask.

    No masks, or masks without pixels, give empty results and zeros.
    """
    inside = masks != 0
    leading, (height, width) = inside.shape[:-2], inside.shape[-2:]
    rows, columns = -(-height // TILE_ROWS), -(-width // TILE_COLUMNS)
    padded = F.pad(inside, (0, columns * TILE_COLUMNS - width, 0, rows * TILE_ROWS - height))
    tiles = padded.reshape(*leading, rows, TILE_ROWS, columns, TILE_COLUMNS).transpose(-3, -2)
    eights = tiles.reshape(*leading, packed_words(height, width), 8, 8).to(torch.uint8)
    values = 1 << torch.arange(8, dtype=torch.uint8, device=masks.device)
    bits = (eights * values).sum(-1, dtype=torch.uint8).view(torch.int64).squeeze(-1)
    sides = [side for any_of in (inside.any(-2), inside.any(-1)) for side in _range(any_of)]
    x1, x2, y1, y2 = sides
    return bits, inside.sum((-2, -1)), torch.stack([x1, y1, x2, y2], -1)


def _range(present: Tensor) -> tuple[Tensor, Tensor]:
    """First place and one past the last place that is True along the last dimension; 0, 0 where none is."""
    size = present.shape[-1]
    if size == 0:
        none = present.new_zeros(present.shape[:-1], dtype=torch.int32)
        return none, none
    place = torch.arange(size, dtype=torch.int32, device=present.device)
    end = torch.where(present, place + 1, 0).amax(-1)
    return torch.where(present, place, size).amin(-1).minimum(end), end


def unpack_masks(bits: Tensor, height: int, width: int) -> Tensor:
    """Bits [..., words] as `pack_masks` gives them to bool [..., height, width]."""
    rows, columns = -(-height // TILE_ROWS), -(-width // TILE_COLUMNS)
    leading = bits.shape[:-1]
    places = torch.arange(8, dtype=torch.uint8, device=bits.device)
    eights = bits.contiguous().view(torch.uint8).unsqueeze(-1) >> places & 1
    tiles = eights.reshape(*leading, rows, columns, TILE_ROWS, TILE_COLUMNS).transpose(-3, -2)
    whole = tiles.reshape(*leading, rows * TILE_ROWS, columns * TILE_COLUMNS)
    return whole[..., :height, :width].bool()


def mask_iou(masks1: Tensor, masks2: Tensor, pairwise: bool = True, iscrowd: Tensor | None = None) -> Tensor:
    """Intersection over union of masks, in float64: pycocotools' numbers.

    Pairwise: masks1 [N, H, W] and masks2 [M, H, W] give [N, M]. Else masks [..., H, W] each give [...]. Bool or
    integers, non-zero inside. iscrowd ([M], or [...]) marks crowds among masks2: against one the union is the area of
    the mask of masks1 alone. Masks that share no pixel give 0, and so do two empty ones. No masks give an empty
    result. No gradient.
    """
    first, second = ((masks != 0).flatten(-2).double() for masks in (masks1, masks2))
    area1, area2 = first.sum(-1), second.sum(-1)
    if pairwise:
        inter, area1 = first @ second.T, area1[:, None]
    else:
        inter = (first * second).sum(-1)
    union = area1 + area2 - inter
    if iscrowd is not None:
        union = torch.where(iscrowd != 0, area1, union)
    return torch.where(inter == 0, 0, inter / union)


def decode_rle(counts: bytes | list[int], height: int, width: int) -> Tensor:
    """One mask in COCO's run lengths as bool [height, width].

    The mask is read column by column; runs outside and inside take turns, outside first. `counts` are the run
    lengths, or COCO's text for them: groups of five bits, lowest first, each plus 48 a character, bit 5 set where
    another follows, the top bit of the last the sign; from the fourth run on the number is the difference to the run
    two before. ValueError for what is damaged.
    """
    runs = _runs(counts) if isinstance(counts, bytes) else counts
    flat, place = torch.zeros(height * width, dtype=torch.bool), 0
    for index, run in enumerate(runs):
        if run < 0:
            raise ValueError(RLE_FAULTS[3])
        if run > len(flat) - place:
            raise ValueError(RLE_FAULTS[4])
        flat[place : place + run] = index % 2 == 1
        place += run
    if place < len(flat):
        raise ValueError(RLE_FAULTS[5])
    return flat.reshape(width, height).T


# In the order of csrc/cpu/rle.h.
RLE_FAULTS = (
    "",
    "counts hold a character that is not COCO's",
    "counts end within a number",
    "counts hold a negative run",
    "the runs of counts are longer than the mask",
    "the runs of counts are shorter than the mask",
)


def _runs(text: bytes):
    runs, place = [], 0
    while place < len(text):
        value = shift = 0
        more = True
        while more:
            if place == len(text):
                raise ValueError(RLE_FAULTS[2])
            group = text[place] - 48
            if not 0 <= group < 64:
                raise ValueError(RLE_FAULTS[1])
            if shift == 60:
                raise ValueError(RLE_FAULTS[4])
            value |= (group & 31) << shift
            shift += 5
            place += 1
            more = bool(group & 32)
        if group & 16:
            value -= 1 << shift
        if len(runs) > 2:
            value += runs[-2]
        runs.append(value)
        yield value
