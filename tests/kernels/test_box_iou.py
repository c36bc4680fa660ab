"""box_iou: the reference's values bit for bit, and its gradient."""

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cpgr_kernels import box_iou, reference

FUZZ = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
NAN, INF = float("nan"), float("inf")
coordinates = st.one_of(st.floats(-100, 100, width=32), st.sampled_from([0.0, 1.0, 2.0, 1e-30, 1e30, NAN, INF, -INF]))
box_lists = st.lists(st.tuples(*[coordinates] * 4), max_size=20)


def same(actual, expected):
    """Equal bit for bit, but for the sign of zero; NaN equals NaN."""
    torch.testing.assert_close(actual, expected, rtol=0, atol=0, equal_nan=True)


@FUZZ
@given(first=box_lists, second=box_lists, dtype=st.sampled_from([torch.float32, torch.float64]))
def test_fuzz(isa, first, second, dtype):
    boxes1 = torch.tensor(first, dtype=dtype).reshape(-1, 4)
    boxes2 = torch.tensor(second, dtype=dtype).reshape(-1, 4)
    same(box_iou(boxes1, boxes2, backend="cpp"), reference.box_iou(boxes1, boxes2))
    pairs = min(len(first), len(second))
    one_to_one = box_iou(boxes1[:pairs], boxes2[:pairs], pairwise=False, backend="cpp")
    same(one_to_one, reference.box_iou(boxes1[:pairs], boxes2[:pairs], pairwise=False))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (3, 7), (16, 16), (17, 33), (130, 257)])
def test_sizes_around_registers(isa, make_boxes, rows, columns, dtype):
    boxes1, boxes2 = make_boxes(rows, seed=1, dtype=dtype), make_boxes(columns, seed=2, dtype=dtype)
    same(box_iou(boxes1, boxes2, backend="cpp"), reference.box_iou(boxes1, boxes2))


def test_known_values():
    box = torch.tensor([[0.0, 0.0, 2.0, 2.0]])
    others = torch.tensor([[0.0, 0.0, 2.0, 2.0], [1.0, 1.0, 3.0, 3.0], [2.0, 0.0, 4.0, 2.0], [5.0, 5.0, 6.0, 6.0]])
    torch.testing.assert_close(box_iou(box, others), torch.tensor([[1.0, 1 / 7, 0.0, 0.0]]))


def test_degenerate_boxes():
    point = torch.tensor([[1.0, 1.0, 1.0, 1.0]])
    box = torch.tensor([[0.0, 0.0, 2.0, 2.0]])
    for backend in ("cpp", "reference"):
        assert box_iou(point, point, backend=backend).isnan().all()
        assert box_iou(point, box, backend=backend).item() == 0
        assert box_iou(box.flip(-1), box, backend=backend).item() == 0
        assert box_iou(torch.full((1, 4), NAN), box, backend=backend).isnan().all()


def test_leading_dimensions_broadcast(isa, make_boxes):
    boxes1, boxes2 = make_boxes(2, 3, 5, seed=1), make_boxes(2, 3, 6, seed=2)
    same(box_iou(boxes1, boxes2, backend="cpp"), reference.box_iou(boxes1, boxes2))
    same(box_iou(boxes1, boxes2[0, 0], backend="cpp"), reference.box_iou(boxes1, boxes2[0, 0]))
    same(box_iou(boxes1[:, :1], boxes2, backend="cpp"), reference.box_iou(boxes1[:, :1], boxes2))
    single = boxes2[0, 0, 0]
    same(box_iou(boxes1, single, pairwise=False), reference.box_iou(boxes1, single, pairwise=False))
    assert box_iou(single, single, pairwise=False).shape == ()


@pytest.mark.parametrize("shapes", [((0, 4), (3, 4)), ((3, 4), (0, 4)), ((0, 2, 4), (0, 3, 4)), ((2, 0, 4), (2, 0, 4))])
def test_empty(shapes):
    boxes1, boxes2 = (torch.zeros(shape, requires_grad=True) for shape in shapes)
    for backend in ("cpp", "reference"):
        iou = box_iou(boxes1, boxes2, backend=backend)
        assert iou.shape == shapes[0][:-1] + shapes[1][-2:-1]
        iou.sum().backward()
        assert not boxes1.grad.any() and not boxes2.grad.any()


