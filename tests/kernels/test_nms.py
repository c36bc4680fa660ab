"""nms and batched_nms: torchvision's indices on every instruction set."""

from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cpgr_kernels import batched_nms, nms, reference

NAN, INF = float("nan"), float("inf")
FUZZ = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

# Few distinct values make ties, containment and touching edges common.
coordinates = st.sampled_from([0.0, -0.0, 1.0, 2.0, 3.0, 7.5, 10.0, -4.0, 1e-30, 1e30, NAN, INF, -INF])
rows = st.lists(
    st.tuples(st.tuples(*[coordinates] * 4), st.sampled_from([0.1, 0.5, 0.9, -1.0, NAN, INF]), st.integers(-1, 2)),
    max_size=40,
)
thresholds = st.sampled_from([0.0, 0.1, 0.3, 0.5, 0.7, 1.0, -0.5, 2.0, NAN])


def torchvision_loop(boxes, scores, threshold):
    """torchvision's CPU kernel, statement by statement, on NumPy scalars of the boxes' type."""
    boxes = boxes.numpy()
    with np.errstate(all="ignore"):
        areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
        order = scores.sort(stable=True, descending=True).indices.tolist()
        fallen, keep = set(), []

        # std::max and std::min: the first argument unless the second is strictly beyond it.
        def larger(a, b):
            return b if a < b else a

        def smaller(a, b):
            return b if b < a else a

        for rank, i in enumerate(order):
            if i in fallen:
                continue
            keep.append(i)
            for j in order[rank + 1 :]:
                zero = boxes.dtype.type(0)
                width = larger(zero, smaller(boxes[i, 2], boxes[j, 2]) - larger(boxes[i, 0], boxes[j, 0]))
                height = larger(zero, smaller(boxes[i, 3], boxes[j, 3]) - larger(boxes[i, 1], boxes[j, 1]))
                inter = width * height
                if float(inter / (areas[i] + areas[j] - inter)) > threshold:
                    fallen.add(j)
    return torch.tensor(keep, dtype=torch.int64)


@FUZZ
@given(rows=rows, threshold=thresholds, dtype=st.sampled_from([torch.float32, torch.float64]))
def test_fuzz_against_torchvisions_loop(isa, rows, threshold, dtype):
    boxes = torch.tensor([row[0] for row in rows], dtype=dtype).reshape(-1, 4)
    scores = torch.tensor([row[1] for row in rows], dtype=dtype)
    expected = torchvision_loop(boxes, scores, threshold)
    assert nms(boxes, scores, threshold, backend="cpp").tolist() == expected.tolist()
    assert nms(boxes, scores, threshold, backend="reference").tolist() == expected.tolist()


@FUZZ
@given(rows=rows, threshold=thresholds)
def test_fuzz_batched(isa, rows, threshold):
    boxes = torch.tensor([row[0] for row in rows]).reshape(-1, 4)
    scores = torch.tensor([row[1] for row in rows])
    idxs = torch.tensor([row[2] for row in rows], dtype=torch.int64)
    expected = reference.batched_nms(boxes, scores, idxs, threshold)
    assert batched_nms(boxes, scores, idxs, threshold, backend="cpp").tolist() == expected.tolist()


def greedy(boxes, scores, threshold):
    """The definition on the matrix of all IoUs: for sizes at which the loops above take long."""
    order = scores.sort(stable=True, descending=True).indices
    falls = (reference.box_iou(boxes[order], boxes[order]).double() > threshold).numpy()
    stays = np.ones(len(order), dtype=bool)
    for i in range(len(order)):
        if stays[i]:
            stays[i + 1 :] &= ~falls[i, i + 1 :]
    return order[torch.from_numpy(stays)]


