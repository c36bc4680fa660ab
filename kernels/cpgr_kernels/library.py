"""Registering ops with torch, in Python, so that schema, fake kernel and gradient exist with no compiled module."""

from collections.abc import Callable

import torch

NAMESPACE = "cpgr_kernels"
_library = torch.library.Library(NAMESPACE, "FRAGMENT")


def define(schema: str, kernel: Callable, fake: Callable) -> Callable:
    """Define the op of `schema` and return it.

    `Library.impl` and not `torch.library.custom_op`: a call costs 3 us instead of 7.
    """
    name = schema[: schema.index("(")]
    _library.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    _library.impl(name, kernel, "CompositeExplicitAutograd")
    torch.library.register_fake(f"{NAMESPACE}::{name}", fake, lib=_library)
    return getattr(getattr(torch.ops, NAMESPACE), name).default


def differentiable(op: Callable, setup_context: Callable, backward: Callable, tensors: int) -> Callable:
    """Give `op`, whose first `tensors` arguments can have a gradient, its backward.

    Returned is a callable for the op's public function. It calls the op without torch.library's autograd, which is two
    thirds of what a call costs: by an autograd.Function where a gradient is asked for, by nothing where it is not.
    """
    torch.library.register_autograd(op, backward, setup_context=setup_context, lib=_library)
    below_autograd = torch._C._AutoDispatchBelowAutograd

    class Gradient(torch.autograd.Function):
        @staticmethod
        def forward(ctx, *args):  # one with a `setup_context` of its own takes torch twice as long
            with below_autograd():
                output = op(*args)
            setup_context(ctx, args, output)
            return output

        @staticmethod
        def backward(ctx, *grads):
            return backward(ctx, *grads)

    def call(*args):
        if torch.compiler.is_compiling():
            return op(*args)
        if torch.is_grad_enabled():
            for tensor in args[:tensors]:
                if tensor.requires_grad:
                    return Gradient.apply(*args)
        with below_autograd():
            return op(*args)

    return call
