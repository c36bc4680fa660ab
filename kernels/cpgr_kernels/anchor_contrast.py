"""RefCLIP's anchor-query contrast. What it means is in `reference.anchor_contrast`."""

import torch
import torch.nn.functional as F
from torch import Tensor

from . import dispatch, native, reference
from .anchor_scores import check_anchors, native_features, result_type, same_type
from .arguments import check_device, element_type
from .library import define, differentiable


def anchor_contrast(
    anchors: Tensor,
    queries: Tensor,
    *,
    positive: Tensor | None = None,
    image_ids: Tensor | None = None,
    negatives_per_image: int = 2,
    temperature: float = 1.0,
    normalize: bool = False,
    backend: str | None = None,
) -> Tensor:
    """RefCLIP's contrastive loss between queries and the anchors of all images, with gradient.

    Jin et al., RefCLIP (CVPR 2023), section 3.3. With S[q, b, n] = <queries[q], anchors[b, n]> / temperature and M_j
    its j-th largest over n,

        Z_q  = log( exp M_1[q, positive[q]] + sum over b != positive[q] and j <= negatives_per_image of exp M_j[q, b] )
        loss = mean over q of Z_q - M_1[q, positive[q]]

    The published loss is that of the defaults. No [Q, B, N] tensor is made; 12 Q B bytes are kept for the gradient
    (negatives_per_image 2, float32), which touches the winning anchors alone.

    Args:
        anchors: [B, N, D], the features of N anchors of each of B images; float64, float32, bfloat16 or float16.
        queries: [Q, D], the features of Q expressions.
        positive: [Q], the image of each query, integers in 0..B-1. None: Q = B, and query q belongs to image q.
        image_ids: [B], integers. Images of the same id are no negatives of each other: several expressions of one
            picture in a batch would otherwise push each other away. None: all differ.
        negatives_per_image: how many of the best anchors of another image are negatives, in 1..N.
        temperature: positive. (For a learned one, divide the queries by it.)
        normalize: divide anchors and queries by their Euclidean length first.
        backend: "cpp", "triton", "reference", or None for the best that can run.

    Returns:
        A scalar, float64 if the input is, else float32. NaN if there is no query.

    Raises:
        ValueError: shapes that do not fit, negatives_per_image outside 1..N, a temperature that is not positive.
        IndexError: positive outside 0..B-1; on the CPU alone, a GPU would have to be waited for and gives NaN.

    Example:
        >>> anchors, queries = torch.randn(8, 17, 512, requires_grad=True), torch.randn(8, 512)
        >>> anchor_contrast(anchors, queries, temperature=20.0).backward()
    """
    anchors, queries = same_type(anchors, queries)
    if normalize:
        anchors, queries = F.normalize(anchors, dim=-1), F.normalize(queries, dim=-1)
    if not temperature > 0:
        raise ValueError(f"anchor_contrast: temperature must be positive, got {temperature}")
    losses, *_ = _anchor_contrast_op(
        anchors, queries, positive, image_ids, negatives_per_image, 1 / temperature, backend
    )
    return losses.mean()


def _check(
    op: str, anchors: Tensor, queries: Tensor, positive: Tensor | None, image_ids: Tensor | None, k: int
) -> tuple[int, int, int]:
    shape = check_anchors(op, anchors, queries, k, "negatives_per_image")
    check_device(op, anchors=anchors, positive=positive, image_ids=image_ids)
    if positive is None and shape[0] != shape[1]:
        raise ValueError(
            f"{op}: without `positive` query q belongs to image q, so there must be as many of both; "
            f"got {shape[0]} queries and {shape[1]} images"
        )
    for name, given, length in (("positive", positive, shape[0]), ("image_ids", image_ids, shape[1])):
        if given is None:
            continue
        if given.shape != (length,):
            one = "a query" if name == "positive" else "an image"
            raise ValueError(f"{op}: {name} must be [{length}], one entry {one}, got {list(given.shape)}")
        if given.is_floating_point() or given.is_complex() or given.dtype is torch.bool:
            raise TypeError(f"{op}: {name} must be integers, got {given.dtype}")
    return shape


