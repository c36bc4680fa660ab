"""Late interaction of the tokens of queries and documents. What it means is in `reference.maxsim`."""

import torch
from torch import Tensor

from . import dispatch, native, reference
from .anchor_scores import native_features, result_type, same_type
from .arguments import check_device, check_features, element_type
from .library import define, differentiable


def maxsim(
    queries: Tensor,
    documents: Tensor,
    query_mask: Tensor | None = None,
    document_mask: Tensor | None = None,
    *,
    backend: str | None = None,
) -> Tensor:
    """ColBERT's late interaction: how well the best token of a document meets each token of a query, summed.

    score[q, b] = sum over t of max over n of <queries[q, t], documents[b, n]> (Khattab and Zaharia, SIGIR 2020,
    section 3.3), with gradient and without the [Q, B, T, N] tensor.

    Args:
        queries: [Q, T, D], the features of up to T tokens of each query; float64, float32, bfloat16 or float16.
        documents: [B, N, D], those of up to N tokens (or image regions) of each document.
        query_mask: [Q, T] bool, True at tokens that count; None: all.
        document_mask: [B, N] bool, likewise.
        backend: "cpp", "triton", "reference", or None for the best that can run.

    Returns:
        [Q, B], float64 if the input is, else float32. 0 where the query or the document has no token that counts.

    Example:
        >>> maxsim(torch.eye(2)[None], torch.tensor([[[3., 0.], [0., 4.]], [[1., 1.], [0., 0.]]]))
        tensor([[7., 2.]])
    """
    queries, documents = same_type(queries, documents)
    return _maxsim_op(queries, documents, query_mask, document_mask, backend)[0]


def _check(
    op: str, queries: Tensor, documents: Tensor, query_mask: Tensor | None = None, document_mask: Tensor | None = None
) -> tuple[int, int, int]:
    """Check the arguments and return Q, B, T."""
    check_features(op, "queries", queries, "[Q, T, D]")
    check_features(op, "documents", documents, "[B, N, D]")
    check_device(op, queries=queries, documents=documents, query_mask=query_mask, document_mask=document_mask)
    if queries.dtype is not documents.dtype:
        raise TypeError(f"{op}: queries are {queries.dtype} and documents are {documents.dtype}")
    if queries.shape[2] != documents.shape[2]:
        raise ValueError(
            f"{op}: queries [Q, T, D] and documents [B, N, D] must have the same D, "
            f"got {list(queries.shape)} and {list(documents.shape)}"
        )
    for name, mask, shape in (
        ("query_mask", query_mask, queries.shape[:2]),
        ("document_mask", document_mask, documents.shape[:2]),
    ):
        if mask is None:
            continue
        if mask.shape != shape:
            raise ValueError(f"{op}: {name} must be {list(shape)}, got {list(mask.shape)}")
        if mask.dtype is not torch.bool:
            raise TypeError(f"{op}: {name} must be bool, True at tokens that count, got {mask.dtype}")
    return queries.shape[0], documents.shape[0], queries.shape[1]


