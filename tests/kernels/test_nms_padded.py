"""nms_padded: the indices of nms and batched_nms, image by image, in a fixed size."""

from ctypes import c_double, c_int64, c_void_p
from importlib import import_module
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from cpgr_kernels import batched_nms, nms, nms_padded, reference

op = import_module("cpgr_kernels.nms")  # the name in the package is the function's
NAN, INF = float("nan"), float("inf")


def problem(batch, count, seed=0, dtype=torch.float32):
    """Boxes with edges and scores that tie, some of them odd, and classes."""
    generator = torch.Generator().manual_seed(seed)
    low = torch.rand(batch, count, 2, generator=generator) * 60
    size = torch.rand(batch, count, 2, generator=generator) * 30 + 1
    boxes = torch.cat([low, low + size], -1).round().to(dtype)
    scores = (torch.rand(batch, count, generator=generator) * 40).round().to(dtype) / 40
    if count > 8:
        boxes[0, 3, 1], boxes[-1, 4, 2] = NAN, INF
        boxes[:, 5] = boxes[:, 5][:, [2, 1, 0, 3]]
        scores[:, 6], scores[:, 7] = NAN, -INF
    return boxes, scores, torch.randint(-1, 2, (batch, count), generator=generator)


def one_by_one(boxes, scores, threshold, max_output, idxs, counts, score_threshold):
    """What is promised, by `nms` and `batched_nms` of the real boxes of each image."""
    indices = torch.full((len(boxes), max_output), -1)
    for b in range(len(boxes)):
        count = boxes.shape[1] if counts is None else min(max(int(counts[b]), 0), boxes.shape[1])
        members = torch.arange(count)
        if score_threshold is not None:
            members = members[scores[b, :count] > score_threshold]
        if idxs is None:
            keep = nms(boxes[b][members], scores[b][members], threshold)
        else:
            keep = batched_nms(boxes[b][members], scores[b][members], idxs[b][members], threshold)
        keep = members[keep][:max_output]
        indices[b, : len(keep)] = keep
    return indices


