"""attention_with_map and attention_map: cross-attention and Q-Former maps of all words, ViT's CLS row, a long prompt.

Peers: what transformers does where weights are wanted (eager), torch's fused attention without any map (other work),
the same with the chosen rows computed beside it, and for a map alone its two products in torch.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from cpgr_kernels import attention_map, attention_with_map

from .harness import Case, against_reference, agree_closely
from .peers import compiled


class Shape(NamedTuple):
    """Heads of q, k and v are equally wide and equally many; rows None: the map of all."""

    name: str
    batch: int
    heads: int
    queries: int
    keys: int
    width: int
    rows: tuple[int, ...] | None = None

    @property
    def sizes(self) -> str:
        chosen = "all rows" if self.rows is None else f"{len(self.rows)} row{'s'[: len(self.rows) > 1]}"
        return f"{self.name} B{self.batch} H{self.heads} {self.queries} x {self.keys} D{self.width}, {chosen}"

    @property
    def pairs(self) -> int:
        return self.batch * self.heads * self.queries * self.keys


CROSS = Shape("cross", 8, 12, 30, 577, 64)
Q_FORMER = Shape("Q-Former", 8, 12, 32, 257, 64)
VIT = Shape("ViT", 8, 12, 577, 577, 64, (0,))
PROMPT = Shape("prompt", 1, 32, 2048, 2048, 128, tuple(range(0, 2048, 128)))
GOALS = {
    CROSS: {"eager": 5.0, "sdpa + rows": 3.5, "sdpa, no map": 2.0},
    PROMPT: {"eager": 3.0, "sdpa + rows": 1.7},
}


def cases(device: str = "cpu") -> Iterator[Case]:
    """Output and map by shape, with gradient, in bfloat16; then maps alone."""
    for shape in (CROSS, Q_FORMER, VIT, PROMPT):
        yield _forward_case(shape, device)
    for shape in (CROSS, Q_FORMER):
        yield _gradient_case(shape, device)
    yield _forward_case(CROSS, device, torch.bfloat16)
    for shape in (VIT, VIT._replace(rows=tuple(range(8))), PROMPT):
        yield _map_case(shape, device)


def _inputs(shape: Shape, device: str, dtype: torch.dtype = torch.float32) -> tuple[list[Tensor], Tensor | None]:
    """q, k and v as a model hands them over: views of [B, T, H, D]."""
    generator = torch.Generator().manual_seed(0)
    lengths = (shape.queries, shape.keys, shape.keys)
    made = [torch.randn(shape.batch, n, shape.heads, shape.width, generator=generator) for n in lengths]
    rows = None if shape.rows is None else torch.tensor(shape.rows, device=device)
    return [x.to(device, dtype).transpose(1, 2) for x in made], rows


def eager(q: Tensor, k: Tensor, v: Tensor, rows: Tensor | None) -> tuple[Tensor, Tensor]:
    """transformers' eager_attention_forward, and the mean over heads that its users take."""
    weights = torch.matmul(q, k.transpose(2, 3)) * q.shape[-1] ** -0.5
    weights = F.softmax(weights, dim=-1, dtype=torch.float32).to(q.dtype)
    out = torch.matmul(weights, v).transpose(1, 2).contiguous().transpose(1, 2)
    chosen = weights if rows is None else weights[:, :, rows]
    return out, chosen.mean(1)


def chosen_rows(q: Tensor, k: Tensor, rows: Tensor | None) -> Tensor:
    """The map of chosen rows alone, in two products."""
    q = q if rows is None else q[:, :, rows]
    return (torch.matmul(q, k.transpose(2, 3)) * q.shape[-1] ** -0.5).softmax(-1).mean(1)


def sdpa_and_rows(q: Tensor, k: Tensor, v: Tensor, rows: Tensor | None) -> tuple[Tensor, Tensor]:
    """torch's fused attention, and the chosen rows once more beside it."""
    return F.scaled_dot_product_attention(q, k, v), chosen_rows(q, k, rows)


