"""Non-maximum suppression. What it means is in `reference.nms`, `reference.batched_nms` and `reference.nms_padded`."""

import torch
from torch import Tensor

from . import dispatch, native, reference
from .arguments import check_boxes, check_device, check_length, check_numbers, from_numpy, plain
from .library import define
from .reference import PaddedNms


def nms(boxes, scores, iou_threshold: float, *, backend: str | None = None):
    """Keep the best boxes that do not overlap.

    Args:
        boxes: [N, 4], x1, y1, x2, y2, of any float or integer type; half precision is computed in float32.
        scores: [N]; equal scores keep their order of appearance, NaN comes first.
        iou_threshold: a box falls if its IoU with a better one that stays is above this.
        backend: "cpp", "cuda", "reference", or None for the best that can run.

    Returns:
        int64 indices of the boxes that stay, in descending order of scores; torchvision's exactly.

    Example:
        >>> boxes = torch.tensor([[0., 0., 10., 10.], [1., 1., 10., 10.], [20., 20., 30., 30.]])
        >>> nms(boxes, torch.tensor([0.6, 0.9, 0.3]), 0.5)
        tensor([1, 2])
    """
    if isinstance(boxes, Tensor) and isinstance(scores, Tensor):
        return _nms_op(boxes, scores, iou_threshold, backend)
    boxes, scores = from_numpy("nms", boxes=boxes, scores=scores)
    return _nms_op(boxes, scores, iou_threshold, backend).numpy()


def batched_nms(boxes, scores, idxs, iou_threshold: float, *, backend: str | None = None):
    """`nms` within each class: boxes of different `idxs` ([N], integers of any value) never make each other fall.

    The indices of all classes come together, in descending order of scores. See `nms` for the other arguments.
    """
    if isinstance(boxes, Tensor) and isinstance(scores, Tensor) and isinstance(idxs, Tensor):
        return _batched_nms_op(boxes, scores, idxs, iou_threshold, backend)
    boxes, scores, idxs = from_numpy("batched_nms", boxes=boxes, scores=scores, idxs=idxs)
    return _batched_nms_op(boxes, scores, idxs, iou_threshold, backend).numpy()


def nms_padded(
    boxes,
    scores,
    iou_threshold: float,
    *,
    max_output: int | None = None,
    idxs=None,
    counts=None,
    score_threshold: float | None = None,
    backend: str | None = None,
) -> PaddedNms:
    """`nms` of every image of a batch, with a result of fixed size.

    Nothing waits for a GPU: the call can be captured in a CUDA graph, and it compiles with static shapes.

    Args:
        boxes: [B, N, 4], x1, y1, x2, y2, of any float or integer type; half precision is computed in float32.
        scores: [B, N]; in each image equal scores keep their order of appearance, NaN comes first.
        iou_threshold: a box falls if its IoU with a better one of its image that stays is above this.
        max_output: how many indices an image has room for; the best are returned. Default: N.
        idxs: [B, N], integers: boxes of different idxs never make each other fall, as in `batched_nms`.
        counts: [B], integers: how many of an image's N boxes are real, the others are ignored. Default: all.
        score_threshold: only boxes with a score above this take part, as in `scores > score_threshold`.
        backend: "cpp", "cuda", "reference", or None for the best that can run.

    Returns:
        indices [B, max_output], int64, into the image's N boxes, best first, -1 where there are no more;
        counts [B], int64: how many indices an image has.

    Example:
        >>> boxes = torch.tensor([[[0., 0., 10., 10.], [1., 1., 10., 10.], [20., 20., 30., 30.]]])
        >>> nms_padded(boxes, torch.tensor([[0.6, 0.9, 0.3]]), 0.5)
        PaddedNms(indices=tensor([[ 1,  2, -1]]), counts=tensor([2]))
    """
    given = {"boxes": boxes, "scores": scores, "idxs": idxs, "counts": counts}
    given = {name: value for name, value in given.items() if value is not None}
    if all(isinstance(value, Tensor) for value in given.values()):
        check_boxes("nms_padded", "boxes", boxes, dims=3)
        if max_output is None:
            max_output = boxes.shape[1]
        return PaddedNms(
            *_nms_padded_op(boxes, scores, iou_threshold, max_output, idxs, counts, score_threshold, backend)
        )
    tensors = dict(zip(given, from_numpy("nms_padded", **given), strict=True))
    options = {"max_output": max_output, "score_threshold": score_threshold, "backend": backend}
    return PaddedNms(*(part.numpy() for part in nms_padded(iou_threshold=iou_threshold, **tensors, **options)))


