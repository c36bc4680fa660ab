"""region_attention: the reference's values, and its gradient to the maps."""

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cpgr_kernels import reference, region_attention

FUZZ = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
NAN, INF = float("nan"), float("inf")
coordinates = st.one_of(st.floats(-0.5, 1.5, width=32), st.sampled_from([0.0, 0.25, 0.5, 1.0, INF, -INF, NAN]))


def make(maps, boxes, cells, dtype=torch.float32, seed=0):
    """Maps [*maps, cells] whose rows sum to 1, and boxes [*boxes, 4] in and a little outside of 0..1."""
    generator = torch.Generator().manual_seed(seed)
    weights = torch.rand(*maps, cells, generator=generator, dtype=torch.float64)
    corners = torch.rand(*boxes, 4, generator=generator, dtype=torch.float64) * 1.4 - 0.2
    return (weights / weights.sum(-1, keepdim=True)).to(dtype), corners.to(dtype)


def close(actual, expected, dtype=torch.float32):
    tolerance = 1e-5 if dtype is torch.float32 else 1e-12
    assert actual.dtype == expected.dtype
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("grid", [(1, 1), (4, 5), (16, 16), (7, 24), (40, 33)])
@pytest.mark.parametrize(("queries", "count"), [(1, 1), (3, 9), (17, 4), (40, 2)])
def test_values_and_gradient(isa, queries, count, grid, dtype):
    maps, boxes = make((queries,), (count,), grid[0] * grid[1], dtype)
    maps.requires_grad_()
    for gamma, size in ((0.0, (1.0, 1.0)), (0.5, (0.9, 1.1)), (1.0, (1.0, 1.0))):
        expected = reference.region_attention(maps, boxes, grid, gamma, size)
        actual = region_attention(maps, boxes, grid, gamma, size, backend="cpp")
        close(actual, expected, dtype)
        weights = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1), dtype=dtype)
        wanted, found = (torch.autograd.grad(x, maps, weights)[0] for x in (expected, actual))
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5 * float(wanted.abs().max()))


@FUZZ
@given(boxes=st.lists(st.tuples(*[coordinates] * 4), max_size=9), gamma=st.sampled_from([0.0, 0.5, 1.0]))
def test_any_box(isa, boxes, gamma):
    maps, _ = make((3,), (1,), 12, torch.float64)
    boxes = torch.tensor(boxes, dtype=torch.float64).reshape(-1, 4)
    expected = reference.region_attention(maps, boxes, (3, 4), gamma)
    close(region_attention(maps, boxes, (3, 4), gamma, backend="cpp"), expected, torch.float64)


def test_known_values():
    maps = torch.tensor([[0.1, 0.2, 0.3, 0.4]])
    boxes = torch.tensor([[0.0, 0.0, 20.0, 10.0], [5.0, 0.0, 15.0, 5.0], [0.0, 0.0, 20.0, 20.0], [3.0, 3.0, 3.0, 9.0]])
    mass = region_attention(maps, boxes, (2, 2), gamma=0.0, size=(20.0, 10.0))
    torch.testing.assert_close(mass, torch.tensor([[1.0, 0.15, 1.0, 0.0]]))
    density = region_attention(maps, boxes, (2, 2), gamma=1.0, size=(20.0, 10.0))
    torch.testing.assert_close(density, torch.tensor([[1.0, 0.6, 0.5, 0.0]]))
    small = torch.tensor([[0.0, 0.0, 0.2, 0.1]])  # 1e-4 of the frame, 4e-4 of a cell of mass 0.1
    assert region_attention(maps, small, (2, 2), 1.0, (20.0, 10.0)).item() == pytest.approx(4e-5 / 1e-4)
    assert region_attention(maps, small, (2, 2), 1.0, (20.0, 10.0), least_area=1e-2).item() == pytest.approx(
        4e-5 / 1e-2
    )


def test_leading_dimensions_broadcast(isa):
    for maps, boxes in (
        ((2, 3, 5), (2, 3, 6)),
        ((2, 1, 5), (3, 6)),
        ((5,), (4, 6)),
        ((4, 5), (6,)),
        ((2, 2, 0), (2, 7)),
    ):
        maps, boxes = make(maps, boxes, 12)
        maps.requires_grad_()
        expected = reference.region_attention(maps, boxes, (3, 4))
        actual = region_attention(maps, boxes, (3, 4), backend="cpp")
        close(actual, expected)
        close(torch.autograd.grad(actual.sum(), maps)[0], torch.autograd.grad(expected.sum(), maps)[0])


