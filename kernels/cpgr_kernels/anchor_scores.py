"""The best anchors of every image for every query. What it means is in `reference.anchor_scores`."""

import torch
from torch import Tensor

from . import dispatch, native, reference
from .arguments import check_device, check_features, element_type, plain
from .library import define, differentiable


def anchor_scores(anchors: Tensor, queries: Tensor, k: int = 1, *, backend: str | None = None) -> tuple[Tensor, Tensor]:
    """The k best anchors of every image for every query, by dot product, without the matrix of all products.

    S[q, b, n] = <queries[q], anchors[b, n]>; for each query and image the k largest over n.

    Args:
        anchors: [B, N, D], the features of N anchors of each of B images; float64, float32, bfloat16 or float16.
        queries: [Q, D], the features of Q expressions.
        k: how many, 1 <= k <= N.
        backend: "cpp", "triton", "reference", or None for the best that can run.

    Returns:
        scores [Q, B, k], descending, float64 if the input is, else float32, and indices [Q, B, k] (int64) of the
        anchors that have them. Among equal scores the lowest index comes first; NaN comes before all numbers.
        The gradient of the scores reaches the chosen anchors and their queries alone.

    Raises:
        ValueError: shapes that do not fit, or k outside 1..N.

    Example:
        >>> anchors = torch.tensor([[[1., 0.], [0., 1.], [1., 1.]]])
        >>> anchor_scores(anchors, torch.tensor([[2., 1.]]), k=2)
        (tensor([[[3., 2.]]]), tensor([[[2, 0]]]))
    """
    anchors, queries = same_type(anchors, queries)
    values, indices = _anchor_scores_op(anchors, queries, k, backend)
    return values, indices.long()


