"""maxsim: late interaction of query tokens and document tokens."""

from collections.abc import Iterator

import torch

from cpgr_kernels import maxsim

from .harness import Case
from .peers import peer

# Queries, their tokens, documents, their tokens, features: ColBERT's widths, at sizes that a CPU scores in a second;
# then one query over many documents, and the in-batch shape of training that other kernels report on a GPU.
SIZES = {
    "cpu": ((16, 32, 64, 64, 128), (128, 32, 64, 64, 128), (1, 32, 1000, 180, 128)),
    "cuda": ((128, 32, 64, 64, 128), (1, 32, 10000, 180, 128), (128, 32, 128, 300, 128)),
}


def cases(device: str) -> Iterator[Case]:
    """By size, forward, then forward and backward."""
    for size in SIZES[device]:
        for backward in (False, True):
            yield _case(size, backward, device)


def _case(size, backward: bool, device: str) -> Case:
    count, tokens, items, length, width = size
    generator = torch.Generator().manual_seed(0)
    shapes = (count, tokens, width), (items, length, width)
    features = [torch.nn.functional.normalize(torch.randn(each, generator=generator), dim=-1) for each in shapes]
    features = [each.to(device).requires_grad_(backward) for each in features]
    grad = torch.randn(count, items, generator=generator).to(device)

    def both(score):
        scores = score(*features)
        return (
            torch.cat([each.flatten() for each in torch.autograd.grad(scores, features, grad)]) if backward else scores
        )

    def eager(queries, documents):
        return torch.einsum("qtd,bnd->qbtn", queries, documents).amax(-1).sum(-1)

    def library(module):
        return lambda: both(module.maxsim_reference)

    products = 2 * count * tokens * items * length * width
    return Case(
        "maxsim",
        f"{count} x {tokens} tokens, {items} x {length} tokens, D{width} {'with gradients' if backward else 'forward'}",
        {
            "cpgr_kernels": lambda: both(maxsim),
            "einsum": lambda: both(eager),
            # Its CPU path is plain torch; on a GPU its kernels are the peer.
            "late-interaction-kernels": peer("late_interaction_kernels.reference", library)
            if device == "cpu"
            else peer("late_interaction_kernels", lambda module: lambda: both(module.maxsim)),
        },
        agree,
        floor_bytes=4 * (count * tokens + items * length) * width * (3 if backward else 1),
        floor_flops=products + (4 * count * tokens * items * width if backward else 0),
    )


def agree(ours, theirs) -> None:
    """To the rounding of float32: 1e-5 of the norm."""
    error = (ours - theirs).norm() / theirs.norm()
    assert error < 1e-5, f"they differ by {error:.1e} of the norm"
