"""What the Triton kernels share: precision of products, sizes of the card, cases for compiling ahead of time."""

from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .. import native

# Read by kernels as a constant: Triton's interpreter multiplies the bit patterns of bfloat16, so it is given float32.
INTERPRETED = native.triton_interprets()

TYPES = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}


@triton.jit
def dot(a, b, sums, PRECISION: tl.constexpr, INTERPRETED: tl.constexpr):
    """a @ b + sums in float32."""
    if INTERPRETED:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, sums, input_precision=PRECISION)


def matmul_precision(dtype: torch.dtype) -> str:
    """Of products of float32: exact, or TF32 where the user has allowed it to torch's own. Half types ignore it."""
    if dtype is torch.float32 and torch.backends.cuda.matmul.fp32_precision == "tf32":
        return "tf32"
    return "ieee"


@cache
def _multiprocessors(index: int) -> int:
    return torch.cuda.get_device_properties(index).multi_processor_count


def multiprocessors(tensor: Tensor) -> int:
    """Of the tensor's card; a few in the interpreter, so that a program has more than one piece of work."""
    return _multiprocessors(tensor.get_device()) if tensor.is_cuda else 4


def power_of_two(count: int) -> int:
    """The least power of two that is at least `count`."""
    return 1 << max(count - 1, 0).bit_length()


def ceil_div(count: int, size: int) -> int:
    return -(-count // size)


def take_options(chosen: dict[str, Any]) -> dict[str, int]:
    """Take out of a launch's settings those that are no constants of its kernel."""
    chosen.setdefault("enable_fp_fusion", True)  # Triton's own default is about to change
    names = "num_warps", "num_stages", "maxnreg", "enable_fp_fusion"
    return {name: chosen.pop(name) for name in names if name in chosen}


def aot_case(
    name: str,
    kernel: Any,
    types: dict[str, str],
    constants: dict[str, Any],
    options: dict[str, int],
    tensor_cores: str | None = None,
) -> dict:
    """A case for `tests/kernels/triton_aot.py`: pointers ("*bf16") and sizes ("i32") divisible by 16, as in real use.

    "i32:1" is a size that is not. `tensor_cores` is the instruction that Hopper must find in it: "wgmma" or "mma".
    """
    parameters = kernel.arg_names
    signature = {parameter: types.get(parameter, "constexpr").removesuffix(":1") for parameter in parameters}
    divisible = [at for at, name in enumerate(parameters) if types.get(name) == "i32" or "*" in signature[name]]
    return {
        "name": name,
        "kernel": kernel,
        "signature": signature,
        "constexprs": {parameter: constants[parameter] for parameter in parameters if parameter not in types},
        "attrs": {(index,): [["tt.divisibility", 16]] for index in divisible},
        "options": options,
        "tensor_cores": tensor_cores,
    }


def cover(count: int, shapes: tuple[tuple[int, int], ...]) -> tuple[int, int]:
    """The (TILE, REST) of `shapes` that covers `count` columns at the least cost.

    A tile costs its columns, and about 32 more to fill and drain its pipeline.
    """
    return min(shapes, key=lambda shape: (ceil_div(count, sum(shape)) * (sum(shape) + 32), shape))
