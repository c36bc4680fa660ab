"""Intersection over union of masks. What it means is in `reference.mask_iou`."""

import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from . import dispatch, native, reference
from .library import define
from .pack_masks import PackedMasks, as_packed, pack_dense, pack_rle
from .reference.masks import packed_words
from .rle import read_rle


def mask_iou(masks1, masks2, *, iscrowd=None, pairwise: bool = True, backend: str | None = None):
    """Intersection over union of masks: the numbers of pycocotools' `mask.iou`, without gradient.

    Args:
        masks1: [N, H, W] (pairwise) or [..., H, W], each side as `pack_masks` takes it (dense bool or integers, a
            list of COCO's run lengths) or packed by it. Pack what is compared more than once.
        masks2: [M, H, W] (pairwise) or as masks1. Run lengths are packed on the CPU and moved to the other side's
            device; an empty list is of the other side's size.
        iscrowd: [M] (pairwise) or [...], non-zero where masks2 is a crowd: the union is then the area of masks1's
            mask, so that a mask within a crowd gives 1.
        pairwise: every mask of masks1 against every mask of masks2, else one against one.
        backend: "cpp", "cuda", "reference", or None for the best that can run.

    Returns:
        [N, M] (pairwise) or [...], float64; a NumPy array if either side is one. Masks that share no pixel give 0,
        and so do two empty ones.

    Errors:
        ValueError for masks of different sizes; see also `pack_masks`.

    Example:
        >>> mask = torch.eye(4, dtype=torch.bool)[None]
        >>> mask_iou(mask, torch.ones_like(mask)), mask_iou(mask, torch.ones_like(mask), iscrowd=[True])
        (tensor([[0.2500]], dtype=torch.float64), tensor([[1.]], dtype=torch.float64))
    """
    numpy = sys.modules.get("numpy")
    as_numpy = numpy is not None and (isinstance(masks1, numpy.ndarray) or isinstance(masks2, numpy.ndarray))
    if isinstance(masks1, PackedMasks) and isinstance(masks2, PackedMasks):
        packed1, packed2 = masks1, masks2
    else:
        packed1, packed2 = _pack_both(masks1, masks2, backend)
    if (packed1.height, packed1.width) != (packed2.height, packed2.width):
        raise ValueError(
            f"mask_iou: masks1 are {packed1.height} x {packed1.width} "
            f"and masks2 are {packed2.height} x {packed2.width}; resize one side"
        )
    if iscrowd is not None and not isinstance(iscrowd, Tensor):
        iscrowd = torch.as_tensor(iscrowd, device=packed2.device, dtype=None if len(iscrowd) else torch.bool)
    iou = _mask_iou_op(
        *(packed1.bits, packed1.area(), packed1.boxes(), packed2.bits, packed2.area(), packed2.boxes()),
        *(packed1.height, packed1.width, bool(pairwise), iscrowd, backend),
    )
    return iou.numpy() if as_numpy and iou.device.type == "cpu" else iou


def _pack_both(masks1: Any, masks2: Any, backend: str | None) -> Sequence[PackedMasks]:
    """Both sides together where they can be: one allocation is returned to the system less often than two."""
    is_list1, is_list2 = isinstance(masks1, (list, tuple)), isinstance(masks2, (list, tuple))
    # Run lengths are read on the CPU, and by no backend but these two.
    on_lists = backend if backend == "reference" else None
    if is_list1 and is_list2:
        return _pack_lists(masks1, masks2, on_lists)
    if is_list1 or is_list2:
        # Run lengths go where the other side is, and an empty list has the other side's size.
        (dense_name, dense), (list_name, runs) = ("masks1", masks1), ("masks2", masks2)
        if is_list1:
            (dense_name, dense), (list_name, runs) = (list_name, runs), (dense_name, dense)
        dense = as_packed("mask_iou", dense_name, dense, backend)
        runs = as_packed("mask_iou", list_name, runs, on_lists, (dense.height, dense.width)).to(dense.device)
        return (runs, dense) if is_list1 else (dense, runs)
    if masks1 is masks2:
        return [as_packed("mask_iou", "masks1", masks1, backend)] * 2
    packed = isinstance(masks1, PackedMasks) or isinstance(masks2, PackedMasks)
    if not packed and getattr(masks1, "shape", ())[-2:] == getattr(masks2, "shape", ())[-2:]:
        return pack_dense("mask_iou", backend, masks1=masks1, masks2=masks2)
    return [as_packed("mask_iou", name, masks, backend) for name, masks in (("masks1", masks1), ("masks2", masks2))]


def _pack_lists(masks1: Sequence, masks2: Sequence, backend: str | None) -> list[PackedMasks]:
    first = read_rle("mask_iou", "masks1", masks1, (0, 0))
    second = read_rle("mask_iou", "masks2", masks2, (first.height, first.width))
    if not masks1:
        first = first._replace(height=second.height, width=second.width)
    if (first.height, first.width) != (second.height, second.width):
        return [*pack_rle("mask_iou", backend, masks1=first), *pack_rle("mask_iou", backend, masks2=second)]
    return pack_rle("mask_iou", backend, masks1=first, masks2=second)


def _check_side(side: str, bits: Tensor, areas: Tensor, boxes: Tensor, height: int, width: int, words: int) -> None:
    leading = tuple(areas.shape)
    if (
        bits.shape != (*leading, words)
        or boxes.shape != (*leading, 4)
        or bits.dtype is not torch.int64
        or areas.dtype is not torch.int64
        or boxes.dtype is not torch.int32
        or any(tensor.layout is not torch.strided for tensor in (bits, areas, boxes))
    ):
        got = ", ".join(f"{list(tensor.shape)} {tensor.dtype}" for tensor in (bits, areas, boxes))
        raise ValueError(
            f"mask_iou: bits{side}, areas{side} and boxes{side} must be as pack_masks gives them, int64 "
            f"[..., {words}] for {height} x {width} masks, int64 [...] and int32 [..., 4], got {got}"
        )


