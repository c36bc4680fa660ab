"""The type that every op computes in."""

import torch
from torch import Tensor


def upcast(values: Tensor) -> Tensor:
    """float64 as it is, anything else as float32."""
    return values if values.dtype in (torch.float32, torch.float64) else values.float()
