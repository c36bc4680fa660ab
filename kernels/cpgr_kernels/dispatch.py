"""Which implementation of an op runs.

An op registers one function a backend. For the device of its tensors the first backend in the order of `BACKENDS` that
can run is taken, and the reason why an earlier one cannot is kept: `backends()` shows it. A backend asked for by
argument or by CPGR_KERNELS_BACKEND runs, or raises BackendError with the fix; nothing takes its place.

CPGR_KERNELS_BACKEND is a name for all ops ("reference") or names for some ("nms=reference,box_iou=cpp"). It is read
once, at the first call of an op.
"""

import os
from collections.abc import Callable
from contextlib import nullcontext
from functools import cache, wraps
from typing import NamedTuple

import torch

from . import native


class BackendError(RuntimeError):
    """A backend was asked for that cannot run."""


class Backend(NamedTuple):
    devices: tuple[str, ...] | None  # the types of device it runs on; None: any
    why_not: Callable[[str], str | None]  # None if it can run on this type of device


BACKENDS = {
    "cpp": Backend(("cpu",), lambda device: native.why_no_cpp()),
    "cuda": Backend(("cuda",), lambda device: native.why_no_cuda()),
    # On CPU tensors only in its interpreter, for tests.
    "triton": Backend(("cuda", "cpu") if native.triton_interprets() else ("cuda",), native.why_no_triton),
    "reference": Backend(None, lambda device: None),
}

# Tensors on other devices (mps, xpu) work too, by the reference.
_SHOWN_DEVICES = {"cpu": lambda: None, "cuda": native.why_no_cuda_device}

_implementations: dict[str, dict[str, Callable]] = {}
_chosen: dict[tuple[str, str, str | None], Callable] = {}


class Row(NamedTuple):
    """One line of `backends()`."""

    op: str
    device: str
    backend: str
    available: bool
    reason: str
    chosen: bool


def register(op: str, **functions: Callable) -> None:
    """Register an op's implementations by backend; `reference` is among them always."""
    functions["reference"] = _without_autocast(functions["reference"])
    if "triton" in functions:
        functions["triton"] = _on_its_device(functions["triton"])
    _implementations[op] = {name: functions[name] for name in BACKENDS if name in functions}


def _without_autocast(function: Callable) -> Callable:
    """The types that an op computes in are its own: autocast would make the reference's products bfloat16."""

    @wraps(function)
    def run(*arguments, **options):
        with torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
            return function(*arguments, **options)

    return run


def _on_its_device(function: Callable) -> Callable:
    """Triton launches on the current device, whatever the tensors' is."""

    @wraps(function)
    def run(*arguments, **options):
        tensor = next(each for each in arguments if isinstance(each, torch.Tensor))
        with torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext():
            return function(*arguments, **options)

    return run


def choose(op: str, device: str, backend: str | None = None) -> Callable:
    """The function that runs `op` on tensors of this type of device."""
    try:
        return _chosen[op, device, backend]
    except KeyError:
        name = _choose(op, device, backend)[0]
        return _chosen.setdefault((op, device, backend), _implementations[op][name])


def backends(op: str | None = None) -> list[Row]:
    """A row for each op, device and backend: whether it can run, why (not), and whether it is the one taken."""
    rows = []
    for name in [op] if op else _implementations:
        for device, why_no_device in _SHOWN_DEVICES.items():
            missing = why_no_device()
            reasons = {each: missing or _why_not(each, device) for each in _candidates(name, device)}
            chosen, why = _chosen_or_error(name, device) if missing is None else (None, "")
            for each, reason in reasons.items():
                text = reason or (why if chosen in (None, each) else "can run")
                rows.append(Row(name, device, each, reason is None, text, each == chosen))
    return rows


def refresh() -> None:
    """Forget every choice, so that the environment is read again."""
    _chosen.clear()
    _environment.cache_clear()


def _candidates(op: str, device: str) -> list[str]:
    return [name for name in _implementations[op] if BACKENDS[name].devices is None or device in BACKENDS[name].devices]


def _why_not(backend: str, device: str) -> str | None:
    wanted = BACKENDS[backend].devices
    if wanted is not None and device not in wanted:
        return f"it runs on {wanted[0]} tensors and these are on {device}; move them there"
    return BACKENDS[backend].why_not(device)


def _chosen_or_error(op: str, device: str) -> tuple[str | None, str]:
    try:
        return _choose(op, device, None)
    except BackendError as error:
        return None, str(error)


def _choose(op: str, device: str, backend: str | None) -> tuple[str, str]:
    forced, source = backend, f"backend={backend!r}"
    if forced is None:
        forced = _environment().get(op) or _environment().get("")
        source = f"CPGR_KERNELS_BACKEND={os.environ.get('CPGR_KERNELS_BACKEND')}"
    if forced is None:
        passed = []
        for name in _candidates(op, device):
            if (reason := _why_not(name, device)) is None:
                return name, "the best that can run" + (f" ({'; '.join(passed)})" if passed else "")
            passed.append(f"not {name}: {reason}")
    if forced not in _implementations[op]:
        known = ", ".join(_implementations[op])
        raise BackendError(f"{op}: {source}: there is no such backend for this op; choose one of: {known}")
    if (reason := _why_not(forced, device)) is not None:
        raise BackendError(f"{op}: {source} cannot run: {reason}")
    return forced, f"forced by {source}"


@cache
def _environment() -> dict[str, str]:
    """Forced backends by op; "" is for all others."""
    forced = {}
    for part in filter(None, os.environ.get("CPGR_KERNELS_BACKEND", "").split(",")):
        op, _, name = part.rpartition("=")
        forced[op.strip()] = name.strip()
    for op in forced:
        if op and op not in _implementations:
            raise BackendError(f"CPGR_KERNELS_BACKEND names no op {op!r}; ops are: {', '.join(_implementations)}")
    return forced