def _check(op: str, boxes: Tensor, scores: Tensor, idxs: Tensor | None = None) -> None:
    check_boxes(op, "boxes", boxes, dims=2)
    check_length(op, "scores", scores, boxes.shape[0])
    check_numbers(op, "scores", scores)
    check_device(op, boxes=boxes, scores=scores)
    if idxs is not None:
        check_length(op, "idxs", idxs, boxes.shape[0])
        check_device(op, boxes=boxes, idxs=idxs)
        if idxs.is_floating_point() or idxs.is_complex():
            raise TypeError(f"{op}: idxs must be integers, got {idxs.dtype}")


def _nms(boxes: Tensor, scores: Tensor, iou_threshold: float, backend: str | None = None) -> Tensor:
    _check("nms", boxes, scores)
    run = dispatch.choose("nms", boxes.device.type, backend)
    return run(plain(boxes), plain(scores), iou_threshold)


def _batched_nms(
    boxes: Tensor, scores: Tensor, idxs: Tensor, iou_threshold: float, backend: str | None = None
) -> Tensor:
    _check("batched_nms", boxes, scores, idxs)
    run = dispatch.choose("batched_nms", boxes.device.type, backend)
    return run(plain(boxes), plain(scores), idxs.long().contiguous(), iou_threshold)


def _check_padded(boxes: Tensor, scores: Tensor, max_output: int, idxs: Tensor | None, counts: Tensor | None) -> None:
    op = "nms_padded"
    check_boxes(op, "boxes", boxes, dims=3)
    check_numbers(op, "scores", scores)
    check_device(op, boxes=boxes, scores=scores, idxs=idxs, counts=counts)
    for name, values, shape in (
        ("scores", scores, boxes.shape[:2]),
        ("idxs", idxs, boxes.shape[:2]),
        ("counts", counts, boxes.shape[:1]),
    ):
        if values is None:
            continue
        if values.shape != shape:
            wanted = "[B]" if name == "counts" else "[B, N]"
            raise ValueError(f"{op}: {name} must be {wanted}, here {list(shape)}, got {list(values.shape)}")
        if name != "scores" and (values.is_floating_point() or values.is_complex()):
            raise TypeError(f"{op}: {name} must be integers, got {values.dtype}")
    if max_output < 0:
        raise ValueError(f"{op}: max_output must not be negative, got {max_output}")


