"""RefCLIP's loss, in RefCLIP's own code, by `anchor_contrast`.

    from cpgr_kernels.integrations import refclip
    import models.RefCLIP.head

    refclip.patch(models.RefCLIP.head)

RefCLIP and the code that grew from it (RefCLIP++, DViN, WeakMCN) keep the loss in a function `getContrast(vis_emb,
lan_emb)` of the head's module, vis_emb [B, N, D] and lan_emb [B, 1, D]. It is replaced by the kernel, which makes no
[B, 1, B, N] tensor and waits for no GPU. Before that both are asked for the loss and the gradients of a small problem;
a function that answers otherwise is left alone and an error is raised.
"""

import inspect
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from ..anchor_contrast import anchor_contrast

NAME = "getContrast"
_patches: list["Patch"] = []


class Patch:
    """What `patch` replaced; `undo()` puts it back, and so does leaving a `with` block."""

    def __init__(self, owner: Any, original: Any):
        self.owner, self.original = owner, original

    def undo(self) -> None:
        """Put the owner's own function back."""
        if self in _patches:
            _patches.remove(self)
            setattr(self.owner, NAME, self.original)

    def __enter__(self) -> "Patch":
        return self

    def __exit__(self, *exception: object) -> None:
        self.undo()


def patch(head: Any = None, *, backend: str | None = None) -> Patch:
    """Replace RefCLIP's `getContrast` by `anchor_contrast`.

    Args:
        head: the module that defines getContrast, a class or model of it, or a class with a method of that name. None:
            the one imported module named `head` that has it.
        backend: that of `anchor_contrast`.

    Returns:
        A Patch: call its `undo()`, or use it in a `with` statement.

    Raises:
        TypeError: nothing there looks like RefCLIP's head.
        ValueError: getContrast computes another loss.
    """
    owner = _owner(head)
    original = inspect.getattr_static(owner, NAME)
    if any(each.owner is owner for each in _patches):
        raise ValueError(f"refclip.patch: {_name(owner)} is patched already; undo that patch first")
    function = original.__func__ if isinstance(original, staticmethod) else original
    bound = isinstance(owner, type) and not isinstance(original, staticmethod)
    _check_signature(owner, function, bound)
    _check_loss(owner, function, bound)

    if bound:

        def getContrast(self, vis_emb, lan_emb):  # noqa: N802 - RefCLIP's name
            return contrast(vis_emb, lan_emb, backend=backend)
    else:

        def getContrast(vis_emb, lan_emb):  # noqa: N802
            return contrast(vis_emb, lan_emb, backend=backend)

    done = Patch(owner, original)
    setattr(owner, NAME, staticmethod(getContrast) if isinstance(original, staticmethod) else getContrast)
    _patches.append(done)
    return done


def unpatch() -> None:
    """Undo every patch."""
    while _patches:
        _patches[-1].undo()


def contrast(vis_emb: Tensor, lan_emb: Tensor, *, backend: str | None = None) -> Tensor:
    """RefCLIP's loss of vis_emb [B, N, D] and lan_emb [B, 1, D]."""
    if lan_emb.dim() != 3 or lan_emb.shape[1] != 1:
        raise ValueError(f"getContrast: lan_emb must be [B, 1, D], one expression an image, got {list(lan_emb.shape)}")
    return anchor_contrast(vis_emb, lan_emb.squeeze(1), backend=backend)


def _owner(head: Any) -> Any:
    """The module or class whose attribute is to be replaced."""
    if head is None:
        found = {
            id(module): module
            for name, module in list(sys.modules.items())
            if name.split(".")[-1] == "head" and inspect.isfunction(getattr(module, NAME, None))
        }
        if len(found) != 1:
            names = ", ".join(sorted(module.__name__ for module in found.values())) or "none"
            raise TypeError(
                f"refclip.patch: one imported module named `head` must have a function {NAME}; found: {names}. "
                "Import RefCLIP's head first, or pass it"
            )
        return next(iter(found.values()))
    if isinstance(head, ModuleType):
        place = head
    else:
        kind = head if isinstance(head, type) else type(head)
        owners = [each for each in kind.__mro__ if NAME in vars(each)]
        place = owners[0] if owners else sys.modules.get(kind.__module__)
    if not callable(getattr(place, NAME, None)):
        raise TypeError(
            f"refclip.patch: {_name(head)} is not RefCLIP's head: neither it nor its module has a function {NAME}"
        )
    return place


def _check_signature(owner: Any, function: Callable, bound: bool) -> None:
    wanted = 3 if bound else 2
    try:
        inspect.signature(function).bind(*range(wanted))
    except TypeError:
        raise TypeError(
            f"refclip.patch: {NAME} of {_name(owner)} takes {inspect.signature(function)}, not (vis_emb, lan_emb)"
        ) from None


def _check_loss(owner: Any, function: Callable, bound: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    given = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((3, 5, 4), (3, 1, 4))]
    given = [each.requires_grad_() for each in given]
    try:
        with torch.enable_grad():
            theirs = function(None, *given) if bound else function(*given)
            theirs = theirs, *torch.autograd.grad(theirs, given)
            ours = contrast(*given, backend="reference")
            ours = ours, *torch.autograd.grad(ours, given)
    except Exception as error:
        raise TypeError(
            f"refclip.patch: {NAME} of {_name(owner)} fails on vis_emb [3, 5, 4], lan_emb [3, 1, 4]: {error}"
        ) from error
    if not all(torch.allclose(a, b) for a, b in zip(ours, theirs, strict=True)):
        raise ValueError(
            f"refclip.patch: {NAME} of {_name(owner)} computes another loss than RefCLIP's: {theirs[0].item():.6f} where "
            f"that is {ours[0].item():.6f}; it is left as it is"
        )


def _name(thing: Any) -> str:
    return getattr(thing, "__name__", None) or type(thing).__name__
