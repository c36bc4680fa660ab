"""box_match: the maxima of the IoU matrix both ways, ties, NaN, and the gradient of the matched pairs alone."""

import math

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cpgr_kernels import BoxMatch, box_iou, box_match, reference

FUZZ = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
NAN, INF = float("nan"), float("inf")
coordinates = st.one_of(
    st.floats(-10, 10, width=32), st.sampled_from([0.0, 1.0, 2.0, 3.0, 1e-30, 1e30, NAN, INF, -INF])
)
box_lists = st.lists(st.tuples(*[coordinates] * 4), max_size=20)


def same(actual, expected):
    """The same values and indices, all four."""
    for name, one, other in zip(BoxMatch._fields, actual, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0, msg=lambda text, name=name: f"{name}: {text}")


def by_hand(boxes1, boxes2):
    """Loops over the IoU matrix: the first of the best that are no NaN."""

    def best(row):
        known = [(value, -k) for k, value in enumerate(row.tolist()) if not math.isnan(value)]
        value, place = max(known, default=(0.0, 1))
        return value, -place

    iou = reference.box_iou(boxes1, boxes2)
    rows, columns = [best(row) for row in iou], [best(column) for column in iou.mT]
    values = [torch.tensor([value for value, _ in side], dtype=iou.dtype) for side in (rows, columns)]
    places = [torch.tensor([place for _, place in side], dtype=torch.int64) for side in (rows, columns)]
    return BoxMatch(values[0], places[0], values[1], places[1])


@FUZZ
@given(first=box_lists, second=box_lists, dtype=st.sampled_from([torch.float32, torch.float64]))
def test_fuzz(isa, first, second, dtype):
    boxes1 = torch.tensor(first, dtype=dtype).reshape(-1, 4)
    boxes2 = torch.tensor(second, dtype=dtype).reshape(-1, 4)
    expected = by_hand(boxes1, boxes2)
    same(reference.box_match(boxes1, boxes2), expected)
    same(box_match(boxes1, boxes2, backend="cpp"), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (3, 7), (17, 33), (130, 257), (37, 1100)])
@pytest.mark.parametrize("grid", [None, 25.0])
def test_sizes_around_registers_and_tiles(isa, make_boxes, rows, columns, dtype, grid):
    # A coarse grid has many equal IoUs: the lowest index must win.
    boxes1, boxes2 = (
        make_boxes(rows, seed=1, dtype=dtype, grid=grid),
        make_boxes(columns, seed=2, dtype=dtype, grid=grid),
    )
    same(box_match(boxes1, boxes2, backend="cpp"), reference.box_match(boxes1, boxes2))


def test_it_is_the_maximum_of_the_matrix(make_boxes):
    boxes1, boxes2 = make_boxes(40, seed=1), make_boxes(50, seed=2)
    iou, match = box_iou(boxes1, boxes2), box_match(boxes1, boxes2)
    same(match, (*iou.max(1), *iou.max(0)))


def test_boxes_without_a_partner():
    far, near = [100.0, 100.0, 101.0, 101.0], [0.0, 0.0, 2.0, 2.0]
    nan, point = [NAN, 0.0, 1.0, 1.0], [5.0, 5.0, 5.0, 5.0]
    for backend in ("cpp", "reference"):
        match = box_match(torch.tensor([far, nan, point]), torch.tensor([nan, point, near]), backend=backend)
        # Nothing overlaps: IoU 0 with the first whose IoU is a number. Two points have 0/0.
        assert match.index1.tolist() == [1, -1, 2] and match.index2.tolist() == [-1, 0, 0]
        assert not match.iou1.any() and not match.iou2.any()