def _nms_padded(
    boxes: Tensor,
    scores: Tensor,
    iou_threshold: float,
    max_output: int,
    idxs: Tensor | None = None,
    counts: Tensor | None = None,
    score_threshold: float | None = None,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    _check_padded(boxes, scores, max_output, idxs, counts)
    run = dispatch.choose("nms_padded", boxes.device.type, backend)
    idxs = idxs if idxs is None else idxs.long().contiguous()
    counts = counts if counts is None else counts.long().contiguous()
    return run(plain(boxes), plain(scores), iou_threshold, max_output, idxs, counts, score_threshold)


def _nms_padded_fake(
    boxes, scores, iou_threshold, max_output, idxs=None, counts=None, score_threshold=None, backend=None
):
    _check_padded(boxes, scores, max_output, idxs, counts)
    batch = boxes.shape[0]
    return (
        boxes.new_empty((batch, max_output), dtype=torch.int64),
        boxes.new_empty((batch,), dtype=torch.int64),
    )


def _nms_fake(boxes, scores, iou_threshold, backend=None):
    _check("nms", boxes, scores)
    return boxes.new_empty(torch.library.get_ctx().new_dynamic_size(), dtype=torch.int64)


def _batched_nms_fake(boxes, scores, idxs, iou_threshold, backend=None):
    _check("batched_nms", boxes, scores, idxs)
    return boxes.new_empty(torch.library.get_ctx().new_dynamic_size(), dtype=torch.int64)


def _cpp(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    return _cpp_batched(boxes, scores, None, iou_threshold)


def _cpp_batched(boxes: Tensor, scores: Tensor, idxs: Tensor | None, iou_threshold: float) -> Tensor:
    module = native.cpu()[0]
    count = boxes.shape[0]
    keep = torch.empty(count, dtype=torch.int64)
    kept = module.nms(
        boxes.dtype is torch.float64,
        scores.dtype is torch.float64,
        boxes.data_ptr(),
        scores.data_ptr(),
        0 if idxs is None else idxs.data_ptr(),
        count,
        iou_threshold,
        keep.data_ptr(),
    )
    return keep.resize_(kept)  # shorter, in place: cheaper than a view, and none


def _address(values: Tensor | None) -> int:
    return 0 if values is None else values.data_ptr()


def _cpp_padded(boxes, scores, iou_threshold, max_output, idxs, counts, score_threshold):
    batch, count = scores.shape
    indices, kept = torch.empty((batch, max_output), dtype=torch.int64), torch.empty(batch, dtype=torch.int64)
    native.cpu()[0].nms_padded(
        boxes.dtype is torch.float64,
        scores.dtype is torch.float64,
        boxes.data_ptr(),
        scores.data_ptr(),
        _address(idxs),
        _address(counts),
        batch,
        count,
        iou_threshold,
        score_threshold is not None,
        score_threshold or 0.0,
        max_output,
        indices.data_ptr(),
        kept.data_ptr(),
        torch.get_num_threads(),
    )
    return indices, kept


def _cuda(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    return _cuda_batched(boxes, scores, None, iou_threshold)


def _cuda_batched(boxes: Tensor, scores: Tensor, idxs: Tensor | None, iou_threshold: float) -> Tensor:
    idxs = idxs if idxs is None else idxs[None]
    keep, kept = _cuda_padded(boxes[None], scores[None], iou_threshold, len(boxes), idxs, None, None)
    return keep[0].narrow(0, 0, int(kept))  # the number is waited for: it is the size of the result


def _cuda_padded(boxes, *args):
    with torch.cuda.device(boxes.device):
        return _launch_padded(native.cuda()[0], native.launch_place(boxes), boxes, *args)


# Scratch that images share: a bit for every pair of boxes of those that are worked on at once.
_SCRATCH_WORDS = 1 << 25


def _launch_padded(module, place, boxes, scores, iou_threshold, max_output, idxs, counts, score_threshold):
    batch, count = scores.shape
    indices = boxes.new_empty((batch, max_output), dtype=torch.int64)
    kept = boxes.new_empty(batch, dtype=torch.int64)
    images = _address(idxs), batch, count, iou_threshold, max_output, indices.data_ptr(), kept.data_ptr()
    if count <= module.nms_small_boxes and boxes.dtype is torch.float32 and scores.dtype is torch.float32:
        some = score_threshold is not None
        inputs = scores.data_ptr(), _address(counts), some, score_threshold if some else 0.0
        module.nms_small(boxes.data_ptr(), *images, *inputs, *place)
        return indices, kept

    order, real = _order(scores, counts, score_threshold)
    words = module.nms_words(count)
    at_once = max(1, min(batch, _SCRATCH_WORDS // max(words, 1)))
    scratch = boxes.new_empty(at_once * words, dtype=torch.int64)
    inputs = order.data_ptr(), _address(real), scratch.data_ptr(), at_once
    module.nms_large(boxes.dtype is torch.float64, boxes.data_ptr(), *images, *inputs, *place)
    return indices, kept


def _order(scores: Tensor, counts: Tensor | None, score_threshold: float | None) -> tuple[Tensor, Tensor | None]:
    """The order of each image's boxes, those that take part first, and how many these are (None: all)."""
    real = None
    if counts is not None:
        real = torch.arange(scores.shape[1], device=scores.device) < counts[:, None]
    if score_threshold is not None:
        above = scores > score_threshold
        real = above if real is None else real & above
    if real is not None:
        # Not before a real box of score -inf: that is one of smaller index, or it is not above any threshold.
        scores = scores.masked_fill(~real, -torch.inf)
        real = real.sum(1)
    return scores.sort(dim=1, stable=True, descending=True).indices, real


dispatch.register("nms", cpp=_cpp, cuda=_cuda, reference=reference.nms)
dispatch.register("batched_nms", cpp=_cpp_batched, cuda=_cuda_batched, reference=reference.batched_nms)
dispatch.register("nms_padded", cpp=_cpp_padded, cuda=_cuda_padded, reference=reference.nms_padded)

_nms_op = define("nms(Tensor boxes, Tensor scores, float iou_threshold, str? backend=None) -> Tensor", _nms, _nms_fake)
_batched_nms_op = define(
    "batched_nms(Tensor boxes, Tensor scores, Tensor idxs, float iou_threshold, str? backend=None) -> Tensor",
    _batched_nms,
    _batched_nms_fake,
)
_nms_padded_op = define(
    "nms_padded(Tensor boxes, Tensor scores, float iou_threshold, SymInt max_output, Tensor? idxs=None, "
    "Tensor? counts=None, float? score_threshold=None, str? backend=None) -> (Tensor, Tensor)",
    _nms_padded,
    _nms_padded_fake,
)