def settings(count, idxs):
    """max_output, idxs, counts and score_threshold, none and some and all of them."""
    counts = torch.tensor([count // 2, -1, count + 9])
    return [
        (count, None, None, None),
        (count + 3, idxs, None, None),
        (count, None, counts, None),
        (5, idxs, None, 0.3),
        (7, idxs, counts, 0.5),
        (0, None, None, None),
    ]


def assert_same(padded, boxes, scores, threshold, options):
    indices, counts = padded
    expected = one_by_one(boxes, scores, threshold, *options)
    assert indices.dtype == counts.dtype == torch.int64
    assert torch.equal(indices, expected)
    assert torch.equal(counts, (expected >= 0).sum(1))


@pytest.mark.parametrize("count", [0, 1, 17, 64, 130])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_indices_of_nms(isa, count, dtype):
    boxes, scores, idxs = problem(3, count, seed=count, dtype=dtype)
    for options in settings(count, idxs):
        max_output, idxs, counts, score_threshold = options
        named = {"max_output": max_output, "idxs": idxs, "counts": counts, "score_threshold": score_threshold}
        assert_same(nms_padded(boxes, scores, 0.4, backend="cpp", **named), boxes, scores, 0.4, options)
        assert_same(nms_padded(boxes, scores, 0.4, backend="reference", **named), boxes, scores, 0.4, options)


def test_max_output_is_as_many_as_there_are_boxes_by_default():
    boxes, scores, _ = problem(2, 30)
    padded = nms_padded(boxes, scores, 0.4)
    assert padded.indices.shape == (2, 30) and padded.counts.shape == (2,)
    assert_same(padded, boxes, scores, 0.4, (30, None, None, None))


def test_the_best_are_kept_where_many_are_laid_out_by_place():
    generator = torch.Generator().manual_seed(3)
    low = torch.rand(2, 900, 2, generator=generator) * 900
    boxes = torch.cat([low, low + 5 + 40 * torch.rand(2, 900, 2, generator=generator)], -1)
    scores = torch.rand(2, 900, generator=generator)
    for max_output in (10, 100, 600, 900):
        options = (max_output, None, None, None)
        assert_same(nms_padded(boxes, scores, 0.5, max_output=max_output), boxes, scores, 0.5, options)


def test_threads_give_the_same():
    boxes, scores, idxs = problem(9, 50)
    expected = nms_padded(boxes, scores, 0.4, idxs=idxs)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        got = nms_padded(boxes, scores, 0.4, idxs=idxs)
    finally:
        torch.set_num_threads(before)
    assert all(map(torch.equal, got, expected))


def test_types_and_memory_layouts():
    boxes, scores, idxs = problem(2, 40)
    boxes, scores = boxes.nan_to_num(posinf=99), scores.nan_to_num(neginf=0)
    expected = nms_padded(boxes, scores, 0.4, idxs=idxs, counts=torch.tensor([40, 20]))
    counts = torch.tensor([40, 0, 20, 0], dtype=torch.int32)[::2]
    strided = torch.stack([boxes, boxes], 2)[:, :, 1]
    got = nms_padded(strided, scores.t().contiguous().t(), 0.4, idxs=idxs.to(torch.int8), counts=counts)
    assert all(map(torch.equal, got, expected))
    # Whole numbers are exact in half precision.
    assert torch.equal(nms_padded(boxes.half(), scores, 0.4, idxs=idxs).indices[0], expected.indices[0])
    assert torch.equal(nms_padded(boxes.int(), scores.double(), 0.4, idxs=idxs).indices[0], expected.indices[0])


def test_scores_are_compared_with_their_threshold_in_their_own_type():
    boxes = torch.tensor([[[0.0, 0.0, 1.0, 1.0]]])
    scores = torch.tensor([[0.1]])
    for backend in ("cpp", "reference"):
        assert nms_padded(boxes, scores, 0.5, score_threshold=0.1, backend=backend).counts.item() == 0
        assert nms_padded(boxes, scores.double(), 0.5, score_threshold=0.1, backend=backend).counts.item() == 1
        assert nms_padded(boxes, scores * NAN, 0.5, score_threshold=-INF, backend=backend).counts.item() == 0
        assert nms_padded(boxes, scores * NAN, 0.5, backend=backend).counts.item() == 1


def test_numpy():
    boxes, scores, idxs = problem(2, 40)
    expected = nms_padded(boxes, scores, 0.4, idxs=idxs, max_output=9)
    got = nms_padded(boxes.numpy(), scores.numpy(), 0.4, idxs=idxs.numpy(), max_output=9)
    assert all(isinstance(part, np.ndarray) and part.dtype == np.int64 for part in got)
    assert got.indices.tolist() == expected.indices.tolist() and got.counts.tolist() == expected.counts.tolist()


@pytest.mark.parametrize("backend", ["cpp", "reference"])
def test_empty(backend):
    padded = nms_padded(torch.zeros(0, 5, 4), torch.zeros(0, 5), 0.5, backend=backend)
    assert padded.indices.shape == (0, 5) and padded.counts.shape == (0,)
    padded = nms_padded(torch.zeros(2, 0, 4), torch.zeros(2, 0), 0.5, max_output=3, backend=backend)
    assert padded.indices.tolist() == [[-1] * 3] * 2 and padded.counts.tolist() == [0, 0]


@pytest.mark.parametrize(
    ("changed", "error", "text"),
    [
        ({"boxes": torch.zeros(2, 3, 5)}, ValueError, r"boxes must be \[B, N, 4\]|boxes must be \[\.\.\., 4\]"),
        ({"boxes": torch.zeros(3, 4)}, ValueError, r"\[3, 4\]"),
        ({"scores": torch.zeros(2, 4)}, ValueError, r"scores must be \[B, N\], here \[2, 3\], got \[2, 4\]"),
        ({"scores": torch.zeros(2, 3, dtype=torch.bool)}, TypeError, "scores must be.*bool"),
        ({"idxs": torch.zeros(2, 2, dtype=torch.int64)}, ValueError, r"idxs must be \[B, N\]"),
        ({"idxs": torch.zeros(2, 3)}, TypeError, "idxs must be integers, got torch.float32"),
        ({"counts": torch.zeros(3, dtype=torch.int64)}, ValueError, r"counts must be \[B\], here \[2\], got \[3\]"),
        ({"counts": torch.zeros(2)}, TypeError, "counts must be integers"),
        ({"max_output": -1}, ValueError, "max_output must not be negative, got -1"),
        ({"counts": torch.zeros(2, dtype=torch.int64, device="meta")}, ValueError, "counts is on meta"),
        ({"scores": np.zeros((2, 3))}, TypeError, "all torch.Tensor or all numpy"),
    ],
)
def test_bad_arguments_are_named(changed, error, text):
    arguments = {"boxes": torch.zeros(2, 3, 4), "scores": torch.zeros(2, 3), "iou_threshold": 0.5} | changed
    with pytest.raises(error, match=f"nms_padded: .*({text})"):
        nms_padded(**arguments)


def test_the_registered_op_checks_too():
    with pytest.raises(ValueError, match="scores must be"):
        torch.ops.cpgr_kernels.nms_padded(torch.zeros(9, 5, 4), torch.zeros(9, 2), 0.5, 5)
    with pytest.raises(ValueError, match="counts must be"):
        torch.ops.cpgr_kernels.nms_padded(torch.zeros(9, 5, 4), torch.zeros(9, 5), 0.5, 5, None, torch.zeros(1).int())


@pytest.mark.parametrize("backend", [None, "reference"])
def test_opcheck(backend):
    boxes, scores, idxs = problem(2, 12)
    registered = torch.ops.cpgr_kernels.nms_padded.default
    torch.library.opcheck(registered, (boxes, scores, 0.3, 5, idxs, torch.tensor([3, 12]), 0.2, backend))
    torch.library.opcheck(registered, (boxes, scores, 0.3, 12, None, None, None, backend))


def test_one_graph_for_all_sizes():
    graphs = 0

    def count(graph, example_inputs):
        nonlocal graphs
        graphs += 1
        return graph

    def best(boxes, scores):
        indices, counts = nms_padded(boxes, scores, 0.4, max_output=8)
        return scores.gather(1, indices.clamp(min=0)) * (indices >= 0), counts

    torch._dynamo.reset()
    compiled = torch.compile(best, backend=count, fullgraph=True, dynamic=True)
    for batch, size in ((2, 9), (3, 20), (4, 33)):
        boxes, scores, _ = problem(batch, size)
        scores = scores.nan_to_num(neginf=0)
        assert all(map(torch.equal, compiled(boxes, scores), best(boxes, scores)))
    assert graphs == 1


EXPORTS = """
using namespace cpgr::cuda;
#define IMAGES(T, boxes) {static_cast<const T*>(boxes), idxs, batch, count, iou_threshold, most, indices, kept}
#define SHARED const int64_t* idxs, int64_t batch, int64_t count, double iou_threshold, int64_t most, \\
               int64_t* indices, int64_t* kept
extern "C" void small(const void* boxes, SHARED, const float* scores, const int64_t* counts, int64_t has_least,
                      double least) {
    nms_small(IMAGES(float, boxes), scores, counts, has_least ? &least : nullptr, {0, 0});
}
extern "C" void large(int64_t wide, const void* boxes, SHARED, const int64_t* order, const int64_t* real,
                      uint64_t* scratch, int64_t at_once) {
    if (wide)
        nms_large<double>(IMAGES(double, boxes), order, real, scratch, at_once, {0, 0});
    else
        nms_large<float>(IMAGES(float, boxes), order, real, scratch, at_once, {0, 0});
}
"""


@pytest.fixture(scope="module")
def on_cpu(cuda_on_cpu):
    """The functions of `_cuda` that nms_padded calls, run on the CPU thread by thread."""
    library = cuda_on_cpu("nms", EXPORTS)
    shared = [c_void_p, c_void_p, c_int64, c_int64, c_double, c_int64, c_void_p, c_void_p]
    library.small.argtypes = [*shared, c_void_p, c_void_p, c_int64, c_double]
    library.large.argtypes = [c_int64, *shared, c_void_p, c_void_p, c_void_p, c_int64]
    return SimpleNamespace(
        nms_small_boxes=1024,
        nms_small=library.small,
        nms_large=library.large,
        nms_words=lambda count: (count + 1) * -(-count // 64),
    )


ONE_BLOCK, ANY_SIZE = "one block an image", "any size"


@pytest.mark.parametrize(
    ("way", "count", "threshold", "dtype"),
    [
        (ONE_BLOCK, 0, 0.4, torch.float32),
        (ONE_BLOCK, 17, 0.4, torch.float32),
        (ONE_BLOCK, 65, 0.0, torch.float32),
        (ONE_BLOCK, 65, -0.5, torch.float32),
        (ONE_BLOCK, 200, 0.4, torch.float32),
        (ANY_SIZE, 0, 0.4, torch.float32),
        (ANY_SIZE, 65, 0.0, torch.float32),
        (ANY_SIZE, 130, 0.4, torch.float32),
        (ANY_SIZE, 130, 0.4, torch.float64),
    ],
)
def test_the_source_of_the_cuda_kernels(on_cpu, monkeypatch, way, count, threshold, dtype):
    boxes, scores, idxs = problem(3, count, seed=count, dtype=dtype)
    monkeypatch.setattr(op, "_SCRATCH_WORDS", 2 * on_cpu.nms_words(count))  # two images, then one
    if way == ANY_SIZE:
        monkeypatch.setattr(on_cpu, "nms_small_boxes", -1)
    for options in settings(count, idxs):
        max_output, idxs, counts, score_threshold = options
        padded = op._launch_padded(on_cpu, (), boxes, scores, threshold, max_output, idxs, counts, score_threshold)
        assert_same(padded, boxes, scores, threshold, options)


def test_the_source_of_the_walk_over_many_words(on_cpu, monkeypatch):
    # More boxes than a thread has loads under way, in rows of several words, few of which fall.
    generator = torch.Generator().manual_seed(8)
    low = torch.rand(1, 700, 2, generator=generator) * 200
    boxes = torch.cat([low, low + 5 + 10 * torch.rand(1, 700, 2, generator=generator)], -1)
    scores = torch.rand(1, 700, generator=generator)
    monkeypatch.setattr(on_cpu, "nms_small_boxes", -1)
    for max_output in (700, 100):
        padded = op._launch_padded(on_cpu, (), boxes, scores, 0.3, max_output, None, None, None)
        assert_same(padded, boxes, scores, 0.3, (max_output, None, None, None))


@pytest.mark.gpu
@pytest.mark.parametrize("count", [0, 1, 64, 507, 1024, 1500])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_cuda(cuda, count, dtype):
    boxes, scores, idxs = problem(3, count, seed=count, dtype=dtype)
    for options in settings(count, idxs):
        on_gpu = [value.to(cuda) if isinstance(value, torch.Tensor) else value for value in options]
        named = dict(zip(("max_output", "idxs", "counts", "score_threshold"), on_gpu, strict=True))
        indices, counts = nms_padded(boxes.to(cuda), scores.to(cuda), 0.4, backend="cuda", **named)
        assert_same((indices.cpu(), counts.cpu()), boxes, scores, 0.4, options)


@pytest.mark.gpu
@pytest.mark.parametrize("count", [507, 1500])
def test_cuda_graph(cuda, count):
    boxes, scores, idxs = (value.to(cuda) for value in problem(3, count, seed=1))
    others = [value.to(cuda) for value in problem(3, count, seed=2)]
    nms_padded(boxes, scores, 0.4, idxs=idxs, score_threshold=0.2)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        padded = nms_padded(boxes, scores, 0.4, idxs=idxs, score_threshold=0.2)
    for static, fresh in zip((boxes, scores, idxs), others, strict=True):
        static.copy_(fresh)
    graph.replay()
    assert all(map(torch.equal, padded, nms_padded(*others[:2], 0.4, idxs=others[2], score_threshold=0.2)))


def test_the_reference_keeps_double():
    boxes, scores, _ = problem(1, 30, dtype=torch.float64)
    boxes[0, 1] = boxes[0, 0] * (1 + 1e-12)
    assert torch.equal(
        reference.nms_padded(boxes, scores, 1 - 1e-9, 30).indices, nms_padded(boxes, scores, 1 - 1e-9).indices
    )