def random_scores(count, seed=0):
    return torch.rand(count, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("count", [1, 15, 16, 17, 63, 64, 65, 200, 400])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("grid", [None, 10.0])
def test_sizes_around_blocks_and_registers(isa, make_boxes, count, dtype, grid):
    boxes = make_boxes(count, seed=count, dtype=dtype, grid=grid)
    scores = random_scores(count, seed=count).to(dtype)
    for threshold in (0.1, 0.5):
        assert torch.equal(nms(boxes, scores, threshold, backend="cpp"), greedy(boxes, scores, threshold))


@cache
def layouts(dtype):
    """Boxes of which many stay, so that they are laid out by place: by name."""
    generator = torch.Generator().manual_seed(5)

    def rand(*shape):
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    count = 900
    corner, size = rand(count, 2) * 600, 5 + rand(count, 2) * 40
    tiny = 1e-21 if dtype is torch.float32 else 1e-150
    huge = 1e18 if dtype is torch.float32 else 1e150
    sides = {
        "spread": (corner, size),
        "of many sizes": (corner, size * torch.exp(4 * rand(count, 1) - 2)),
        "in a row": (corner * torch.tensor([1.0, 0.0]), size),
        "at one place": (corner * 0, 1 + rand(count, 2)),
        "far apart": (corner * 1e6, size),
        "far off": (corner + 1e6, size),  # coordinates that float32 rounds to a sixteenth
        "on both sides of zero": (corner - 300, size),
        "tiny": (corner * tiny, size * tiny),
        "huge": (corner * huge, size * huge),
    }
    boxes = {name: torch.cat([low, low + extent], 1) for name, (low, extent) in sides.items()}
    boxes["with an outlier"] = boxes["spread"].clone()
    boxes["with an outlier"][450] = torch.tensor([-1e9, -1e9, 1e9, 1e9])
    odd = boxes["with odd ones"] = boxes["spread"].clone()
    odd[10:30] = odd[10:30, [2, 3, 0, 1]]  # turned inside out, twice: a positive area
    odd[30:50] = odd[30:50, [2, 1, 0, 3]]
    odd[50:70, 2] = odd[50:70, 0]
    odd[70:80, 1], odd[80:90, 2], odd[90:99, 0] = NAN, INF, -INF
    return {name: values.to(dtype) for name, values in boxes.items()}


@cache
def expected_of_layout(name, dtype, threshold):
    boxes = layouts(dtype)[name]
    return greedy(boxes, random_scores(len(boxes)).to(dtype), threshold)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", layouts(torch.float32))
def test_many_boxes_that_stay(isa, name, dtype):
    boxes = layouts(dtype)[name]
    scores = random_scores(len(boxes)).to(dtype)
    for threshold in (0.0, 0.05, 0.5, 0.9):
        keep = nms(boxes, scores, threshold, backend="cpp")
        assert torch.equal(keep, expected_of_layout(name, dtype, threshold)), threshold


def test_touching_in_every_direction(isa):
    # Pairs whose IoU is just above and just below the threshold, with the other box on each side, larger and smaller.
    generator = torch.Generator().manual_seed(6)
    pairs = []
    for k in range(400):
        width, height = 10 + 20 * torch.rand(2, generator=generator).double()
        x, y = 100.0 * (k % 20), 100.0 * (k // 20)
        ratio = 0.5 + (1e-6 if k % 2 else -1e-6)
        shift = (1 - ratio) / (1 + ratio)  # two equal boxes that far apart, in lengths, have this IoU
        partner = {
            0: (x + shift * width, y, x + width + shift * width, y + height),
            1: (x - shift * width, y, x + width - shift * width, y + height),
            2: (x, y + shift * height, x + width, y + height + shift * height),
            3: (x, y - shift * height, x + width, y + height - shift * height),
            4: (x + width * (1 - ratio), y, x + width, y + height),  # inside, at the right edge
            5: (x - width * (1 / ratio - 1), y, x + width, y + height),  # round it, to the left
        }[k // 2 % 6]
        pairs += [(x, y, x + width, y + height), partner]
    boxes = torch.tensor(pairs, dtype=torch.float64)
    for seed in range(3):
        scores = random_scores(len(boxes), seed)
        expected = greedy(boxes, scores, 0.5)
        assert len(expected) == 600
        assert torch.equal(nms(boxes, scores, 0.5, backend="cpp"), expected)


@pytest.mark.parametrize("count", [2, 100, 300, 5000, 7000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_order_of_scores(count, dtype):
    # Boxes apart from each other come back in the order of their scores.
    boxes = torch.arange(count, dtype=torch.float64)[:, None] * 10 + torch.tensor([0.0, 0.0, 5.0, 5.0])
    uniform = random_scores(count, seed=count).to(dtype)
    near_one = 1 + torch.finfo(dtype).eps * (uniform * 50).floor()  # the same in all leading bits
    normal = torch.randn(count, generator=torch.Generator().manual_seed(1)).to(dtype)
    special = normal.clone()
    special[::7], special[1::7], special[2::7], special[3::7] = NAN, INF, -INF, -0.0
    special[4::7] = 0.0
    mixed = torch.where(normal > 0.5, near_one, normal * 1e30)
    for scores in (uniform, near_one, normal, special, mixed, near_one.flip(0), torch.ones(count, dtype=dtype)):
        expected = scores.sort(stable=True, descending=True).indices
        assert torch.equal(nms(boxes, scores, 0.5, backend="cpp"), expected)


def test_equal_scores_keep_their_order(isa):
    boxes = torch.arange(300.0)[:, None] * 10 + torch.tensor([0.0, 0.0, 5.0, 5.0])
    assert torch.equal(nms(boxes, torch.zeros(300), 0.5, backend="cpp"), torch.arange(300))


def test_threshold_is_compared_in_double(isa):
    # The IoU is float32(0.3), which is above 0.3.
    boxes = torch.tensor([[0.0, 0.0, 10.0, 1.0], [0.0, 0.0, 3.0, 1.0]])
    scores = torch.tensor([0.9, 0.8])
    for backend in ("cpp", "reference"):
        assert nms(boxes, scores, 0.3, backend=backend).tolist() == [0]
        assert nms(boxes, scores, 0.31, backend=backend).tolist() == [0, 1]


def test_half_precision_and_integers_are_computed_in_float32(make_boxes):
    boxes, scores = make_boxes(100), torch.rand(100, generator=torch.Generator().manual_seed(1))
    for dtype in (torch.float16, torch.bfloat16, torch.int32):
        few = boxes.to(dtype)
        expected = reference.nms(few.float(), scores, 0.4)
        assert torch.equal(nms(few, scores, 0.4), expected)
    assert torch.equal(nms(boxes, scores.half(), 0.4), reference.nms(boxes, scores.half(), 0.4))
    assert torch.equal(nms(boxes, scores.double(), 0.4), reference.nms(boxes, scores.double(), 0.4))
    assert torch.equal(nms(boxes.double(), scores, 0.4), reference.nms(boxes.double(), scores, 0.4))


def test_memory_layouts(make_boxes):
    boxes, scores = make_boxes(50), torch.rand(50, generator=torch.Generator().manual_seed(2))
    expected = nms(boxes, scores, 0.3)
    wide = torch.zeros(50, 9)
    wide[:, 2:6] = boxes
    assert torch.equal(nms(wide[:, 2:6], scores, 0.3), expected)
    assert torch.equal(nms(boxes.t().contiguous().t(), torch.stack([scores, scores], 1)[:, 1], 0.3), expected)
    assert torch.equal(nms(torch._neg_view(-boxes), scores, 0.3), expected)


def test_numpy(make_boxes):
    boxes, scores = make_boxes(50).double().numpy(), np.linspace(0, 1, 50)
    expected = nms(torch.from_numpy(boxes), torch.from_numpy(scores), 0.3)
    boxes.setflags(write=False)
    keep = nms(boxes, scores, 0.3)
    assert isinstance(keep, np.ndarray) and keep.dtype == np.int64
    assert keep.tolist() == expected.tolist()
    assert nms(boxes.astype(">f8"), scores, 0.3).tolist() == expected.tolist()
    reversed_keep = nms(boxes[::-1], scores[::-1], 0.3)
    assert (49 - reversed_keep).tolist() == expected.tolist()
    assert isinstance(batched_nms(boxes, scores, np.zeros(50, int), 0.3), np.ndarray)


def test_empty():
    for backend in ("cpp", "reference"):
        keep = nms(torch.zeros(0, 4), torch.zeros(0), 0.5, backend=backend)
        assert keep.shape == (0,) and keep.dtype == torch.int64
        keep = batched_nms(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64), 0.5, backend=backend)
        assert keep.shape == (0,) and keep.dtype == torch.int64


def test_batched_takes_any_integers(isa, make_boxes):
    boxes, scores = make_boxes(400), torch.rand(400, generator=torch.Generator().manual_seed(3))
    idxs = torch.randint(0, 7, (400,), generator=torch.Generator().manual_seed(4))
    idxs[idxs == 3] = 4  # a number that no box has
    expected = reference.batched_nms(boxes, scores, idxs, 0.3)
    for values in (idxs, idxs.to(torch.uint8), idxs * -(2**60), idxs - 3):
        assert torch.equal(batched_nms(boxes, scores, values, 0.3), expected)
    alone = batched_nms(boxes, scores, torch.zeros(400, dtype=torch.int32), 0.3)
    assert torch.equal(alone, nms(boxes, scores, 0.3))


@pytest.mark.parametrize(
    ("boxes", "scores", "error", "text"),
    [
        (torch.zeros(3, 5), torch.zeros(3), ValueError, r"boxes must be \[N, 4\].*\[3, 5\]"),
        (torch.zeros(4), torch.zeros(1), ValueError, r"boxes must be \[N, 4\]"),
        (torch.zeros(3, 4), torch.zeros(4), ValueError, r"scores must be \[N\].*N = 3.*\[4\]"),
        (torch.zeros(3, 4), torch.zeros(3, 1), ValueError, "scores must be"),
        (torch.zeros(3, 4, dtype=torch.bool), torch.zeros(3), TypeError, "boxes must be.*bool"),
        (torch.zeros(3, 4), torch.zeros(3, dtype=torch.complex64), TypeError, "scores must be.*complex"),
        (torch.zeros(3, 4).to_sparse(), torch.zeros(3), TypeError, "dense"),
        ([[0, 0, 1, 1]], [1.0], TypeError, "boxes: list, scores: list"),
        (torch.zeros(3, 4), np.zeros(3), TypeError, "all torch.Tensor or all numpy"),
        (torch.zeros(3, 4), torch.zeros(3, device="meta"), ValueError, "scores is on meta"),
    ],
)
def test_bad_arguments_are_named(boxes, scores, error, text):
    with pytest.raises(error, match=text):
        nms(boxes, scores, 0.5)


def test_bad_idxs_are_named():
    boxes, scores = torch.zeros(3, 4), torch.zeros(3)
    with pytest.raises(ValueError, match="idxs must be"):
        batched_nms(boxes, scores, torch.zeros(2, dtype=torch.int64), 0.5)
    with pytest.raises(TypeError, match="idxs must be integers"):
        batched_nms(boxes, scores, torch.zeros(3), 0.5)


def test_the_registered_op_checks_too():
    with pytest.raises(ValueError, match="scores must be"):
        torch.ops.cpgr_kernels.nms(torch.zeros(9, 4), torch.zeros(2), 0.5)


@pytest.mark.parametrize("backend", [None, "reference"])
def test_opcheck(make_boxes, backend):
    boxes, scores = make_boxes(20).requires_grad_(), torch.linspace(0, 1, 20)
    idxs = torch.arange(20) % 3
    torch.library.opcheck(torch.ops.cpgr_kernels.nms.default, (boxes, scores, 0.3, backend))
    torch.library.opcheck(torch.ops.cpgr_kernels.batched_nms.default, (boxes, scores, idxs, 0.3, backend))


def test_compile_without_recompiles(make_boxes):
    calls = 0

    def count(graph, example_inputs):
        nonlocal calls
        calls += 1
        return graph

    def kept(boxes, scores):
        return scores[nms(boxes, scores, 0.4)] * 2

    torch._dynamo.reset()
    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        compiled = torch.compile(kept, backend=count, fullgraph=True, dynamic=True)
        for size in (5, 17, 100):
            boxes, scores = make_boxes(size, seed=size), torch.linspace(0, 1, size)
            assert torch.equal(compiled(boxes, scores), kept(boxes, scores))
    assert calls == 1


@pytest.mark.gpu
@pytest.mark.parametrize("count", [0, 1, 63, 64, 65, 1000, 1024, 1025, 5000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_cuda(cuda, make_boxes, count, dtype):
    boxes = make_boxes(count, seed=count, dtype=dtype, grid=5.0)
    scores = torch.randint(0, 50, (count,), generator=torch.Generator().manual_seed(count)).to(dtype) / 50
    idxs = torch.arange(count) % 3
    keep = nms(boxes.to(cuda), scores.to(cuda), 0.4, backend="cuda")
    assert torch.equal(keep.cpu(), nms(boxes, scores, 0.4))
    keep = batched_nms(boxes.to(cuda), scores.to(cuda), idxs.to(cuda), 0.4, backend="cuda")
    assert torch.equal(keep.cpu(), batched_nms(boxes, scores, idxs, 0.4))