@pytest.mark.parametrize("backend", ["cpp", "reference"])
def test_gradient_in_double(isa, backend):
    maps, boxes = make((2, 3), (1, 4), 6, torch.float64)
    maps.requires_grad_()

    def mass(maps):
        return region_attention(maps, boxes, (2, 3), backend=backend)

    assert torch.autograd.gradcheck(mass, maps) and torch.autograd.gradgradcheck(mass, maps)


def test_gradient_reaches_covered_cells_alone(isa):
    maps, _ = make((1,), (1,), 16)
    maps.requires_grad_()
    boxes = torch.tensor([[0.3, 0.5, 0.6, 1.0]])
    (gradient,) = torch.autograd.grad(region_attention(maps, boxes, (4, 4), backend="cpp").sum(), maps)
    assert gradient.nonzero()[:, 1].tolist() == [9, 10, 13, 14]
    assert not region_attention(maps, boxes.requires_grad_(), (4, 4)).detach().requires_grad


def test_types_numpy_and_layouts():
    maps, boxes = make((5,), (6,), 12)
    expected = region_attention(maps, boxes, (3, 4))
    assert region_attention(maps.double(), boxes, (3, 4)).dtype == torch.float64
    half = region_attention(maps.half().requires_grad_(), boxes, (3, 4))
    assert half.dtype == torch.float32
    close(half, reference.region_attention(maps.half().float(), boxes, (3, 4)))
    found = region_attention(maps.numpy(), boxes.numpy(), (3, 4))
    assert isinstance(found, np.ndarray)
    close(torch.from_numpy(found), expected)
    close(region_attention(maps.t().contiguous().t(), torch.cat([boxes, boxes], 1)[:, :4], (3, 4)), expected)


@pytest.mark.parametrize(
    ("maps", "boxes", "options", "text"),
    [
        (torch.zeros(2, 12), torch.zeros(3, 5), {}, r"boxes must be \[..., 4\]"),
        (torch.zeros(12), torch.zeros(3, 4), {}, r"maps and boxes must be"),
        (torch.zeros(2, 2, 12), torch.zeros(3, 3, 4), {}, "do not match"),
        (torch.zeros(2, 11), torch.zeros(3, 4), {}, "3 x 4 cells does not fit"),
        (torch.zeros(2, 12), torch.zeros(3, 4), {"size": (0.0, 1.0)}, "size must be positive"),
        (torch.zeros(2, 12), torch.zeros(3, 4), {"size": (1.0, NAN)}, "size must be positive"),
        (torch.zeros(2, 12), torch.zeros(3, 4), {"least_area": 0.0}, "least_area must be positive"),
        (torch.zeros(2, 12), torch.zeros(3, 4, device="meta"), {}, "boxes is on meta"),
    ],
)
def test_bad_arguments_are_named(maps, boxes, options, text):
    with pytest.raises(ValueError, match=text):
        region_attention(maps, boxes, (3, 4), **options)


def test_the_registered_ops_check_too():
    maps, boxes = make((5,), (6,), 12)
    settings = (0.5, 1.0, 1.0, 1e-6)
    with pytest.raises(ValueError, match="does not fit"):
        torch.ops.cpgr_kernels.region_attention(maps, boxes, 300, 400, *settings)
    with pytest.raises(ValueError, match="grad must be"):
        torch.ops.cpgr_kernels.region_attention_backward(torch.zeros(5, 5), maps, boxes, 3, 4, *settings)


@pytest.mark.parametrize("backend", [None, "reference"])
def test_opcheck(backend):
    maps, boxes = make((2, 5), (2, 6), 12)
    arguments = maps.requires_grad_(), boxes, 3, 4, 0.5, 1.0, 1.0, 1e-6, backend
    torch.library.opcheck(torch.ops.cpgr_kernels.region_attention.default, arguments)
    grad = torch.rand(2, 5, 6)
    torch.library.opcheck(
        torch.ops.cpgr_kernels.region_attention_backward.default, (grad, maps.detach(), *arguments[1:])
    )


def test_compile_without_recompiles():
    torch._dynamo.reset()
    graphs = 0

    def count(graph, example_inputs):
        nonlocal graphs
        graphs += 1
        return graph

    def loss(maps, boxes):
        return region_attention(maps, boxes, (3, 4)).sum()

    compiled = torch.compile(loss, backend=count, fullgraph=True, dynamic=True)
    for queries, regions in ((5, 7), (17, 3), (64, 99)):
        maps, boxes = make((queries,), (regions,), 12)
        torch.testing.assert_close(compiled(maps, boxes), loss(maps, boxes))
    assert graphs == 1