@pytest.mark.parametrize("shapes", [((0, 4), (3, 4)), ((3, 4), (0, 4)), ((0, 2, 4), (0, 3, 4)), ((2, 0, 4), (2, 0, 4))])
def test_empty(shapes):
    for backend in ("cpp", "reference"):
        boxes1, boxes2 = (torch.zeros(shape, requires_grad=True) for shape in shapes)
        match = box_match(boxes1, boxes2, backend=backend)
        assert match.iou1.shape == match.index1.shape == shapes[0][:-1]
        assert match.iou2.shape == match.index2.shape == shapes[1][:-1]
        assert (match.index1 == -1).all() and (match.index2 == -1).all() and not match.iou1.any()
        (match.iou1.sum() + match.iou2.sum()).backward()
        assert not boxes1.grad.any() and not boxes2.grad.any()


def test_leading_dimensions_types_layouts(isa, make_boxes):
    boxes1, boxes2 = make_boxes(2, 3, 5, seed=1), make_boxes(2, 3, 6, seed=2)
    same(box_match(boxes1, boxes2, backend="cpp"), reference.box_match(boxes1, boxes2))
    same(box_match(boxes1, boxes2[0, 0], backend="cpp"), reference.box_match(boxes1, boxes2[0, 0].expand(2, 3, 6, 4)))
    for dtype in (torch.float16, torch.bfloat16, torch.int64):
        few = boxes1.to(dtype)
        same(box_match(few, few, backend="cpp"), reference.box_match(few.float(), few.float()))
    assert box_match(boxes1.double(), boxes2).iou1.dtype == torch.float64
    wide = torch.zeros(5, 9)
    wide[:, 3:7] = boxes1[0, 0]
    same(box_match(wide[:, 3:7], boxes2[0, 0].t().contiguous().t()), reference.box_match(boxes1[0, 0], boxes2[0, 0]))


def test_numpy(make_boxes):
    boxes1, boxes2 = make_boxes(20, seed=1), make_boxes(30, seed=2)
    match = box_match(boxes1.numpy(), boxes2.numpy())
    assert all(isinstance(part, np.ndarray) for part in match) and match.index1.dtype == np.int64
    same([torch.from_numpy(part) for part in match], box_match(boxes1, boxes2))


@pytest.mark.parametrize("batch", [1, 3])
def test_threads_give_the_same(make_boxes, batch):
    boxes1, boxes2 = make_boxes(batch, 600, seed=1, grid=5.0), make_boxes(batch, 400, seed=2, grid=5.0)
    before = torch.get_num_threads()
    expected = box_match(boxes1, boxes2)
    torch.set_num_threads(3)
    try:
        same(box_match(boxes1, boxes2), expected)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("backend", ["cpp", "reference"])
def test_gradient_in_double(isa, make_boxes, backend):
    boxes1 = make_boxes(2, 4, seed=1, dtype=torch.float64).requires_grad_()
    boxes2 = make_boxes(2, 5, seed=2, dtype=torch.float64).requires_grad_()

    def ious(a, b):
        match = box_match(a, b, backend=backend)
        return match.iou1, match.iou2

    assert torch.autograd.gradcheck(ious, (boxes1, boxes2))
    assert torch.autograd.gradgradcheck(ious, (boxes1, boxes2))


