"""Overlap of response maps with masks. What it means is in `reference.mask_overlap`."""

from typing import NamedTuple

import torch
from torch import Tensor

from . import dispatch, native, reference
from .arguments import check_device, check_numbers, from_numpy
from .library import define, differentiable


class MaskOverlap(NamedTuple):
    """P is a response and m a mask, over all pixels; K dimensions are there if responses had one."""

    inter: Tensor  # [B, (K,) N]: sum of P m
    response: Tensor  # [B, (K)]: sum of P
    mask: Tensor  # [B, N]: sum of m
    hard: Tensor  # [B, (K,) N]: sum of m where P > threshold
    peak: Tensor  # [B, (K,) N]: max of P m
    argmax: Tensor  # [B, (K,) N]: the first pixel of the peak, int64, row by row


def mask_overlap(responses, masks, *, threshold: float = 1e-9, backend: str | None = None) -> MaskOverlap:
    """Soft and hard overlap of response maps with masks and the peak in each mask, in one pass and with gradient.

    What PCNet's region-aware shrinking and instance-aware disambiguation losses compute from mask proposals: an overlap
    of half the Dice, inter / (response + mask), whether a response touches a mask, and its peak in each.

    Args:
        responses: [B, H, W] or [B, K, H, W] (K maps that share the masks of a sample: stages, texts), float; half
            precision is computed in float32.
        masks: [B, N, H, W]: bool, uint8 (0: outside, else inside), or numbers, as a rule from 0 to 1.
        threshold: a response above this counts in `hard`.
        backend: "cpp", "cuda", "reference", or None for the best that can run.

    Returns:
        MaskOverlap, float64 if either argument is, else float32. `peak` is 0, at pixel 0, for an empty mask, and 0 or
        more for every boolean mask that leaves a pixel out. A NaN inside a mask is its peak.

        inter, response and peak have a gradient to responses (peak to one pixel, that of argmax); masks of numbers have
        one from inter, mask, hard and peak.

    float32 sums have at most 64 terms in a row and are added up in pairs and, beyond 2048 pixels, in float64: an error
    of at most 70 * 2^-24 of the sum of absolute values. On one device a result does not depend on the number of
    threads; the C++ kernels give the same bits on every instruction set.

    Example:
        >>> response = torch.tensor([[[0.0, 0.5], [1.0, 0.0]]])
        >>> mask = torch.tensor([[[[True, True], [False, False]]]])
        >>> overlap = mask_overlap(response, mask)
        >>> overlap.inter, overlap.peak, overlap.argmax
        (tensor([[0.5000]]), tensor([[0.5000]]), tensor([[1]]))
    """
    if not (isinstance(responses, Tensor) and isinstance(masks, Tensor)):
        responses, masks = from_numpy("mask_overlap", responses=responses, masks=masks)
        found = mask_overlap(responses, masks, threshold=threshold, backend=backend)
        return MaskOverlap(*(part.numpy() for part in found))
    single = responses.dim() == 3
    found = MaskOverlap(*_op(responses.unsqueeze(1) if single else responses, masks, threshold, backend))
    if not single:
        return found
    inter, response, mask, hard, peak, argmax = found
    return MaskOverlap(inter[:, 0], response[:, 0], mask, hard[:, 0], peak[:, 0], argmax[:, 0])


def _check(responses: Tensor, masks: Tensor) -> tuple[list[int], list[int], list[int]]:
    """Check the arguments of the op and return the shapes [B, K, N], [B, K] and [B, N]."""
    check_numbers("mask_overlap", "responses", responses)
    if not responses.is_floating_point():
        raise TypeError(f"mask_overlap: responses must be floating point, got {responses.dtype}")
    if masks.dtype not in (torch.bool, torch.uint8) and not masks.is_floating_point():
        raise TypeError(f"mask_overlap: masks must be bool, uint8 or floating point, got {masks.dtype}")
    if masks.dtype is not torch.bool:
        check_numbers("mask_overlap", "masks", masks)
    check_device("mask_overlap", responses=responses, masks=masks)
    if (
        responses.dim() != 4
        or masks.dim() != 4
        or responses.shape[0] != masks.shape[0]
        or responses.shape[2:] != masks.shape[2:]
    ):
        raise ValueError(
            "mask_overlap: responses must be [B, K, H, W] (or [B, H, W]) and masks [B, N, H, W], "
            f"got {list(responses.shape)} and {list(masks.shape)}"
        )
    if responses.shape[2] * responses.shape[3] == 0:
        raise ValueError(f"mask_overlap: H and W must not be zero, got responses {list(responses.shape)}")
    batch, maps, count = responses.shape[0], responses.shape[1], masks.shape[1]
    return [batch, maps, count], [batch, maps], [batch, count]