def same_type(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Both in the type that torch promotes them to."""
    if first.dtype is second.dtype:
        return first, second
    common = torch.promote_types(first.dtype, second.dtype)
    return first.to(common), second.to(common)


def result_type(values: Tensor) -> torch.dtype:
    """What scores, losses and gradients are computed in and scores returned in."""
    return torch.float64 if values.dtype is torch.float64 else torch.float32


def check_anchors(op: str, anchors: Tensor, queries: Tensor, k: int, k_name: str = "k") -> tuple[int, int, int]:
    """Check what both anchor ops take and return the shape [Q, B, k] of the chosen scores."""
    check_features(op, "anchors", anchors, "[B, N, D]")
    check_features(op, "queries", queries, "[Q, D]")
    check_device(op, anchors=anchors, queries=queries)
    if anchors.dtype is not queries.dtype:
        raise TypeError(f"{op}: anchors are {anchors.dtype} and queries are {queries.dtype}")
    images, count, width = anchors.shape
    if queries.shape[1] != width:
        raise ValueError(
            f"{op}: anchors [B, N, D] and queries [Q, D] must have the same D, "
            f"got {list(anchors.shape)} and {list(queries.shape)}"
        )
    if not 1 <= k <= count:
        raise ValueError(f"{op}: {k_name} must be in 1..N, the number of anchors, got {k} with N = {count}")
    return queries.shape[0], images, k


def _anchor_scores(anchors: Tensor, queries: Tensor, k: int, backend: str | None = None) -> tuple[Tensor, Tensor]:
    check_anchors("anchor_scores", anchors, queries, k)
    run = dispatch.choose("anchor_scores", anchors.device.type, backend)
    return run(anchors.contiguous(), queries.contiguous(), k)


def _anchor_scores_fake(anchors, queries, k, backend=None):
    shape = check_anchors("anchor_scores", anchors, queries, k)
    return anchors.new_empty(shape, dtype=result_type(anchors)), anchors.new_empty(shape, dtype=torch.int32)


def _backward(
    grad: Tensor, anchors: Tensor, queries: Tensor, indices: Tensor, backend: str | None = None
) -> tuple[Tensor, Tensor]:
    _check_backward(grad, anchors, queries, indices)
    run = dispatch.choose("anchor_scores_backward", anchors.device.type, backend)
    grad = grad.to(result_type(anchors)).contiguous()
    grads = run(grad, anchors.contiguous(), queries.contiguous(), indices.contiguous())
    return grads[0].to(anchors.dtype), grads[1].to(queries.dtype)


def _check_backward(grad: Tensor, anchors: Tensor, queries: Tensor, indices: Tensor) -> None:
    op = "anchor_scores_backward"
    shape = check_anchors(op, anchors, queries, indices.shape[-1] if indices.dim() else 0, "the last dimension")
    check_device(op, anchors=anchors, grad=grad, indices=indices)
    if grad.shape != shape or indices.shape != shape or indices.dtype is not torch.int32:
        raise ValueError(
            f"{op}: grad and indices (int32) must be {list(shape)}, "
            f"got {list(grad.shape)} and {list(indices.shape)} ({indices.dtype})"
        )


def _backward_fake(grad, anchors, queries, indices, backend=None):
    _check_backward(grad, anchors, queries, indices)
    return anchors.new_empty(anchors.shape), queries.new_empty(queries.shape)


def _reference(anchors: Tensor, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
    values, indices = reference.anchor_scores(anchors, queries, k)
    return values, indices.int()


def _cpp(anchors: Tensor, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
    module = native.cpu()[0]
    anchors, queries = native_features(module, anchors), native_features(module, queries)
    images, count, width = anchors.shape
    values = anchors.new_empty((queries.shape[0], images, k), dtype=result_type(anchors))
    indices = anchors.new_empty(values.shape, dtype=torch.int32)
    module.anchor_scores(
        element_type(anchors),
        anchors.data_ptr(),
        queries.data_ptr(),
        (queries.shape[0], images, count, width, k),
        values.data_ptr(),
        indices.data_ptr(),
        torch.get_num_threads(),
    )
    return values, indices


def _cpp_backward(grad: Tensor, anchors: Tensor, queries: Tensor, indices: Tensor) -> tuple[Tensor, Tensor]:
    module = native.cpu()[0]
    anchors, queries = native_features(module, anchors), native_features(module, queries)
    images, count, width = anchors.shape
    grad_anchors, grad_queries = (each.new_empty(each.shape, dtype=grad.dtype) for each in (anchors, queries))
    in_range = module.anchor_scores_backward(
        element_type(anchors),
        grad.data_ptr(),
        anchors.data_ptr(),
        queries.data_ptr(),
        indices.data_ptr(),
        (queries.shape[0], images, count, width, indices.shape[-1]),
        grad_anchors.data_ptr(),
        grad_queries.data_ptr(),
        torch.get_num_threads(),
    )
    if not in_range:
        raise IndexError(f"anchor_scores_backward: indices must be in 0..{count - 1}")
    return grad_anchors, grad_queries


def native_features(module, values: Tensor) -> Tensor:
    """float64 and float32 as they are; bfloat16 too where the CPU multiplies it faster; else float32."""
    if values.dtype is torch.bfloat16 and module.multiplies_bf16():
        return values
    return plain(values)


def _triton(*args):
    from .triton_kernels import anchors as kernels

    return kernels.anchor_scores_forward(*args)


def _triton_backward(*args):
    from .triton_kernels import anchors as kernels

    return kernels.anchor_scores_backward(*args)


dispatch.register("anchor_scores", cpp=_cpp, triton=_triton, reference=_reference)
dispatch.register(
    "anchor_scores_backward",
    cpp=_cpp_backward,
    triton=_triton_backward,
    reference=reference.anchor_scores_backward,
)

_backward_op = define(
    "anchor_scores_backward(Tensor grad, Tensor anchors, Tensor queries, Tensor indices, str? backend=None)"
    " -> (Tensor, Tensor)",
    _backward,
    _backward_fake,
)


def _setup_context(ctx, inputs, output):
    ctx.save_for_backward(inputs[0], inputs[1], output[1])
    ctx.backend = inputs[3]


def _gradient(ctx, grad, _):
    anchors, queries, indices = ctx.saved_tensors
    if torch.is_grad_enabled():  # a second derivative is wanted: the reference is differentiable
        grads = reference.anchor_scores_backward(grad, anchors, queries, indices)
        grads = grads[0].to(anchors.dtype), grads[1].to(queries.dtype)
    else:
        grads = _backward_op(grad, anchors, queries, indices, ctx.backend)
    return *grads, None, None


_anchor_scores_op = differentiable(
    define(
        "anchor_scores(Tensor anchors, Tensor queries, int k, str? backend=None) -> (Tensor, Tensor)",
        _anchor_scores,
        _anchor_scores_fake,
    ),
    _setup_context,
    _gradient,
    tensors=2,
)