def test_types(make_boxes):
    boxes = make_boxes(9)
    for dtype in (torch.float16, torch.bfloat16, torch.int32, torch.int64, torch.uint8):
        few = boxes.to(dtype)
        iou = box_iou(few, few)
        assert iou.dtype == torch.float32
        same(iou, reference.box_iou(few.float(), few.float()))
    assert box_iou(boxes.double(), boxes).dtype == torch.float64


def test_memory_layouts(make_boxes):
    boxes = make_boxes(20)
    expected = box_iou(boxes, boxes)
    wide = torch.zeros(20, 9)
    wide[:, 3:7] = boxes
    same(box_iou(wide[:, 3:7], boxes.t().contiguous().t()), expected)


def test_numpy(make_boxes):
    boxes = make_boxes(20, dtype=torch.float64)
    iou = box_iou(boxes.numpy(), boxes.numpy())
    assert isinstance(iou, np.ndarray) and iou.dtype == np.float64
    same(torch.from_numpy(iou), box_iou(boxes, boxes))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("pairwise", [True, False])
@pytest.mark.parametrize("backend", ["cpp", "reference"])
def test_out(isa, make_boxes, dtype, pairwise, backend):
    boxes1, boxes2 = make_boxes(2, 9, seed=1, dtype=dtype), make_boxes(9, seed=2, dtype=dtype)
    expected = box_iou(boxes1, boxes2, pairwise=pairwise)
    out = torch.full(expected.shape, NAN, dtype=dtype)
    version = out._version
    assert box_iou(boxes1, boxes2, pairwise=pairwise, out=out, backend=backend) is out
    same(out, expected)
    assert out._version > version
    array = np.full(expected.shape, NAN, out.numpy().dtype)
    assert box_iou(boxes1.numpy(), boxes2.numpy(), pairwise=pairwise, out=array, backend=backend) is array
    same(torch.from_numpy(array), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("offset", [0, 1, 5])
def test_large_results_past_the_caches(isa, make_boxes, dtype, offset):
    # 16 MB and more into memory that exists are streamed, whole cache lines at a time; rows here start anywhere in one.
    boxes1, boxes2 = make_boxes(1501, seed=1, dtype=dtype), make_boxes(2801, seed=2, dtype=dtype)
    memory = torch.full((offset + 1501 * 2801 + 64,), -7.0, dtype=dtype)
    out = memory[offset:-64].view(1501, 2801)
    same(box_iou(boxes1, boxes2, out=out, backend="cpp"), reference.box_iou(boxes1, boxes2))
    assert (memory[:offset] == -7).all() and (memory[-64:] == -7).all()


def test_a_bad_out_is_named(make_boxes):
    boxes = make_boxes(6)
    for out, text in (
        (torch.empty(6, 5), r"out must be \[6, 6\], torch.float32, contiguous, on cpu; got \[6, 5\]"),
        (torch.empty(6, 6, dtype=torch.float64), "got.*torch.float64"),
        (torch.empty(6, 6, dtype=torch.float16), "got.*torch.float16"),
        (torch.empty(6, 12)[:, ::2], r"strides \[12, 2\]"),
        (torch.empty(6, 6, device="meta"), "on meta"),
    ):
        with pytest.raises(ValueError, match=text):
            box_iou(boxes, boxes, out=out)
        with pytest.raises(ValueError, match=text):
            torch.ops.cpgr_kernels.box_iou_out(boxes, boxes, True, out)
    memory = torch.zeros(36)
    with pytest.raises(ValueError, match="out shares memory with the boxes"):
        box_iou(memory[12:].view(6, 4), boxes, out=memory.view(6, 6))
    with pytest.raises(TypeError, match="out must be a torch.Tensor"):
        box_iou(boxes, boxes, out=np.empty((6, 6), np.float32))
    with pytest.raises(TypeError, match="out must be a numpy.ndarray"):
        box_iou(boxes.numpy(), boxes.numpy(), out=torch.empty(6, 6))
    frozen = np.empty((6, 6), np.float32)
    frozen.flags.writeable = False
    for out in (frozen, np.empty((6, 6), np.float32, order="F"), np.empty((6, 6), ">f4")):
        with pytest.raises(ValueError, match="writeable, C-contiguous and of native byte order"):
            box_iou(boxes.numpy(), boxes.numpy(), out=out)


def test_out_has_no_gradient(make_boxes):
    boxes, out = make_boxes(6), torch.empty(6, 6)
    wanting = boxes.clone().requires_grad_()
    with pytest.raises(RuntimeError, match="out= has no gradient"):
        box_iou(wanting, boxes, out=out)
    with torch.no_grad():
        same(box_iou(wanting, boxes, out=out), box_iou(boxes, boxes))


def test_out_compiles(make_boxes):
    torch._dynamo.reset()
    boxes, out = make_boxes(6), torch.empty(6, 6)
    compiled = torch.compile(lambda a, b, to: box_iou(a, b, out=to) + 1, backend="aot_eager", fullgraph=True)
    same(compiled(boxes, boxes, out), box_iou(boxes, boxes) + 1)
    same(out, box_iou(boxes, boxes))


def test_threads_give_the_same(make_boxes):
    boxes1, boxes2 = make_boxes(3, 300, seed=1), make_boxes(3, 400, seed=2)
    before = torch.get_num_threads()
    expected = box_iou(boxes1, boxes2)
    torch.set_num_threads(2)
    try:
        same(box_iou(boxes1, boxes2), expected)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("backend", ["cpp", "reference"])
@pytest.mark.parametrize("pairwise", [True, False])
def test_gradient_in_double(isa, make_boxes, backend, pairwise):
    boxes1 = make_boxes(2, 3, seed=1, dtype=torch.float64).requires_grad_()
    boxes2 = make_boxes(2, 5 if pairwise else 3, seed=2, dtype=torch.float64).requires_grad_()

    def iou(a, b):
        return box_iou(a, b, pairwise=pairwise, backend=backend)

    assert torch.autograd.gradcheck(iou, (boxes1, boxes2))
    assert torch.autograd.gradgradcheck(iou, (boxes1, boxes2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("pairwise", [True, False])
def test_gradient_of_ties_is_autograds(isa, make_boxes, dtype, pairwise):
    # On a coarse grid edges tie and touch, where a difference quotient says nothing.
    boxes1, boxes2 = (make_boxes(64, seed=seed, dtype=dtype, grid=10.0).requires_grad_() for seed in (1, 2))
    expected = reference.box_iou(boxes1, boxes2, pairwise)
    weights = torch.rand(expected.shape, generator=torch.Generator().manual_seed(5), dtype=dtype)
    wanted = torch.autograd.grad(expected, (boxes1, boxes2), weights)
    for backend in ("cpp", "reference"):
        iou = box_iou(boxes1, boxes2, pairwise=pairwise, backend=backend)
        for actual, truth in zip(torch.autograd.grad(iou, (boxes1, boxes2), weights), wanted):
            torch.testing.assert_close(actual, truth, rtol=1e-4, atol=1e-6, equal_nan=True)


def test_gradient_reaches_half_precision_and_broadcast_boxes(make_boxes):
    boxes1 = make_boxes(4, 3).half().requires_grad_()
    boxes2 = make_boxes(5, seed=2).half().requires_grad_()
    wanted = torch.autograd.grad(reference.box_iou(boxes1, boxes2).sum(), (boxes1, boxes2))
    box_iou(boxes1, boxes2).sum().backward()
    assert boxes1.grad.dtype == torch.float16 and boxes2.grad.shape == (5, 4)
    torch.testing.assert_close(boxes1.grad, wanted[0], rtol=1e-2, atol=1e-4)
    torch.testing.assert_close(boxes2.grad, wanted[1], rtol=1e-2, atol=1e-4)


@pytest.mark.parametrize(
    ("boxes1", "boxes2", "pairwise", "error", "text"),
    [
        (torch.zeros(3, 5), torch.zeros(3, 4), True, ValueError, r"boxes1 must be \[..., 4\].*\[3, 5\]"),
        (torch.zeros(3, 4), torch.zeros(()), True, ValueError, "boxes2 must be"),
        (torch.zeros(4), torch.zeros(3, 4), True, ValueError, r"\[..., N, 4\].*pairwise=True"),
        (torch.zeros(2, 3, 4), torch.zeros(3, 3, 4), True, ValueError, "leading dimensions"),
        (torch.zeros(3, 4), torch.zeros(5, 4), False, ValueError, "leading dimensions"),
        (torch.zeros(3, 4, dtype=torch.complex64), torch.zeros(3, 4), True, TypeError, "boxes1 must be.*complex64"),
        (torch.zeros(3, 4), torch.zeros(3, 4, device="meta"), True, ValueError, "boxes2 is on meta"),
        (torch.zeros(3, 4), [[0, 0, 1, 1]], True, TypeError, "boxes1: Tensor, boxes2: list"),
    ],
)
def test_bad_arguments_are_named(boxes1, boxes2, pairwise, error, text):
    with pytest.raises(error, match=text):
        box_iou(boxes1, boxes2, pairwise=pairwise)


def test_the_registered_ops_check_too():
    boxes = torch.zeros(3, 4)
    with pytest.raises(ValueError, match="boxes1 and boxes2 must be"):
        torch.ops.cpgr_kernels.box_iou(torch.zeros(2, 3, 4), torch.zeros(9, 3, 4), True)
    with pytest.raises(ValueError, match="grad must be"):
        torch.ops.cpgr_kernels.box_iou_backward(torch.zeros(3, 2), boxes, boxes, True)


@pytest.mark.parametrize("backend", [None, "reference"])
@pytest.mark.parametrize("pairwise", [True, False])
def test_opcheck(make_boxes, backend, pairwise):
    boxes1, boxes2 = make_boxes(6, seed=1).requires_grad_(), make_boxes(6, seed=2).requires_grad_()
    torch.library.opcheck(torch.ops.cpgr_kernels.box_iou.default, (boxes1, boxes2, pairwise, backend))
    grad = torch.rand(6, 6) if pairwise else torch.rand(6)
    arguments = (grad, boxes1.detach(), boxes2.detach(), pairwise, backend)
    torch.library.opcheck(torch.ops.cpgr_kernels.box_iou_backward.default, arguments)
    into = (boxes1.detach(), boxes2.detach(), pairwise, grad, backend)
    torch.library.opcheck(torch.ops.cpgr_kernels.box_iou_out.default, into)


def test_compile_without_recompiles(make_boxes):
    torch._dynamo.reset()
    compiled_graphs = 0

    def count(graph, example_inputs):
        nonlocal compiled_graphs
        compiled_graphs += 1
        return graph

    def loss(boxes1, boxes2):
        return (1 - box_iou(boxes1, boxes2)).sum()

    compiled = torch.compile(loss, backend=count, fullgraph=True, dynamic=True)
    for rows, columns in ((5, 7), (17, 3), (64, 99)):
        boxes1, boxes2 = make_boxes(rows, seed=1).requires_grad_(), make_boxes(columns, seed=2)
        (wanted,) = torch.autograd.grad(loss(boxes1, boxes2), boxes1)
        (actual,) = torch.autograd.grad(compiled(boxes1, boxes2), boxes1)
        same(actual, wanted)
    assert compiled_graphs == 1


def test_compiled_backward_runs_the_kernel(make_boxes):
    torch._dynamo.reset()
    boxes1, boxes2 = make_boxes(5, seed=1).requires_grad_(), make_boxes(7, seed=2)
    (wanted,) = torch.autograd.grad(box_iou(boxes1, boxes2).sum(), boxes1)
    compiled = torch.compile(lambda a, b: box_iou(a, b).sum(), backend="aot_eager", fullgraph=True)
    (actual,) = torch.autograd.grad(compiled(boxes1, boxes2), boxes1)
    same(actual, wanted)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("pairwise", [True, False])
def test_cuda(cuda, make_boxes, dtype, pairwise):
    columns = 300 if pairwise else 170
    here = [make_boxes(3, size, seed=size, dtype=dtype, grid=5.0).requires_grad_() for size in (170, columns)]
    there = [boxes.detach().to(cuda).requires_grad_() for boxes in here]
    expected, actual = box_iou(*here, pairwise=pairwise), box_iou(*there, pairwise=pairwise, backend="cuda")
    same(actual.cpu(), expected)
    weights = torch.rand(expected.shape, generator=torch.Generator().manual_seed(0), dtype=dtype)
    wanted = torch.autograd.grad(expected, here, weights)
    for gradient, truth in zip(torch.autograd.grad(actual, there, weights.to(cuda)), wanted):
        torch.testing.assert_close(gradient.cpu(), truth, rtol=1e-4, atol=1e-5)