def _agree(ours: tuple[Tensor, ...], theirs: tuple[Tensor, ...], tolerance: float | None = None) -> None:
    for mine, other in zip(ours, theirs, strict=True):
        if tolerance is None:
            agree_closely(mine.float(), other.float())
        else:
            torch.testing.assert_close(mine.float(), other.float(), rtol=tolerance, atol=tolerance)


def _forward_case(shape: Shape, device: str, dtype: torch.dtype = torch.float32) -> Case:
    (q, k, v), rows = _inputs(shape, device, dtype)
    fused = compiled(eager)
    runs: dict[str, Callable[[], Any]] = {
        "cpgr_kernels": partial(attention_with_map, q, k, v, rows=rows),
        "eager": partial(eager, q, k, v, rows),
        "sdpa + rows": partial(sdpa_and_rows, q, k, v, rows),
        "sdpa, no map": partial(F.scaled_dot_product_attention, q, k, v),
    }
    if shape is CROSS:
        runs["torch.compile"] = partial(fused, q, k, v, rows)
    half = dtype is torch.bfloat16
    return Case(
        "attention_with_map",
        shape.sizes + (", bfloat16" if half else ""),
        runs,
        partial(_agree, tolerance=4e-2 if half else None),
        floor_bytes=_bytes(shape, dtype.itemsize),
        floor_flops=4 * shape.pairs * shape.width,
        other_work=("sdpa, no map",),
        goals=GOALS.get(shape, {}) if not half else {},
    )


def _gradient_case(shape: Shape, device: str) -> Case:
    inputs, rows = _inputs(shape, device)
    inputs = [x.requires_grad_() for x in inputs]
    generator = torch.Generator().manual_seed(1)
    sizes = (shape.batch, shape.heads, shape.queries, shape.width), (shape.batch, shape.queries, shape.keys)
    weights = [torch.randn(size, generator=generator).to(device) for size in sizes]

    def both(forward):
        return torch.autograd.grad(forward(), inputs, weights)

    def without_map():
        return torch.autograd.grad(F.scaled_dot_product_attention(*inputs), inputs, weights[0])

    return Case(
        "attention_with_map",
        f"{shape.sizes}, with gradient",
        {
            "cpgr_kernels": partial(both, partial(attention_with_map, *inputs, rows=rows)),
            "eager": partial(both, partial(eager, *inputs, rows)),
            "sdpa + rows": partial(both, partial(sdpa_and_rows, *inputs, rows)),
            "sdpa, no map": without_map,
        },
        _agree,
        floor_bytes=3 * _bytes(shape, 4),
        # Scores again, weights' gradient, and those of q, k and v: five products after the forward pass's two.
        floor_flops=14 * shape.pairs * shape.width,
        other_work=("sdpa, no map",),
        goals={"eager": 2.0},
    )


def _map_case(shape: Shape, device: str) -> Case:
    (q, k, _), rows = _inputs(shape, device)
    count = shape.queries if shape.rows is None else len(shape.rows)

    def ours(backend):
        return attention_map(q, k, rows=rows, backend=backend)

    runs = {"cpgr_kernels": partial(ours, None), "two products": partial(chosen_rows, q, k, rows)}
    if shape.pairs < 1e8:
        runs |= against_reference(ours)
    return Case(
        "attention_map",
        shape.sizes,
        runs,
        agree_closely,
        floor_bytes=4 * shape.batch * (shape.keys * shape.heads * shape.width + count * shape.keys),
        floor_flops=2 * shape.batch * shape.heads * count * shape.keys * shape.width,
        goals={"two products": 1.0},
    )


def _bytes(shape: Shape, item: int) -> int:
    """q, k and v read, output and map (float32) written."""
    count = shape.queries if shape.rows is None else len(shape.rows)
    features = shape.batch * shape.heads * shape.width * 2 * (shape.queries + shape.keys)
    return item * features + 4 * shape.batch * count * shape.keys
