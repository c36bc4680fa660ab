"""The two compiled modules, loaded at their first use, and Triton: with the reason kept where one cannot run."""

import os
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType

import torch

REBUILD = "reinstall cpgr from its source folder (`pip install .` with a C++ compiler)"


def _load(name: str) -> tuple[ModuleType | None, str]:
    try:
        return import_module(f"{__package__}.{name}"), ""
    except ImportError as error:
        return None, str(error)


@cache
def cpu() -> tuple[ModuleType | None, str]:
    """The module `_C`, or None and why not."""
    module, error = _load("_C")
    if module is None:
        return None, f"the C++ kernels are not built ({error}); {REBUILD}"
    if isa := os.environ.get("CPGR_KERNELS_ISA"):
        try:
            module.use_isa(isa)
        except RuntimeError as error:
            raise RuntimeError(f"CPGR_KERNELS_ISA: {error}") from None
    return module, ""


@cache
def cuda() -> tuple[ModuleType | None, str]:
    """The module `_cuda`, or None and why not."""
    module, error = _load("_cuda")
    if module is not None:
        return module, ""
    built, _ = _load("_C")
    status = built.cuda_status if built is not None else error
    return None, f"the CUDA kernels are not there ({status}); reinstall cpgr with CPGR_CUDA=1 and nvcc on PATH"


def why_no_cpp() -> str | None:
    """None if the C++ kernels can run."""
    return cpu()[1] or None


def why_no_cuda_device() -> str | None:
    """None if torch has a CUDA device."""
    if torch.version.cuda is None:
        return "this torch is built without CUDA; install a CUDA build of torch"
    if not torch.cuda.is_available():
        return "torch finds no CUDA device; see `nvidia-smi` and CUDA_VISIBLE_DEVICES"
    return None


def why_no_cuda() -> str | None:
    """None if the CUDA kernels can run."""
    if reason := cuda()[1] or why_no_cuda_device():
        return reason
    return _too_old()


def triton_interprets() -> bool:
    """True if TRITON_INTERPRET=1, which Triton reads once, when it is imported."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def why_no_triton(device: str) -> str | None:
    """None if the Triton kernels can run on this type of device."""
    if find_spec("triton") is None:
        return "triton is not installed; `pip install triton`"
    if device != "cuda":
        return None if triton_interprets() else "Triton runs on CPU tensors in its interpreter only: TRITON_INTERPRET=1"
    if reason := why_no_cuda_device():
        return reason
    return _too_old()


def _too_old() -> str | None:
    oldest = min(torch.cuda.get_device_capability(index) for index in range(torch.cuda.device_count()))
    return f"a GPU of compute capability 8.0 or later is needed, found {oldest}" if oldest < (8, 0) else None


def launch_place(tensor: torch.Tensor) -> tuple[int, int]:
    """The last two arguments of every CUDA kernel: device index and current stream."""
    index = tensor.get_device()
    return index, torch.cuda.current_stream(index).cuda_stream


def build_info() -> dict:
    """What was compiled: {"cpu": {...}, "cuda": {...}}, each with `built` and either its details or the `reason`."""
    module, reason = cpu()
    kernels, cuda_reason = cuda()
    return {
        "cpu": {"built": False, "reason": reason}
        if module is None
        else {
            "built": True,
            "version": module.version,
            "compiler": module.compiler,
            "openmp": module.openmp,
            "isa": module.isa(),
            "supported_isas": module.supported_isas(),
        },
        "cuda": {"built": False, "reason": cuda_reason}
        if kernels is None
        else {
            "built": True,
            "version": kernels.version,
            "toolkit": kernels.toolkit,
            "architectures": kernels.architectures.split(),
        },
    }
