"""generalized_box_iou: the reference's values bit for bit, its gradient, and finite ones with eps."""

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cpgr_kernels import generalized_box_iou, reference

FUZZ = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
NAN, INF = float("nan"), float("inf")
coordinates = st.one_of(st.floats(-100, 100, width=32), st.sampled_from([0.0, 1.0, 2.0, 1e-30, 1e30, NAN, INF, -INF]))
box_lists = st.lists(st.tuples(*[coordinates] * 4), max_size=20)


def same(actual, expected):
    """Equal bit for bit, but for the sign of zero; NaN equals NaN."""
    torch.testing.assert_close(actual, expected, rtol=0, atol=0, equal_nan=True)


def in_torch(boxes1, boxes2, eps):
    """The formula of the paper, one to one, in ops with autograd of their own."""
    ax1, ay1, ax2, ay2 = boxes1.unbind(-1)
    bx1, by1, bx2, by2 = boxes2.unbind(-1)
    width = (torch.minimum(ax2, bx2) - torch.maximum(ax1, bx1)).clamp(min=0)
    height = (torch.minimum(ay2, by2) - torch.maximum(ay1, by1)).clamp(min=0)
    inter = width * height
    union = (ax2 - ax1) * (ay2 - ay1) + (bx2 - bx1) * (by2 - by1) - inter
    hull = (torch.maximum(ax2, bx2) - torch.minimum(ax1, bx1)) * (torch.maximum(ay2, by2) - torch.minimum(ay1, by1))
    if eps:
        return inter / union.clamp(min=eps) - (hull - union) / hull.clamp(min=eps)
    return inter / union - (hull - union) / hull


def unsigned(values):
    """A box turned inside out in a hull of area zero gives -+1/0, whose sign is that of a zero."""
    return torch.where(values.isinf(), INF, values)


@FUZZ
@given(
    first=box_lists,
    second=box_lists,
    dtype=st.sampled_from([torch.float32, torch.float64]),
    eps=st.sampled_from([0.0, 1e-7, 3.0]),
)
def test_fuzz(isa, first, second, dtype, eps):
    boxes1 = torch.tensor(first, dtype=dtype).reshape(-1, 4)
    boxes2 = torch.tensor(second, dtype=dtype).reshape(-1, 4)
    expected = unsigned(in_torch(boxes1[:, None], boxes2, eps))
    same(unsigned(reference.generalized_box_iou(boxes1, boxes2, eps=eps)), expected)
    same(unsigned(generalized_box_iou(boxes1, boxes2, eps=eps, backend="cpp")), expected)
    pairs = min(len(first), len(second))
    one_to_one = generalized_box_iou(boxes1[:pairs], boxes2[:pairs], pairwise=False, eps=eps, backend="cpp")
    same(unsigned(one_to_one), unsigned(in_torch(boxes1[:pairs], boxes2[:pairs], eps)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (3, 7), (16, 16), (17, 33), (130, 257)])
def test_sizes_around_registers(isa, make_boxes, rows, columns, dtype):
    boxes1, boxes2 = make_boxes(rows, seed=1, dtype=dtype), make_boxes(columns, seed=2, dtype=dtype)
    same(generalized_box_iou(boxes1, boxes2, backend="cpp"), reference.generalized_box_iou(boxes1, boxes2))


def test_known_values():
    box = torch.tensor([[0.0, 0.0, 2.0, 2.0]])
    others = torch.tensor([[0.0, 0.0, 2.0, 2.0], [1.0, 0.0, 3.0, 2.0], [4.0, 0.0, 6.0, 2.0], [8.0, 8.0, 9.0, 9.0]])
    expected = torch.tensor([[1.0, 1 / 3, -1 / 3, 5 / 81 - 1]])
    torch.testing.assert_close(generalized_box_iou(box, others), expected)


def test_degenerate_boxes():
    point, box = torch.tensor([[1.0, 1.0, 1.0, 1.0]]), torch.tensor([[0.0, 0.0, 2.0, 2.0]])
    line = torch.tensor([[0.0, 1.0, 2.0, 1.0]])
    for backend in ("cpp", "reference"):
        assert generalized_box_iou(point, point, backend=backend).isnan().all()
        assert generalized_box_iou(line, line, backend=backend).isnan().all()
        assert generalized_box_iou(point, box, backend=backend).item() == 0
        for eps in (0.0, 1e-7):
            assert generalized_box_iou(torch.full((1, 4), NAN), box, eps=eps, backend=backend).isnan().all()


