"""What every op does with what it is given: take NumPy arrays, and check before an address leaves Python."""

import sys
from typing import Any

import torch
from torch import Tensor


def from_numpy(op: str, **arguments: Any) -> list[Tensor]:
    """NumPy arrays as tensors; TypeError for anything else."""
    values = arguments.values()
    numpy = sys.modules.get("numpy")  # an array exists only where NumPy is imported
    if numpy is not None and all(isinstance(value, numpy.ndarray) for value in values):
        # A copy where torch cannot share the memory: read-only arrays, negative strides, foreign byte order.
        arrays = [numpy.require(value, value.dtype.newbyteorder("="), ["C", "W"]) for value in values]
        return [torch.from_numpy(array) for array in arrays]
    given = ", ".join(f"{name}: {type(value).__name__}" for name, value in arguments.items())
    raise TypeError(f"{op}: arguments must be all torch.Tensor or all numpy.ndarray, got {given}")


def check_boxes(op: str, name: str, boxes: Tensor, dims: int | None = None) -> None:
    """Boxes are [..., 4], or of exactly `dims` dimensions, of numbers."""
    shape = boxes.shape
    if not shape or shape[-1] != 4 or (dims is not None and len(shape) != dims):
        wanted = "[N, 4]" if dims == 2 else "[..., 4]"
        raise ValueError(f"{op}: {name} must be {wanted} (x1, y1, x2, y2), got {list(shape)}")
    check_numbers(op, name, boxes)


def check_numbers(op: str, name: str, values: Tensor) -> None:
    """Floating point numbers or integers, dense."""
    dtype = values.dtype
    if dtype is torch.bool or dtype.is_complex or values.is_quantized or values.layout is not torch.strided:
        raise TypeError(f"{op}: {name} must be a dense tensor of numbers, got {values.dtype} ({values.layout})")


def check_length(op: str, name: str, values: Tensor, length: int) -> None:
    """One entry a box."""
    if values.dim() != 1 or values.shape[0] != length:
        raise ValueError(f"{op}: {name} must be [N] with one entry a box, N = {length}, got {list(values.shape)}")


def check_device(op: str, **tensors: Tensor | None) -> None:
    """All on the device of the first; None is nowhere."""
    (first, home), *others = ((name, tensor) for name, tensor in tensors.items() if tensor is not None)
    for name, other in others:
        if other.device != home.device:
            raise ValueError(f"{op}: {name} is on {other.device} and {first} is on {home.device}")


def plain(values: Tensor) -> Tensor:
    """Contiguous float64 or float32, as the kernels take it; the same tensor where it is that already."""
    if values.dtype is not torch.float32 and values.dtype is not torch.float64:
        values = values.float()
    return values.contiguous()


def check_features(op: str, name: str, features: Tensor, shape: str) -> None:
    """Floating point numbers of as many dimensions as `shape`, such as "[B, N, D]", names."""
    if features.dim() != shape.count(",") + 1:
        raise ValueError(f"{op}: {name} must be {shape}, got {list(features.shape)}")
    if not features.is_floating_point() or features.layout is not torch.strided:
        raise TypeError(f"{op}: {name} must be floating point, got {features.dtype} ({features.layout})")
    if features.dim() > 1 and features.shape[-2] > 2**31 - 1:  # the winner's index is a 32-bit integer
        raise ValueError(f"{op}: {name} has more than 2^31 - 1 rows, {list(features.shape)}")


def element_type(features: Tensor) -> int:
    """How the C++ kernels that multiply features are told their type."""
    return (torch.float32, torch.float64, torch.bfloat16).index(features.dtype)
