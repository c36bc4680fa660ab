"""anchor_contrast: RefCLIP's loss of a batch, forward, and forward with gradients."""

import sys
from collections.abc import Iterator
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import torch
from torch import Tensor

from cpgr_kernels import anchor_contrast

from .harness import Case
from .peers import MissingPeer
from .roofline import matrix_product


def _published_loss():
    """The tests' `refclip_loss`; torch.compile wants its module to have a name."""
    path = Path(__file__).parents[1] / "tests" / "kernels" / "refclip_loss.py"
    spec = spec_from_file_location("refclip_loss", path)
    module = sys.modules[spec.name] = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.refclip_loss


refclip_loss = _published_loss()

# Images, anchors, features. The first is RefCLIP's own; 169 are all cells of its coarsest feature map.
SIZES = ((64, 17, 512), (64, 169, 512), (256, 17, 512), (1024, 17, 512))
BARE_PRODUCTS = ("linear", "torch.mm")
FORWARD_GOALS = {"linear": 0.95}
GOALS = {(64, 17, 512): 8.0, (64, 169, 512): 6.0, (256, 17, 512): 5.0, (1024, 17, 512): 5.0}
COMPILED = SIZES[:1]  # it takes a minute a shape


def cases(device: str) -> Iterator[Case]:
    """By size: forward, forward and backward; then both in bfloat16 against our own float32."""
    for size in SIZES:
        anchors, queries = _features(size, device)
        yield _forward(size, anchors, queries)
        yield _with_gradients(size, anchors.requires_grad_(), queries.requires_grad_())
    for size in SIZES:
        yield from _bfloat16(size, *_features(size, device))


def _features(size: tuple[int, int, int], device: str) -> tuple[Tensor, Tensor]:
    """Features whose products are of the order of 1."""
    images, count, width = size
    generator = torch.Generator().manual_seed(0)
    shapes = (images, count, width), (images, width)
    return tuple((torch.randn(shape, generator=generator) * width**-0.25).to(device) for shape in shapes)


def _name(size: tuple[int, int, int], what: str) -> str:
    return f"B{size[0]} N{size[1]} D{size[2]} {what}"


def _forward(size, anchors: Tensor, queries: Tensor) -> Case:
    def run():
        return anchor_contrast(anchors, queries)

    def bare(product):
        return lambda: product(anchors.flatten(0, 1), queries)

    peers = {
        "RefCLIP": lambda: refclip_loss(anchors, queries.unsqueeze(1)),
        "RefCLIP compiled": _compiled(size, lambda: refclip_loss(anchors, queries.unsqueeze(1))),
        "linear": bare(matrix_product),
        "torch.mm": bare(lambda rows, columns: rows @ columns.mT),
    }
    return Case(
        "anchor_contrast",
        _name(size, "forward"),
        {"cpgr_kernels": run, **peers},
        agree,
        *_floors(size, backward=False),
        other_work=BARE_PRODUCTS,
        goals=FORWARD_GOALS,
    )


def _with_gradients(size, anchors: Tensor, queries: Tensor) -> Case:
    def run():
        return _gradients(anchor_contrast(anchors, queries), anchors, queries)

    def published():
        return _gradients(refclip_loss(anchors, queries.unsqueeze(1)), anchors, queries)

    return Case(
        "anchor_contrast",
        _name(size, "with gradients"),
        {"cpgr_kernels": run, "RefCLIP": published, "RefCLIP compiled": _compiled(size, published)},
        agree,
        *_floors(size, backward=True),
        goals={"RefCLIP": GOALS[size]},
    )


def _bfloat16(size, anchors: Tensor, queries: Tensor) -> Iterator[Case]:
    narrow = anchors.bfloat16().requires_grad_(), queries.bfloat16().requires_grad_()
    wide = tuple(each.detach().float().requires_grad_() for each in narrow)
    for what in ("forward", "with gradients"):
        backward = what != "forward"

        def run(features, backward=backward):
            loss = anchor_contrast(*(each if backward else each.detach() for each in features))
            return _gradients(loss, *features) if backward else loss

        yield Case(
            "anchor_contrast",
            _name(size, f"{what} bfloat16"),
            {"cpgr_kernels": lambda run=run: run(narrow), "cpgr_kernels float32": lambda run=run: run(wide)},
            agree_in_bfloat16,
            *_floors(size, backward, item=2),
            goals={} if backward else {"cpgr_kernels float32": 1.7},
        )


def _gradients(loss: Tensor, anchors: Tensor, queries: Tensor) -> tuple[Tensor, ...]:
    return loss.detach(), *torch.autograd.grad(loss, (anchors, queries))


def _compiled(size, published):
    if size not in COMPILED:
        return MissingPeer(f"it is compiled for {COMPILED} alone: a minute each")
    # Not one graph: masked_select has a size that depends on the data.
    return torch.compile(published, dynamic=False)


def _floors(size, backward: bool, item: int = 4) -> tuple[int, int]:
    """Bytes: features read once, in the backward again, and their gradients written. Operations: all products; in the
    backward two winners a query and image, each added to both gradients."""
    images, count, width = size
    features = item * (images * count + images) * width
    return features * (3 if backward else 1), 2 * images**2 * width * (count + (4 if backward else 0))


def agree(ours, theirs) -> None:
    """To the rounding of float32, which may turn a near tie of two anchors: one of 2 million is 2e-5 of the norm."""
    _agree(ours, theirs, 1e-4)


def agree_in_bfloat16(ours, theirs) -> None:
    """The gradients are rounded to bfloat16."""
    _agree(ours, theirs, 4e-3)


def _agree(ours, theirs, rtol: float) -> None:
    pairs = zip(ours, theirs, strict=True) if isinstance(ours, tuple) else [(ours, theirs)]
    for mine, other in pairs:
        error = (mine.double() - other.double()).norm() / other.double().norm()
        assert error < rtol, f"they differ by {error:.1e} of the norm"
