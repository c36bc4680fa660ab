"""mask_overlap at the sizes of PCNet: 48 samples with 40 mask proposals of 32 x 32; forward, and with gradient."""

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from cpgr_kernels import mask_overlap, reference

from .harness import Case
from .peers import compiled

BATCH, COUNT, SIDE = 48, 40, 32
THRESHOLD = 1e-9


def cases(device: str = "cpu") -> Iterator[Case]:
    """Byte masks and masks of numbers, one map and four; then the losses' gradient."""
    for kind, maps in ((torch.bool, 1), (torch.float32, 1), (torch.bool, 4)):
        responses, masks = _problem(kind, maps, device)
        name = f"{BATCH} x {COUNT} masks of {SIDE} x {SIDE}, {str(kind)[6:]}" + (f", {maps} maps" if maps > 1 else "")
        runs = {"cpgr_kernels": partial(_ours, responses, masks), "reference": partial(_reference, responses, masks)}
        runs["torch.compile"] = partial(compiled(_reference), responses, masks)
        runs["separate passes"] = partial(_passes, responses, masks)
        yield _case(name, runs, responses, masks, passes=1)
        if maps == 1:
            leaf = responses.clone().requires_grad_()
            runs = {run: partial(_with_gradient, call.func, leaf, masks) for run, call in runs.items()}
            yield _case(f"{name}, with gradient", runs, responses, masks, passes=2)


def _case(name: str, runs: dict[str, Callable], responses: Tensor, masks: Tensor, passes: int) -> Case:
    return Case(
        "mask_overlap",
        name,
        runs,
        partial(torch.testing.assert_close, rtol=1e-4, atol=1e-4),
        floor_bytes=passes * (responses.nbytes + masks.nbytes),
        floor_flops=4 * passes * responses.shape[1] * masks.numel(),
        goals={"reference": 20.0, "torch.compile": 3.0, "separate passes": 20.0},
    )


def _problem(kind: torch.dtype, maps: int, device: str) -> tuple[Tensor, Tensor]:
    """Rectified responses and masks that cover a tenth of them."""
    generator = torch.Generator().manual_seed(1)
    responses = torch.randn(BATCH, maps, SIDE, SIDE, generator=generator).relu()
    masks = torch.rand(BATCH, COUNT, SIDE, SIDE, generator=generator) < 0.1
    return responses.to(device), masks.to(kind).to(device)


def _ours(responses: Tensor, masks: Tensor) -> tuple[Tensor, ...]:
    return tuple(mask_overlap(responses, masks, threshold=THRESHOLD))


def _reference(responses: Tensor, masks: Tensor) -> tuple[Tensor, ...]:
    return reference.mask_overlap(responses, masks, THRESHOLD)


def _passes(responses: Tensor, masks: Tensor) -> tuple[Tensor, ...]:
    """Each quantity by a product and a reduction of its own, the peak's pixel by topk."""
    p, m = responses.flatten(2).unsqueeze(2), masks.float().flatten(2).unsqueeze(1)
    inter = (p * m).sum(-1)
    hard = ((p > THRESHOLD).float() * m).sum(-1)
    peak, argmax = (p * m).topk(1, -1)
    return inter, p.sum((-1, -2)), m.sum((1, -1)), hard, peak[..., 0], argmax[..., 0]


def _with_gradient(call: Callable, responses: Tensor, masks: Tensor) -> Tensor:
    """The gradient of half the Dice with one mask a sample, the best of the others, and of all peaks."""
    inter, response, mask, _, peak, _ = call(responses, masks)
    overlap = inter / (response.unsqueeze(-1) + mask.unsqueeze(1) + 2e-5)
    loss = overlap[..., 0].mean() - overlap[..., 1:].amax(-1).mean() + peak.square().mean()
    return torch.autograd.grad(loss, responses)[0]