@pytest.mark.parametrize("backend", ["cpp", "reference"])
@pytest.mark.parametrize("pairwise", [True, False])
def test_eps_makes_value_and_gradient_finite(isa, backend, pairwise):
    some = [
        [1.0, 1.0, 1.0, 1.0],
        [0.0, 1.0, 2.0, 1.0],
        [0.0, 0.0, 1e-30, 2.0],
        [1.5, 1.0, 0.5, 2.0],
        [0.0, 0.0, 2.0, 2.0],
    ]
    boxes1 = torch.tensor(some).repeat_interleave(5, 0).requires_grad_()
    boxes2 = torch.tensor(some).repeat(5, 1).requires_grad_()
    values = generalized_box_iou(boxes1, boxes2, pairwise=pairwise, eps=1e-7, backend=backend)
    assert values.isfinite().all()
    grads = torch.autograd.grad(values.sum(), (boxes1, boxes2))
    assert all(grad.isfinite().all() for grad in grads)
    # Two boxes without area leave nothing to pull at but each other's edges: never more than a side over eps.
    assert max(grad.abs().max() for grad in grads) < 3e8


def test_eps_leaves_larger_unions_alone(make_boxes):
    boxes1, boxes2 = make_boxes(40, seed=1), make_boxes(50, seed=2)
    same(generalized_box_iou(boxes1, boxes2, eps=1e-7), generalized_box_iou(boxes1, boxes2))


def test_leading_dimensions_types_layouts(isa, make_boxes):
    boxes1, boxes2 = make_boxes(2, 3, 5, seed=1), make_boxes(2, 3, 6, seed=2)
    for first, second in ((boxes1, boxes2), (boxes1, boxes2[0, 0]), (boxes1[:, :1], boxes2)):
        same(generalized_box_iou(first, second, backend="cpp"), reference.generalized_box_iou(first, second))
    for dtype in (torch.float16, torch.bfloat16, torch.int32):
        few = boxes1.to(dtype)
        value = generalized_box_iou(few, few, backend="cpp")
        assert value.dtype == torch.float32
        same(value, reference.generalized_box_iou(few.float(), few.float()))
    assert generalized_box_iou(boxes1.double(), boxes2).dtype == torch.float64
    wide = torch.zeros(5, 9)
    wide[:, 3:7] = boxes1[0, 0]
    same(generalized_box_iou(wide[:, 3:7], boxes2[0, 0]), generalized_box_iou(boxes1[0, 0], boxes2[0, 0]))


def test_numpy_and_out(make_boxes):
    boxes1, boxes2 = make_boxes(20, seed=1), make_boxes(30, seed=2)
    expected = generalized_box_iou(boxes1, boxes2)
    out = np.empty((20, 30), np.float32)
    assert generalized_box_iou(boxes1.numpy(), boxes2.numpy(), out=out) is out
    same(torch.from_numpy(out), expected)
    for backend in ("cpp", "reference"):
        into = torch.full((20, 30), NAN)
        assert generalized_box_iou(boxes1, boxes2, out=into, backend=backend) is into
        same(into, expected)


@pytest.mark.parametrize("shapes", [((0, 4), (3, 4)), ((3, 4), (0, 4)), ((2, 0, 4), (2, 0, 4))])
def test_empty(shapes):
    boxes1, boxes2 = (torch.zeros(shape, requires_grad=True) for shape in shapes)
    for backend in ("cpp", "reference"):
        value = generalized_box_iou(boxes1, boxes2, backend=backend)
        assert value.shape == shapes[0][:-1] + shapes[1][-2:-1]
        value.sum().backward()
        assert not boxes1.grad.any() and not boxes2.grad.any()