def _maxsim(
    queries: Tensor,
    documents: Tensor,
    query_mask: Tensor | None,
    document_mask: Tensor | None,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    _check("maxsim", queries, documents, query_mask, document_mask)
    run = dispatch.choose("maxsim", queries.device.type, backend)
    masks = (None if mask is None else mask.contiguous() for mask in (query_mask, document_mask))
    return run(queries.contiguous(), documents.contiguous(), *masks)


def _maxsim_fake(queries, documents, query_mask, document_mask, backend=None):
    count, items, tokens = _check("maxsim", queries, documents, query_mask, document_mask)
    scores = queries.new_empty((count, items), dtype=result_type(queries))
    return scores, queries.new_empty((count, items, tokens), dtype=torch.int32)


def _backward(
    grad: Tensor, queries: Tensor, documents: Tensor, indices: Tensor, backend: str | None = None
) -> tuple[Tensor, Tensor]:
    _check_backward(grad, queries, documents, indices)
    run = dispatch.choose("maxsim_backward", queries.device.type, backend)
    grad = grad.to(result_type(queries)).contiguous()
    grads = run(grad, queries.contiguous(), documents.contiguous(), indices.contiguous())
    return grads[0].to(queries.dtype), grads[1].to(documents.dtype)


def _check_backward(grad: Tensor, queries: Tensor, documents: Tensor, indices: Tensor) -> None:
    op = "maxsim_backward"
    shape = _check(op, queries, documents)
    check_device(op, queries=queries, grad=grad, indices=indices)
    if grad.shape != shape[:2]:
        raise ValueError(f"{op}: grad must be {list(shape[:2])}, got {list(grad.shape)}")
    if indices.shape != shape or indices.dtype is not torch.int32:
        raise ValueError(f"{op}: indices must be {list(shape)} (int32), got {list(indices.shape)} ({indices.dtype})")


def _backward_fake(grad, queries, documents, indices, backend=None):
    _check_backward(grad, queries, documents, indices)
    return queries.new_empty(queries.shape), documents.new_empty(documents.shape)


def _cpp(queries, documents, query_mask, document_mask):
    module = native.cpu()[0]
    queries, documents = native_features(module, queries), native_features(module, documents)
    (count, tokens, width), (items, length, _) = queries.shape, documents.shape
    scores = queries.new_empty((count, items), dtype=result_type(queries))
    indices = queries.new_empty((count, items, tokens), dtype=torch.int32)
    module.maxsim(
        element_type(queries),
        queries.data_ptr(),
        documents.data_ptr(),
        0 if query_mask is None else query_mask.data_ptr(),
        0 if document_mask is None else document_mask.data_ptr(),
        (count, tokens, items, length, width),
        scores.data_ptr(),
        indices.data_ptr(),
        torch.get_num_threads(),
    )
    return scores, indices


def _cpp_backward(grad, queries, documents, indices):
    module = native.cpu()[0]
    queries, documents = native_features(module, queries), native_features(module, documents)
    (count, tokens, width), (items, length, _) = queries.shape, documents.shape
    grad_queries, grad_documents = (each.new_empty(each.shape, dtype=grad.dtype) for each in (queries, documents))
    in_range = module.maxsim_backward(
        element_type(queries),
        grad.data_ptr(),
        queries.data_ptr(),
        documents.data_ptr(),
        indices.data_ptr(),
        (count, tokens, items, length, width),
        grad_queries.data_ptr(),
        grad_documents.data_ptr(),
        torch.get_num_threads(),
    )
    if not in_range:
        raise IndexError(f"maxsim_backward: indices must be in -1..{length - 1}")
    return grad_queries, grad_documents


def _triton(*args):
    from .triton_kernels import maxsim as kernels

    return kernels.maxsim_forward(*args)


def _triton_backward(*args):
    from .triton_kernels import maxsim as kernels

    return kernels.maxsim_backward(*args)


dispatch.register("maxsim", cpp=_cpp, triton=_triton, reference=reference.maxsim_terms)
dispatch.register("maxsim_backward", cpp=_cpp_backward, triton=_triton_backward, reference=reference.maxsim_backward)

_backward_op = define(
    "maxsim_backward(Tensor grad, Tensor queries, Tensor documents, Tensor indices, str? backend=None)"
    " -> (Tensor, Tensor)",
    _backward,
    _backward_fake,
)


def _setup_context(ctx, inputs, output):
    ctx.save_for_backward(inputs[0], inputs[1], output[1])
    ctx.backend = inputs[4]


def _gradient(ctx, grad, _):
    queries, documents, indices = ctx.saved_tensors
    if torch.is_grad_enabled():  # a second derivative is wanted: the reference is differentiable
        grads = reference.maxsim_backward(grad, queries, documents, indices)
        grads = grads[0].to(queries.dtype), grads[1].to(documents.dtype)
    else:
        grads = _backward_op(grad, queries, documents, indices, ctx.backend)
    return *grads, None, None, None


_maxsim_op = differentiable(
    define(
        "maxsim(Tensor queries, Tensor documents, Tensor? query_mask, Tensor? document_mask, str? backend=None)"
        " -> (Tensor, Tensor)",
        _maxsim,
        _maxsim_fake,
    ),
    _setup_context,
    _gradient,
    tensors=2,
)