def _check(
    bits1: Tensor,
    areas1: Tensor,
    boxes1: Tensor,
    bits2: Tensor,
    areas2: Tensor,
    boxes2: Tensor,
    height: int,
    width: int,
    pairwise: bool,
    iscrowd: Tensor | None,
) -> torch.Size:
    """Check the arguments of the op and return the shape of the result."""
    if height < 0 or width < 0:
        raise ValueError(f"mask_iou: height and width must not be negative, got {height} and {width}")
    words = packed_words(height, width)
    _check_side("1", bits1, areas1, boxes1, height, width, words)
    _check_side("2", bits2, areas2, boxes2, height, width, words)
    if pairwise and (areas1.dim() != 1 or areas2.dim() != 1):
        raise ValueError(
            f"mask_iou: with pairwise=True masks1 and masks2 must be [N, H, W] and [M, H, W], "
            f"got {[*areas1.shape, height, width]} and {[*areas2.shape, height, width]}"
        )
    if not pairwise and areas1.shape != areas2.shape:
        raise ValueError(
            f"mask_iou: with pairwise=False as many masks1 as masks2 are needed, got {[*areas1.shape, height, width]} "
            f"and {[*areas2.shape, height, width]}"
        )
    home = bits1.device
    for name, tensor in (
        ("masks1", areas1),
        ("masks1", boxes1),
        ("masks2", bits2),
        ("masks2", areas2),
        ("masks2", boxes2),
    ):
        if tensor.device != home:
            raise ValueError(f"mask_iou: {name} is on {tensor.device} and masks1 is on {home}")
    if iscrowd is not None and (iscrowd.shape != areas2.shape or iscrowd.dtype.is_floating_point):
        raise ValueError(
            f"mask_iou: iscrowd must be {list(areas2.shape)} of bool or integers, one entry a mask of masks2, "
            f"got {list(iscrowd.shape)} {iscrowd.dtype}"
        )
    if iscrowd is not None and iscrowd.device != home:
        raise ValueError(f"mask_iou: iscrowd is on {iscrowd.device} and the masks are on {home}")
    return torch.Size((areas1.shape[0], areas2.shape[0])) if pairwise else areas1.shape


def _mask_iou(
    bits1, areas1, boxes1, bits2, areas2, boxes2, height, width, pairwise, iscrowd=None, backend=None
) -> Tensor:
    arguments = bits1, areas1, boxes1, bits2, areas2, boxes2, height, width, pairwise, iscrowd
    shape = _check(*arguments)
    return dispatch.choose("mask_iou", bits1.device.type, backend)(shape, *arguments)


def _mask_iou_fake(
    bits1, areas1, boxes1, bits2, areas2, boxes2, height, width, pairwise, iscrowd=None, backend=None
) -> Tensor:
    shape = _check(bits1, areas1, boxes1, bits2, areas2, boxes2, height, width, pairwise, iscrowd)
    return bits1.new_empty(shape, dtype=torch.float64)


def _run(module, place, shape, bits1, areas1, boxes1, bits2, areas2, boxes2, height, width, pairwise, iscrowd):
    out = bits1.new_empty(shape, dtype=torch.float64)
    crowd = None if iscrowd is None else (iscrowd != 0).contiguous()
    bits1, areas1, boxes1 = bits1.contiguous(), areas1.contiguous(), boxes1.contiguous()
    bits2, areas2, boxes2 = bits2.contiguous(), areas2.contiguous(), boxes2.contiguous()
    kernel = module.mask_iou if pairwise else module.mask_iou_pairs
    crowd_address = 0 if crowd is None else crowd.data_ptr()
    kernel(
        *(bits1.data_ptr(), areas1.data_ptr(), boxes1.data_ptr(), areas1.numel()),
        *(bits2.data_ptr(), areas2.data_ptr(), boxes2.data_ptr(), areas2.numel()),
        *(height, width, crowd_address, out.data_ptr(), *place),
    )
    return out


def _cpp(*args):
    return _run(native.cpu()[0], (torch.get_num_threads(),), *args)


def _cuda(shape, bits1, areas1, boxes1, bits2, *args):
    bits1, bits2 = (bits if bits.data_ptr() % 16 == 0 else bits.clone() for bits in (bits1, bits2))
    with torch.cuda.device(bits1.device):
        return _run(native.cuda()[0], native.launch_place(bits1), shape, bits1, areas1, boxes1, bits2, *args)


def _reference(shape, bits1, areas1, boxes1, bits2, areas2, boxes2, height, width, pairwise, iscrowd):
    masks1, masks2 = (reference.unpack_masks(bits, height, width) for bits in (bits1, bits2))
    return reference.mask_iou(masks1, masks2, pairwise, iscrowd)


dispatch.register("mask_iou", cpp=_cpp, cuda=_cuda, reference=_reference)

_mask_iou_op = define(
    "mask_iou(Tensor bits1, Tensor areas1, Tensor boxes1, Tensor bits2, Tensor areas2, Tensor boxes2, "
    "SymInt height, SymInt width, bool pairwise, Tensor? iscrowd=None, str? backend=None) -> Tensor",
    _mask_iou,
    _mask_iou_fake,
)