def _dtype(responses: Tensor, masks: Tensor) -> torch.dtype:
    return torch.float64 if torch.float64 in (responses.dtype, masks.dtype) else torch.float32


def _plain(values: Tensor, dtype: torch.dtype) -> Tensor:
    """As a kernel takes it: numbers of its type, or bytes."""
    if values.is_floating_point() and values.dtype is not dtype:
        values = values.to(dtype)
    return values.contiguous()


def _overlap(responses: Tensor, masks: Tensor, threshold: float, backend: str | None = None) -> tuple[Tensor, ...]:
    shapes = _check(responses, masks)
    # Without a map there is nothing to read a mask for but its size.
    run = dispatch.choose("mask_overlap", responses.device.type, backend if responses.shape[1] else "reference")
    dtype = _dtype(responses, masks)
    return run(_plain(responses, dtype), _plain(masks, dtype), threshold, shapes)


def _overlap_fake(responses, masks, threshold, backend=None):
    each, maps, counts = _check(responses, masks)
    dtype = _dtype(responses, masks)
    shapes = each, maps, counts, each, each
    return *(responses.new_empty(shape, dtype=dtype) for shape in shapes), responses.new_empty(each, dtype=torch.int64)


def _backward(
    grad_inter: Tensor | None,
    grad_response: Tensor | None,
    grad_mask: Tensor | None,
    grad_hard: Tensor | None,
    grad_peak: Tensor | None,
    responses: Tensor,
    masks: Tensor,
    argmax: Tensor,
    threshold: float,
    for_responses: bool,
    for_masks: bool,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    each, maps, counts = _check(responses, masks)
    grads = {
        "grad_inter": (grad_inter, each),
        "grad_response": (grad_response, maps),
        "grad_mask": (grad_mask, counts),
        "grad_hard": (grad_hard, each),
        "grad_peak": (grad_peak, each),
    }
    for name, (value, shape) in (grads | {"argmax": (argmax, each)}).items():
        if value is not None and (list(value.shape) != shape or value.device != responses.device):
            raise ValueError(
                f"mask_overlap_backward: {name} must be {shape} on {responses.device}, got {list(value.shape)}"
            )
    if argmax.dtype is not torch.int64:
        raise TypeError(f"mask_overlap_backward: argmax must be int64, got {argmax.dtype}")
    if for_masks and not masks.is_floating_point():
        raise TypeError(f"mask_overlap_backward: masks of {masks.dtype} have no gradient")
    dtype = _dtype(responses, masks)
    run = dispatch.choose("mask_overlap_backward", responses.device.type, backend)
    values = [None if value is None else value.to(dtype).contiguous() for value, _ in grads.values()]
    to_responses, to_masks = run(
        *values,
        _plain(responses, dtype),
        _plain(masks, dtype),
        argmax.contiguous(),
        threshold,
        for_responses,
        for_masks,
    )
    return to_responses.to(responses.dtype), to_masks.to(masks.dtype)


def _backward_fake(
    grad_inter, grad_response, grad_mask, grad_hard, grad_peak, responses, masks, argmax, threshold, for_responses,
    for_masks, backend=None,
):  # fmt: skip
    return (
        responses.new_empty(responses.shape if for_responses else 0),
        masks.new_empty(masks.shape if for_masks else 0),
    )


def _sizes(responses: Tensor, masks: Tensor) -> tuple[int, int, int, int]:
    batch, maps, height, width = responses.shape
    return batch, maps, masks.shape[1], height * width


def _kinds(responses: Tensor, masks: Tensor) -> tuple[bool, bool]:
    """Whether numbers are double and masks bytes."""
    return responses.dtype is torch.float64, not masks.is_floating_point()


def _run(module, place, responses: Tensor, masks: Tensor, threshold: float, shapes) -> tuple[Tensor, ...]:
    each, maps, counts = shapes
    out = [responses.new_empty(shape) for shape in (each, maps, counts, each, each)]
    out.append(responses.new_empty(each, dtype=torch.int64))
    addresses = (part.data_ptr() for part in out)
    module.mask_overlap(
        *_kinds(responses, masks), responses.data_ptr(), masks.data_ptr(), *_sizes(responses, masks), threshold,
        *addresses, *place,
    )  # fmt: skip
    return tuple(out)


def _run_backward(
    module, place, inter, response, mask, hard, peak, responses, masks, argmax, threshold, for_responses, for_masks
):
    inter, response, mask, hard, peak = (0 if g is None else g.data_ptr() for g in (inter, response, mask, hard, peak))
    kinds, sizes = _kinds(responses, masks), _sizes(responses, masks)
    to_responses, to_masks = responses.new_empty(0), masks.new_empty(0)
    if for_responses:
        to_responses = torch.empty_like(responses)
        module.mask_overlap_backward(
            *kinds, inter, response, peak, masks.data_ptr(), argmax.data_ptr(), *sizes, to_responses.data_ptr(), *place
        )
    if for_masks:
        to_masks = torch.empty_like(masks)
        module.mask_overlap_backward_masks(
            kinds[0], inter, mask, hard, peak, responses.data_ptr(), argmax.data_ptr(), *sizes, threshold,
            to_masks.data_ptr(), *place,
        )  # fmt: skip
    return to_responses, to_masks


def _cpp(*args):
    return _run(native.cpu()[0], (torch.get_num_threads(),), *args)


def _cpp_backward(*args):
    return _run_backward(native.cpu()[0], (torch.get_num_threads(),), *args)


def _cuda(responses, *args):
    with torch.cuda.device(responses.device):
        return _run(native.cuda()[0], native.launch_place(responses), responses, *args)


def _cuda_backward(*args):
    responses = args[5]
    with torch.cuda.device(responses.device):
        return _run_backward(native.cuda()[0], native.launch_place(responses), *args)


def _reference(responses, masks, threshold, shapes):
    return reference.mask_overlap(responses, masks, threshold)


def _reference_backward(*args):
    *arguments, for_responses, for_masks = args
    to_responses, to_masks = reference.mask_overlap_backward(*arguments)
    return to_responses if for_responses else to_responses.new_empty(0), to_masks if for_masks else to_masks.new_empty(
        0
    )


dispatch.register("mask_overlap", cpp=_cpp, cuda=_cuda, reference=_reference)
dispatch.register("mask_overlap_backward", cpp=_cpp_backward, cuda=_cuda_backward, reference=_reference_backward)

_backward_op = define(
    "mask_overlap_backward(Tensor? grad_inter, Tensor? grad_response, Tensor? grad_mask, Tensor? grad_hard,"
    " Tensor? grad_peak, Tensor responses, Tensor masks, Tensor argmax, float threshold, bool for_responses,"
    " bool for_masks, str? backend=None) -> (Tensor, Tensor)",
    _backward,
    _backward_fake,
)


def _setup_context(ctx, inputs, output):
    responses, masks, ctx.threshold, ctx.backend = inputs
    ctx.save_for_backward(responses, masks, output[5])
    ctx.set_materialize_grads(False)


def _gradient(ctx, *grads):
    responses, masks, argmax = ctx.saved_tensors
    for_responses, for_masks = ctx.needs_input_grad[:2]
    if torch.is_grad_enabled():  # a second derivative is wanted: the reference is differentiable
        both = reference.mask_overlap_backward(*grads[:5], responses, masks, argmax, ctx.threshold)
        to_responses, to_masks = both[0].to(responses.dtype), both[1].to(masks.dtype)
    else:
        to_responses, to_masks = _backward_op(
            *grads[:5], responses, masks, argmax, ctx.threshold, for_responses, for_masks, ctx.backend
        )
    return to_responses if for_responses else None, to_masks if for_masks else None, None, None


_op = differentiable(
    define(
        "mask_overlap(Tensor responses, Tensor masks, float threshold, str? backend=None)"
        " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
        _overlap,
        _overlap_fake,
    ),
    _setup_context,
    _gradient,
    tensors=2,
)
