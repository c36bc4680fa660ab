"""Masks of one bit a pixel. What the bits mean is in `reference.pack_masks`."""

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor

from . import dispatch, native, reference
from .arguments import from_numpy
from .library import define
from .reference.masks import RLE_FAULTS, packed_words
from .rle import Rle, buffers, concatenated, read_rle


class PackedMasks:
    """Masks [..., height, width] of one bit a pixel, made by `pack_masks`: an eighth of the memory of a bool tensor.

    bits [..., words] (int64) are tiles of 8 rows x 64 columns, row by row of tiles; a tile is eight words, one a row,
    whose lowest bit is the leftmost column; pixels beyond the edges are 0. A tile is a cache line, 64 bytes of a row
    of a dense mask are one word, and two masks are compared only in the tiles where both have pixels.

    Indexing and `to` work on the leading dimensions as on a tensor's; `len` is the first of them.
    """

    __slots__ = ("_areas", "_boxes", "bits", "height", "width")

    def __init__(self, bits: Tensor, areas: Tensor, boxes: Tensor, height: int, width: int):
        self.bits, self._areas, self._boxes = bits, areas, boxes
        self.height, self.width = height, width

    def area(self) -> Tensor:
        """Pixels inside each mask, [...] int64."""
        return self._areas

    def boxes(self) -> Tensor:
        """x1, y1, x2, y2 round the pixels of each mask, [..., 4] int32; x2 and y2 exclusive; zeros if it is empty."""
        return self._boxes

    def unpack(self) -> Tensor:
        """The masks as bool [..., height, width]."""
        return reference.unpack_masks(self.bits, self.height, self.width)

    @property
    def shape(self) -> torch.Size:
        """[..., height, width]."""
        return torch.Size((*self._areas.shape, self.height, self.width))

    @property
    def device(self) -> torch.device:
        """Where the bits are."""
        return self.bits.device

    def to(self, device: torch.device | str) -> "PackedMasks":
        """The same masks on another device."""
        moved = (tensor.to(device) for tensor in (self.bits, self._areas, self._boxes))
        return PackedMasks(*moved, self.height, self.width)

    def __len__(self) -> int:
        return len(self._areas)

    def __getitem__(self, index: Any) -> "PackedMasks":
        areas = self._areas[index]
        whole = (*index, slice(None)) if isinstance(index, tuple) else (index, slice(None))
        return PackedMasks(self.bits[whole], areas, self._boxes[whole], self.height, self.width)

    def __repr__(self) -> str:
        return f"PackedMasks({list(self.shape)}, device={self.device})"


def pack_masks(masks, *, backend: str | None = None) -> PackedMasks:
    """Masks of one bit a pixel, for `mask_iou` and for keeping many.

    Args:
        masks: [..., H, W] of bool or an integer type, non-zero inside, tensor or NumPy array (masks first: the
            [H, W, N] of pycocotools is `.transpose(2, 0, 1)`); or COCO's run lengths, a list of dicts
            {"size": [h, w], "counts": ...} of one size, with compressed (bytes or text) or plain (a list) counts.
        backend: "cpp", "cuda", "reference", or None for the best that can run. Run lengths are read on the CPU.

    Returns:
        PackedMasks [..., H, W] on the device of the masks; run lengths give [N, H, W] on the CPU.

    Errors:
        TypeError for floating point masks: threshold them. ValueError, with the mask's index, for run lengths that
        do not fill their mask or are otherwise damaged, for sizes that differ, and for more than 2^28 pixels in one.

    Example:
        >>> packed = pack_masks(torch.eye(3, dtype=torch.bool)[None])
        >>> packed.area(), packed.boxes()
        (tensor([3]), tensor([[0, 0, 3, 3]], dtype=torch.int32))
    """
    return as_packed("pack_masks", "masks", masks, backend)


def as_packed(op: str, name: str, masks: Any, backend: str | None, size: tuple[int, int] | None = None) -> PackedMasks:
    """Whatever masks may be given as; an empty list is of `size`."""
    if isinstance(masks, PackedMasks):
        return masks
    if isinstance(masks, (list, tuple)):
        return pack_rle(op, backend, **{name: read_rle(op, name, masks, size)})[0]
    return pack_dense(op, backend, **{name: masks})[0]


def pack_dense(op: str, backend: str | None, **sides: Any) -> list[PackedMasks]:
    """Dense masks of one size, packed into one piece of memory."""
    tensors = [
        masks if isinstance(masks, Tensor) else from_numpy(op, **{name: masks})[0] for name, masks in sides.items()
    ]
    for name, masks in zip(sides, tensors):
        _check(op, name, masks)
    packed = _pack_masks_op(tensors, backend)
    return _split(packed, [masks.shape[:-2] for masks in tensors], *tensors[0].shape[-2:])


def pack_rle(op: str, backend: str | None, **sides: Rle) -> list[PackedMasks]:
    """Run lengths of one size, packed into one piece of memory."""
    rle = concatenated(sides.values())
    packed, faults = dispatch.choose("pack_rle", "cpu", backend)(rle)
    if any(faults):
        places = [f"{name}[{index}]" for name, side in sides.items() for index in range(len(side.counts))]
        place, fault = next((place, fault) for place, fault in zip(places, faults) if fault)
        raise ValueError(f"{op}: {place} of {rle.height} x {rle.width}: {RLE_FAULTS[fault]}")
    return _split(packed, [(len(side.counts),) for side in sides.values()], rle.height, rle.width)