@pytest.mark.parametrize("backend", ["cpp", "reference"])
@pytest.mark.parametrize("pairwise", [True, False])
@pytest.mark.parametrize("eps", [0.0, 500.0])  # boxes have 1 to 2600 square pixels: some denominators are at eps
def test_gradient_in_double(isa, make_boxes, backend, pairwise, eps):
    boxes1 = make_boxes(2, 3, seed=1, dtype=torch.float64).requires_grad_()
    boxes2 = make_boxes(2, 5 if pairwise else 3, seed=2, dtype=torch.float64).requires_grad_()

    def value(a, b):
        return generalized_box_iou(a, b, pairwise=pairwise, eps=eps, backend=backend)

    assert torch.autograd.gradcheck(value, (boxes1, boxes2))
    assert torch.autograd.gradgradcheck(value, (boxes1, boxes2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("pairwise", [True, False])
@pytest.mark.parametrize("eps", [0.0, 400.0])
def test_gradient_of_ties_is_autograds(isa, make_boxes, dtype, pairwise, eps):
    # On a coarse grid edges tie and touch, and unions tie with eps, where a difference quotient says nothing.
    boxes1, boxes2 = (make_boxes(64, seed=seed, dtype=dtype, grid=10.0).requires_grad_() for seed in (1, 2))
    expected = in_torch(boxes1[:, None] if pairwise else boxes1, boxes2, eps)
    weights = torch.rand(expected.shape, generator=torch.Generator().manual_seed(5), dtype=dtype)
    wanted = torch.autograd.grad(expected, (boxes1, boxes2), weights)
    for backend in ("cpp", "reference"):
        value = generalized_box_iou(boxes1, boxes2, pairwise=pairwise, eps=eps, backend=backend)
        for actual, truth in zip(torch.autograd.grad(value, (boxes1, boxes2), weights), wanted, strict=True):
            torch.testing.assert_close(actual, truth, rtol=1e-4, atol=1e-6, equal_nan=True)


def test_gradient_reaches_half_precision(make_boxes):
    boxes1 = make_boxes(4, 3).half().requires_grad_()
    boxes2 = make_boxes(5, seed=2).half().requires_grad_()
    wanted = torch.autograd.grad(reference.generalized_box_iou(boxes1, boxes2).sum(), (boxes1, boxes2))
    generalized_box_iou(boxes1, boxes2).sum().backward()
    assert boxes1.grad.dtype == torch.float16 and boxes2.grad.shape == (5, 4)
    torch.testing.assert_close(boxes1.grad, wanted[0], rtol=1e-2, atol=1e-4)
    torch.testing.assert_close(boxes2.grad, wanted[1], rtol=1e-2, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"eps": -1.0}, ValueError, "eps must be at least 0 and finite, got -1.0"),
        ({"eps": NAN}, ValueError, "eps must be at least 0"),
        ({"eps": INF}, ValueError, "eps must be at least 0"),
        ({"pairwise": False}, ValueError, "generalized_box_iou: leading dimensions"),
        ({"out": torch.empty(3, 6)}, ValueError, r"out must be \[3, 5\], torch.float32.*got \[3, 6\]"),
    ],
)
def test_bad_arguments_are_named(options, error, text):
    with pytest.raises(error, match=text):
        generalized_box_iou(torch.zeros(3, 4), torch.zeros(5, 4), **options)


@pytest.mark.parametrize("backend", [None, "reference"])
@pytest.mark.parametrize("pairwise", [True, False])
def test_opcheck(make_boxes, backend, pairwise):
    boxes1, boxes2 = make_boxes(6, seed=1).requires_grad_(), make_boxes(6, seed=2).requires_grad_()
    ops = torch.ops.cpgr_kernels
    torch.library.opcheck(ops.generalized_box_iou.default, (boxes1, boxes2, pairwise, 1e-7, backend))
    grad = torch.rand(6, 6) if pairwise else torch.rand(6)
    arguments = (boxes1.detach(), boxes2.detach(), pairwise, 1e-7)
    torch.library.opcheck(ops.generalized_box_iou_backward.default, (grad, *arguments, backend))
    torch.library.opcheck(ops.generalized_box_iou_out.default, (*arguments, grad, backend))


def test_compile_without_recompiles(make_boxes):
    torch._dynamo.reset()
    graphs = 0

    def count(graph, example_inputs):
        nonlocal graphs
        graphs += 1
        return graph

    def loss(boxes1, boxes2):
        return (1 - generalized_box_iou(boxes1, boxes2, eps=1e-7)).sum()

    compiled = torch.compile(loss, backend=count, fullgraph=True, dynamic=True)
    for rows, columns in ((5, 7), (17, 3), (64, 99)):
        boxes1, boxes2 = make_boxes(rows, seed=1).requires_grad_(), make_boxes(columns, seed=2)
        (wanted,) = torch.autograd.grad(loss(boxes1, boxes2), boxes1)
        (actual,) = torch.autograd.grad(compiled(boxes1, boxes2), boxes1)
        same(actual, wanted)
    assert graphs == 1


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("pairwise", [True, False])
@pytest.mark.parametrize("eps", [0.0, 100.0])
def test_cuda(cuda, make_boxes, dtype, pairwise, eps):
    columns = 300 if pairwise else 170
    here = [make_boxes(3, size, seed=size, dtype=dtype, grid=5.0).requires_grad_() for size in (170, columns)]
    there = [boxes.detach().to(cuda).requires_grad_() for boxes in here]
    expected = generalized_box_iou(*here, pairwise=pairwise, eps=eps)
    actual = generalized_box_iou(*there, pairwise=pairwise, eps=eps, backend="cuda")
    same(actual.cpu(), expected)
    weights = torch.rand(expected.shape, generator=torch.Generator().manual_seed(0), dtype=dtype)
    wanted = torch.autograd.grad(expected, here, weights)
    for gradient, truth in zip(torch.autograd.grad(actual, there, weights.to(cuda)), wanted, strict=True):
        torch.testing.assert_close(gradient.cpu(), truth, rtol=1e-4, atol=1e-5)
