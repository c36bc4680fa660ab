"""How long a call takes and how much memory it adds, on the CPU or on a GPU."""

import ctypes
import gc
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

# Seconds: shorter calls are timed in groups. A sample that follows another implementation's finds the caches and the
# allocator in that one's state; in this time a call comes to its own.
SHORTEST_SAMPLE = 5e-3
_L2_BYTES = 5 * 64 << 20  # more than the L2 cache of any GPU, several times over


class Clock:
    """Times calls on one type of device."""

    def __init__(self, device: str):
        self.device = device
        self._flush = torch.empty(_L2_BYTES, dtype=torch.int8, device=device) if device == "cuda" else None

    def sample(self, run: Callable[[], Any], repeats: int = 1) -> float:
        """Seconds a call, of `repeats` calls in a row. On a GPU the cache is cold before the first."""
        if self.device == "cuda":
            return self._sample_cuda(run, repeats)
        start = time.perf_counter()
        for _ in range(repeats):
            run()
        return (time.perf_counter() - start) / repeats

    def repeats(self, run: Callable[[], Any]) -> int:
        """How many calls make a sample long enough for the clock."""
        return max(1, int(SHORTEST_SAMPLE / max(self.sample(run), 1e-7)))

    def _sample_cuda(self, run: Callable[[], Any], repeats: int) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self._flush.zero_()
        start.record()
        for _ in range(repeats):
            run()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3 / repeats


def peak_bytes(run: Callable[[], Any], device: str) -> int | None:
    """The most memory that one call adds, its result included; None where the system does not tell.

    On the CPU this is resident memory, as the kernel counts it, so small calls that fit into memory which the process
    already holds show as 0.
    """
    gc.collect()
    if device == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    try:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again
        before = _resident("VmRSS")
        result = run()
        after = _resident("VmHWM")
        del result
    except (AttributeError, OSError):
        return None
    return max(0, after - before)


def _resident(field: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024