def _split(packed: tuple[Tensor, Tensor, Tensor], shapes: Sequence[tuple], height: int, width: int):
    """Each side's part, with its own leading dimensions."""
    (bits, areas, boxes), first, sides = packed, 0, []
    for leading in shapes:
        count, own = prod(leading), packed
        if len(shapes) > 1:
            own = bits.narrow(0, first, count), areas.narrow(0, first, count), boxes.narrow(0, first, count)
        if len(leading) != 1:
            own = own[0].view(*leading, bits.shape[1]), own[1].view(leading), own[2].view(*leading, 4)
        sides.append(PackedMasks(*own, height, width))
        first += count
    return sides


def _check(op: str, name: str, masks: Tensor) -> None:
    if masks.dim() < 2 or max(masks.shape[-2:]) > 2**31 - 64:
        raise ValueError(f"{op}: {name} must be [..., H, W], got {list(masks.shape)}")
    dtype = masks.dtype
    if dtype.is_floating_point or dtype.is_complex:
        raise TypeError(
            f"{op}: {name} must be bool or integers, non-zero inside, got {dtype}; "
            f"threshold them first, for example `{name} > 0.5`"
        )
    if masks.is_quantized or masks.layout is not torch.strided:
        raise TypeError(f"{op}: {name} must be a dense tensor, got {masks.dtype} ({masks.layout})")


def _check_all(masks: Sequence[Tensor]) -> None:
    if not masks:
        raise ValueError("pack_masks: at least one tensor of masks is needed")
    for index, some in enumerate(masks):
        _check("pack_masks", f"masks[{index}]", some)
        if some.shape[-2:] != masks[0].shape[-2:] or some.device != masks[0].device:
            raise ValueError(
                f"pack_masks: all masks must be of one size and on one device, "
                f"got {list(masks[0].shape)} on {masks[0].device} and {list(some.shape)} on {some.device}"
            )


def _outputs(count: int, height: int, width: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    return (
        torch.empty(count, packed_words(height, width), dtype=torch.int64, device=device),
        torch.empty(count, dtype=torch.int64, device=device),
        torch.empty(count, 4, dtype=torch.int32, device=device),
    )


def _counts(masks: Sequence[Tensor]) -> list[int]:
    return [prod(some.shape[:-2]) for some in masks]


def _pack_masks(masks: Sequence[Tensor], backend: str | None = None) -> tuple[Tensor, Tensor, Tensor]:
    _check_all(masks)
    return dispatch.choose("pack_masks", masks[0].device.type, backend)(masks)


def _pack_masks_fake(masks, backend=None):
    _check_all(masks)
    return _outputs(sum(_counts(masks)), *masks[0].shape[-2:], masks[0].device)


def _run(module, place, masks: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    counts, (height, width) = _counts(masks), masks[0].shape[-2:]
    bits, areas, boxes = outputs = _outputs(sum(counts), height, width, masks[0].device)
    addresses = bits.data_ptr(), areas.data_ptr(), boxes.data_ptr()
    steps = 8 * bits.shape[1], 8, 16  # bytes a mask
    for some, count in zip(masks, counts):
        some = (some if some.element_size() == 1 else some != 0).contiguous()
        module.pack_masks(some.data_ptr(), count, height, width, *addresses, *place)
        addresses = tuple(address + step * count for address, step in zip(addresses, steps))
    return outputs


def _cpp(masks):
    return _run(native.cpu()[0], (torch.get_num_threads(),), masks)


def _cuda(masks):
    with torch.cuda.device(masks[0].device):
        return _run(native.cuda()[0], native.launch_place(masks[0]), masks)


def _reference(masks):
    sets = [reference.pack_masks(some.flatten(0, -3) if some.dim() > 2 else some[None]) for some in masks]
    return tuple(torch.cat(parts) for parts in zip(*sets))


def _cpp_rle(rle: Rle) -> tuple[tuple[Tensor, Tensor, Tensor], Sequence[int]]:
    counts, starts, numbers = buffers(rle)
    count = len(numbers)
    outputs = _outputs(count, rle.height, rle.width, torch.device("cpu"))
    faults = torch.empty_like(numbers)
    text = torch.frombuffer(bytearray(counts), dtype=torch.uint8) if counts else numbers
    arrays = (text, starts, numbers), (*outputs, faults)
    before, after = (tuple(tensor.data_ptr() for tensor in tensors) for tensors in arrays)
    native.cpu()[0].pack_rle(*before, count, rle.height, rle.width, *after, torch.get_num_threads())
    return outputs, faults.tolist() if faults.any() else ()


def _reference_rle(rle: Rle) -> tuple[tuple[Tensor, Tensor, Tensor], Sequence[int]]:
    masks, faults = torch.zeros(len(rle.counts), rle.height, rle.width, dtype=torch.bool), []
    for mask, counts, numbers in zip(masks, rle.counts, rle.numbers):
        try:
            runs = memoryview(counts).cast("q").tolist() if numbers else counts
            mask.copy_(reference.decode_rle(runs, rle.height, rle.width))
            faults.append(0)
        except ValueError as error:
            faults.append(RLE_FAULTS.index(str(error)))
    return reference.pack_masks(masks), faults


dispatch.register("pack_masks", cpp=_cpp, cuda=_cuda, reference=_reference)
dispatch.register("pack_rle", cpp=_cpp_rle, reference=_reference_rle)

_pack_masks_op = define(
    "pack_masks(Tensor[] masks, str? backend=None) -> (Tensor bits, Tensor areas, Tensor boxes)",
    _pack_masks,
    _pack_masks_fake,
)
