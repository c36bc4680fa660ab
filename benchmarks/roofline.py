"""What this machine reaches at best, measured: bytes copied and products of large matrices, per second."""

import statistics

import torch

from .timing import Clock

COPIED_BYTES = 256 << 20
MATRIX = {"cpu": 1024, "cuda": 8192}


def roofline(device: str) -> dict[str, float]:
    """Gigabytes a second (read and written) of a copy, gigaflops a second of a float32 (GPU: bfloat16) product."""
    clock = Clock(device)
    source = torch.ones(COPIED_BYTES, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copy = _median(clock, lambda: target.copy_(source))
    size = MATRIX[device]
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    first, second = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    product = _median(clock, lambda: matrix_product(first, second))
    return {"gigabytes_per_second": 2 * COPIED_BYTES / copy / 1e9, "gigaflops_per_second": 2 * size**3 / product / 1e9}


def matrix_product(rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """rows [M, K] @ columns [N, K]^T, by oneDNN on the CPU: on some CPUs it is twice as fast as torch.mm."""
    if rows.device.type == "cpu" and torch.backends.mkldnn.is_available():
        return torch.ops.mkldnn._linear_pointwise(rows, columns, None, "none", [], "")
    return torch.nn.functional.linear(rows, columns)


def _median(clock: Clock, run) -> float:
    run()
    return statistics.median(clock.sample(run) for _ in range(15))