def test_gradient_is_the_references_and_sparse(make_boxes):
    boxes1, boxes2 = make_boxes(30, seed=1).requires_grad_(), make_boxes(50, seed=2).requires_grad_()
    match, truth = box_match(boxes1, boxes2), reference.box_match(boxes1, boxes2)
    assert not match.index1.requires_grad and not match.index2.requires_grad
    weights = torch.rand(30), torch.rand(50)
    for parts in ((0, 2), (0,), (2,)):
        chosen = [match[part] for part in parts], [truth[part] for part in parts]
        given = [weights[part // 2] for part in parts]
        actual, wanted = (torch.autograd.grad(side, (boxes1, boxes2), given, retain_graph=True) for side in chosen)
        for one, other in zip(actual, wanted, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
    # Of one box alone: it and its partner, no other.
    (grad2,) = torch.autograd.grad(match.iou1[7], boxes2)
    assert grad2.any(1).nonzero().flatten().tolist() == [match.index1[7].item()]


def test_gradient_of_unmatched_boxes_is_zero():
    point = torch.tensor([[1.0, 1.0, 1.0, 1.0], [NAN, 0.0, 1.0, 1.0]], requires_grad=True)
    others = torch.tensor([[1.0, 1.0, 1.0, 1.0]], requires_grad=True)
    match = box_match(point, others)
    (match.iou1.sum() + match.iou2.sum()).backward()
    assert not point.grad.any() and not others.grad.any()


@pytest.mark.parametrize(
    ("boxes1", "boxes2", "error", "text"),
    [
        (torch.zeros(3, 5), torch.zeros(3, 4), ValueError, r"boxes1 must be \[..., 4\].*\[3, 5\]"),
        (torch.zeros(4), torch.zeros(3, 4), ValueError, r"\[..., N, 4\]"),
        (torch.zeros(2, 3, 4), torch.zeros(3, 3, 4), ValueError, "leading dimensions"),
        (torch.zeros(3, 4, dtype=torch.complex64), torch.zeros(3, 4), TypeError, "boxes1 must be.*complex64"),
        (torch.zeros(3, 4), torch.zeros(3, 4, device="meta"), ValueError, "boxes2 is on meta"),
        (torch.zeros(3, 4), np.zeros((3, 4)), TypeError, "boxes1: Tensor, boxes2: ndarray"),
    ],
)
def test_bad_arguments_are_named(boxes1, boxes2, error, text):
    with pytest.raises(error, match=text):
        box_match(boxes1, boxes2)


def test_the_registered_op_checks_too():
    with pytest.raises(ValueError, match="boxes1 and boxes2 must be"):
        torch.ops.cpgr_kernels.box_match(torch.zeros(2, 3, 4), torch.zeros(9, 3, 4))
    with pytest.raises(TypeError, match="float32 and boxes2 is torch.float64"):
        torch.ops.cpgr_kernels.box_match(torch.zeros(3, 4), torch.zeros(3, 4, dtype=torch.float64))


@pytest.mark.parametrize("backend", [None, "reference"])
def test_opcheck(make_boxes, backend):
    boxes1, boxes2 = make_boxes(2, 6, seed=1).requires_grad_(), make_boxes(2, 5, seed=2).requires_grad_()
    torch.library.opcheck(torch.ops.cpgr_kernels.box_match.default, (boxes1, boxes2, backend))


def test_compile_without_recompiles(make_boxes):
    torch._dynamo.reset()
    graphs = 0

    def count(graph, example_inputs):
        nonlocal graphs
        graphs += 1
        return graph

    def loss(boxes1, boxes2):
        match = box_match(boxes1, boxes2)
        return (1 - match.iou1).sum() + match.iou2.sum()

    compiled = torch.compile(loss, backend=count, fullgraph=True, dynamic=True)
    for rows, columns in ((5, 7), (17, 3), (64, 99)):
        boxes1, boxes2 = make_boxes(rows, seed=1).requires_grad_(), make_boxes(columns, seed=2)
        (wanted,) = torch.autograd.grad(loss(boxes1, boxes2), boxes1)
        (actual,) = torch.autograd.grad(compiled(boxes1, boxes2), boxes1)
        torch.testing.assert_close(actual, wanted, rtol=0, atol=0)
    assert graphs == 1


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (170, 300), (1500, 40), (40, 5000)])
@pytest.mark.parametrize("grid", [None, 25.0])
def test_cuda(cuda, make_boxes, dtype, rows, columns, grid):
    boxes1 = make_boxes(3, rows, seed=1, dtype=dtype, grid=grid)
    boxes2 = make_boxes(3, columns, seed=2, dtype=dtype, grid=grid)
    boxes1[0, 0, 0], boxes2[1, -1] = NAN, 7.0
    expected = box_match(boxes1, boxes2)
    for _ in range(3):  # the same every time, whatever the order of the threads
        actual = box_match(boxes1.to(cuda), boxes2.to(cuda), backend="cuda")
        same([part.cpu() for part in actual], expected)