def _integers(anchors: Tensor, queries: Tensor, positive: Tensor | None, image_ids: Tensor | None):
    """positive and image_ids as the kernels take them: int64, in range, contiguous."""
    images = anchors.shape[0]
    if positive is None:
        positive = torch.arange(images, device=anchors.device)
    else:
        positive = positive.long().contiguous()
        if positive.device.type == "cpu" and positive.numel():
            low, high = (int(end) for end in positive.aminmax())
            if low < 0 or high >= images:
                raise IndexError(f"anchor_contrast: positive must be in 0..{images - 1}, got {low}..{high}")
    return positive, None if image_ids is None else image_ids.long().contiguous()


def _anchor_contrast(
    anchors: Tensor,
    queries: Tensor,
    positive: Tensor | None,
    image_ids: Tensor | None,
    k: int,
    scale: float,
    backend: str | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    _check("anchor_contrast", anchors, queries, positive, image_ids, k)
    run = dispatch.choose("anchor_contrast", anchors.device.type, backend)
    positive, image_ids = _integers(anchors, queries, positive, image_ids)
    return run(anchors.contiguous(), queries.contiguous(), positive, image_ids, k, scale)


def index_type(anchors: Tensor) -> torch.dtype:
    """The type in which the winners are kept for the gradient."""
    return torch.int16 if anchors.shape[1] <= torch.iinfo(torch.int16).max else torch.int32


def _anchor_contrast_fake(anchors, queries, positive, image_ids, k, scale, backend=None):
    shape = _check("anchor_contrast", anchors, queries, positive, image_ids, k)
    losses = anchors.new_empty(shape[:1], dtype=result_type(anchors))
    values = anchors.new_empty(shape, dtype=result_type(anchors))
    return losses, torch.empty_like(losses), values, anchors.new_empty(shape, dtype=index_type(anchors))


def _backward(
    grad_losses: Tensor,
    anchors: Tensor,
    queries: Tensor,
    positive: Tensor | None,
    image_ids: Tensor | None,
    lse: Tensor,
    values: Tensor,
    indices: Tensor,
    scale: float,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    _check_backward(grad_losses, anchors, queries, positive, image_ids, lse, values, indices)
    run = dispatch.choose("anchor_contrast_backward", anchors.device.type, backend)
    positive, image_ids = _integers(anchors, queries, positive, image_ids)
    grad_losses = grad_losses.to(result_type(anchors)).contiguous()
    features = anchors.contiguous(), queries.contiguous()
    saved = lse.contiguous(), values.contiguous(), indices.contiguous()
    grads = run(grad_losses, *features, positive, image_ids, *saved, scale)
    return grads[0].to(anchors.dtype), grads[1].to(queries.dtype)


def _check_backward(grad_losses, anchors, queries, positive, image_ids, lse, values, indices) -> None:
    op = "anchor_contrast_backward"
    k = indices.shape[-1] if indices.dim() else 0
    shape = _check(op, anchors, queries, positive, image_ids, k)
    check_device(op, anchors=anchors, grad_losses=grad_losses, lse=lse, values=values, indices=indices)
    rows = {"grad_losses": grad_losses, "lse": lse}
    for name, given in (*rows.items(), ("values", values), ("indices", indices)):
        wanted = shape[:1] if name in rows else shape
        if given.shape != wanted:
            raise ValueError(f"{op}: {name} must be {list(wanted)}, got {list(given.shape)}")
    kinds = result_type(anchors), result_type(anchors), index_type(anchors)
    if (lse.dtype, values.dtype, indices.dtype) != kinds:
        raise TypeError(
            f"{op}: lse, values and indices must be {', '.join(map(str, kinds))}, "
            f"got {lse.dtype}, {values.dtype}, {indices.dtype}"
        )


def _backward_fake(grad_losses, anchors, queries, positive, image_ids, lse, values, indices, scale, backend=None):
    _check_backward(grad_losses, anchors, queries, positive, image_ids, lse, values, indices)
    return anchors.new_empty(anchors.shape), queries.new_empty(queries.shape)


def _address(values: Tensor | None) -> int:
    return 0 if values is None else values.data_ptr()


def _cpp(anchors, queries, positive, image_ids, k, scale):
    module = native.cpu()[0]
    anchors, queries = native_features(module, anchors), native_features(module, queries)
    images, count, width = anchors.shape
    values = anchors.new_empty((queries.shape[0], images, k), dtype=result_type(anchors))
    indices = anchors.new_empty(values.shape, dtype=index_type(anchors))
    losses, lse = values.new_empty(queries.shape[0]), values.new_empty(queries.shape[0])
    module.anchor_contrast(
        element_type(anchors),
        anchors.data_ptr(),
        queries.data_ptr(),
        positive.data_ptr(),
        _address(image_ids),
        (queries.shape[0], images, count, width, k),
        scale,
        losses.data_ptr(),
        lse.data_ptr(),
        values.data_ptr(),
        indices.data_ptr(),
        torch.get_num_threads(),
    )
    return losses, lse, values, indices


def _cpp_backward(grad_losses, anchors, queries, positive, image_ids, lse, values, indices, scale):
    module = native.cpu()[0]
    anchors, queries = native_features(module, anchors), native_features(module, queries)
    images, count, width = anchors.shape
    grad_anchors, grad_queries = (each.new_empty(each.shape, dtype=values.dtype) for each in (anchors, queries))
    in_range = module.anchor_contrast_backward(
        element_type(anchors),
        grad_losses.data_ptr(),
        anchors.data_ptr(),
        queries.data_ptr(),
        positive.data_ptr(),
        _address(image_ids),
        lse.data_ptr(),
        values.data_ptr(),
        indices.data_ptr(),
        (queries.shape[0], images, count, width, indices.shape[-1]),
        scale,
        grad_anchors.data_ptr(),
        grad_queries.data_ptr(),
        torch.get_num_threads(),
    )
    if not in_range:
        raise IndexError(f"anchor_contrast_backward: indices must be in 0..{count - 1}")
    return grad_anchors, grad_queries


def _triton(*args):
    from .triton_kernels import anchors as kernels

    return kernels.anchor_contrast_forward(*args)


def _triton_backward(*args):
    from .triton_kernels import anchors as kernels

    return kernels.anchor_contrast_backward(*args)


def _reference(anchors, queries, positive, image_ids, k, scale):
    losses, lse, values, indices = reference.anchor_contrast_terms(anchors, queries, positive, image_ids, k, scale)
    return losses, lse, values, indices.to(index_type(anchors))


dispatch.register("anchor_contrast", cpp=_cpp, triton=_triton, reference=_reference)
dispatch.register(
    "anchor_contrast_backward",
    cpp=_cpp_backward,
    triton=_triton_backward,
    reference=reference.anchor_contrast_backward,
)

_backward_op = define(
    "anchor_contrast_backward(Tensor grad_losses, Tensor anchors, Tensor queries, Tensor? positive, Tensor? image_ids,"
    " Tensor lse, Tensor values, Tensor indices, float scale, str? backend=None) -> (Tensor, Tensor)",
    _backward,
    _backward_fake,
)


def _setup_context(ctx, inputs, output):
    anchors, queries, positive, image_ids, _, ctx.scale, ctx.backend = inputs
    ctx.save_for_backward(anchors, queries, positive, image_ids, *output[1:])
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)


def _gradient(ctx, grad, *_):
    nothing = (None,) * 5
    if grad is None:
        return None, None, *nothing
    anchors, queries, positive, image_ids, lse, values, indices = ctx.saved_tensors
    if torch.is_grad_enabled():  # a second derivative is wanted: through the reference
        images = torch.arange(anchors.shape[0], device=anchors.device) if positive is None else positive.long()
        terms = reference.anchor_contrast_terms(anchors, queries, images, image_ids, indices.shape[-1], ctx.scale)
        wanted = [each for each in (anchors, queries) if each.requires_grad]
        found = iter(torch.autograd.grad(terms[0], wanted, grad.to(terms[0].dtype), create_graph=True))
        grads = [next(found) if each.requires_grad else None for each in (anchors, queries)]
    else:
        grads = _backward_op(grad, anchors, queries, positive, image_ids, lse, values, indices, ctx.scale, ctx.backend)
    return *grads, *nothing


_anchor_contrast_op = differentiable(
    define(
        "anchor_contrast(Tensor anchors, Tensor queries, Tensor? positive, Tensor? image_ids, int k, float scale,"
        " str? backend=None) -> (Tensor, Tensor, Tensor, Tensor)",
        _anchor_contrast,
        _anchor_contrast_fake,
    ),
    _setup_context,
    _gradient,
    tensors=2,
)
