"""mask_overlap: the reference's numbers within the rounding of its sums, its peaks exactly, and its gradients."""

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cpgr_kernels import MaskOverlap, mask_overlap, reference

FUZZ = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
NAN, INF = float("nan"), float("inf")
KINDS = (torch.bool, torch.uint8, torch.float32)
SUMS, PEAKS = ("inter", "response", "mask", "hard"), ("peak", "argmax")


def problem(batch, maps, count, height, width, kind=torch.bool, seed=0, dtype=torch.float32):
    """Rectified responses with many zeros; masks of any size, or soft ones with zeros."""
    generator = torch.Generator().manual_seed(seed)
    responses = torch.randn(batch, maps, height, width, generator=generator, dtype=torch.float64).relu()
    soft = torch.rand(batch, count, height, width, generator=generator, dtype=torch.float64)
    inside = soft < torch.rand(batch, count, 1, 1, generator=generator, dtype=torch.float64)
    masks = torch.where(inside, soft, 0).to(dtype) if kind.is_floating_point else inside.to(kind)
    return responses.to(dtype), masks


def expected(responses, masks, threshold=1e-9):
    return MaskOverlap(*reference.mask_overlap(responses, masks, threshold))


def agree(actual, truth, responses, masks):
    """Peaks exactly; sums within the bound that the docstring states, of the sum of absolute values."""
    for name in PEAKS:
        torch.testing.assert_close(getattr(actual, name), getattr(truth, name), rtol=0, atol=0, equal_nan=True)
    exact = expected(responses.double(), masks.double() if masks.is_floating_point() else masks)
    size = expected(responses.double().abs(), masks.double().abs() if masks.is_floating_point() else masks)
    unit = 70 * 2.0 ** (-53 if actual.inter.dtype is torch.float64 else -24)
    for name in SUMS:
        error = (getattr(actual, name).double() - getattr(exact, name)).abs()
        assert (error <= unit * getattr(size, name)).all(), name


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "sizes",
    [(1, 1, 1, 1, 1), (2, 1, 3, 5, 7), (2, 3, 5, 4, 8), (3, 2, 40, 32, 32), (1, 1, 2, 65, 95), (1, 2, 3, 1, 2049)],
)
def test_sizes_around_registers_and_tiles(isa, sizes, kind, dtype):
    kind = dtype if kind.is_floating_point else kind
    responses, masks = problem(*sizes, kind=kind, dtype=dtype, seed=sum(sizes))
    agree(mask_overlap(responses, masks, backend="cpp"), expected(responses, masks), responses, masks)


values = st.one_of(st.floats(-2, 2, width=32), st.sampled_from([0.0, -0.0, 1.0, 1e-9, 1e-30, 1e30, NAN, INF, -INF]))


@FUZZ
@given(
    pixels=st.lists(values, min_size=1, max_size=80),
    masks=st.lists(st.integers(0, 2**80 - 1), min_size=1, max_size=3),
    soft=st.booleans(),
)
def test_fuzz_peaks(isa, pixels, masks, soft):
    responses = torch.tensor(pixels).view(1, 1, 1, -1)
    inside = torch.tensor([[m >> i & 1 for i in range(len(pixels))] for m in masks]).view(1, -1, 1, len(pixels))
    inside = inside.float() if soft else inside.bool()
    actual, truth = mask_overlap(responses, inside, backend="cpp"), expected(responses, inside)
    for name in (*PEAKS, "mask", "hard"):
        torch.testing.assert_close(getattr(actual, name), getattr(truth, name), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("backend", ["cpp", "reference"])
def test_definition(isa, backend):
    responses = torch.tensor([[[0.0, 2.0], [-1.0, 0.5]]])
    masks = torch.tensor([[[[1, 1], [0, 0]], [[0, 0], [1, 0]], [[0, 0], [0, 0]], [[1, 1], [1, 1]]]]).bool()
    overlap = mask_overlap(responses, masks, backend=backend)
    assert overlap.inter.tolist() == [[2.0, -1.0, 0.0, 1.5]]
    assert overlap.response.tolist() == [1.5]
    assert overlap.mask.tolist() == [[2.0, 1.0, 0.0, 4.0]]
    assert overlap.hard.tolist() == [[1.0, 0.0, 0.0, 2.0]]
    assert overlap.peak.tolist() == [[2.0, 0.0, 0.0, 2.0]]  # 0 outside is more than -1 inside
    assert overlap.argmax.tolist() == [[1, 0, 0, 1]]
    assert mask_overlap(responses, masks, threshold=0.5, backend=backend).hard.tolist() == [[1.0, 0.0, 0.0, 1.0]]


@pytest.mark.parametrize("pixels", [7, 32, 100, 5000])
def test_ties_go_to_the_first_pixel(isa, pixels):
    responses = torch.zeros(1, 1, 1, pixels)
    responses[..., [1, pixels // 2, pixels - 1]] = 3.0
    masks = torch.ones(1, 2, 1, pixels, dtype=torch.bool)
    masks[:, 1, :, 1] = False
    for each in (masks, masks.float()):
        assert mask_overlap(responses, each, backend="cpp").argmax.tolist() == [[[1, pixels // 2]]]
    assert mask_overlap(-responses - 1, masks, backend="cpp").peak.tolist() == [[[-1.0, 0.0]]]


@pytest.mark.parametrize("where", [0, 33, 2047, 2048, 4097])
def test_nan(isa, where):
    responses = torch.rand(1, 1, 1, 4100, generator=torch.Generator().manual_seed(0))
    responses[..., where] = NAN
    masks = torch.ones(1, 2, 1, 4100, dtype=torch.bool)
    masks[:, 1, :, where] = False
    overlap = mask_overlap(responses, masks, backend="cpp")
    assert overlap.peak[0, 0, 0].isnan() and overlap.argmax[0, 0, 0] == where
    # Outside of a boolean mask it does no harm; 0 * NaN of a soft mask is NaN.
    assert (
        overlap.inter[0, 0, 1].isfinite() and overlap.peak[0, 0, 1] == masks[0, 1, 0].mul(responses.nan_to_num(0)).max()
    )
    assert mask_overlap(responses, masks.float(), backend="cpp").peak.isnan().all()


def test_infinities_that_cancel(isa):
    responses = torch.zeros(1, 1, 1, 64)
    responses[..., 40], responses[..., 50] = INF, -INF
    overlap = mask_overlap(responses, torch.ones(1, 1, 1, 64, dtype=torch.bool), backend="cpp")
    assert overlap.inter.isnan().all() and overlap.peak.item() == INF and overlap.argmax.item() == 40


@pytest.mark.parametrize("backend", ["cpp", "reference"])
@pytest.mark.parametrize("sizes", [(0, 1, 3), (2, 0, 3), (2, 1, 0)])
def test_empty(backend, sizes):
    responses, masks = problem(*sizes, 4, 4, kind=torch.float32)
    responses.requires_grad_(), masks.requires_grad_()
    overlap = mask_overlap(responses, masks, backend=backend)
    assert overlap.inter.shape == overlap.argmax.shape == sizes
    assert torch.equal(overlap.mask, masks.sum((2, 3)))
    sum(part.sum() for part in overlap[:5]).backward()
    assert torch.equal(responses.grad, torch.ones_like(responses)) and torch.equal(masks.grad, torch.ones_like(masks))


def test_one_map_without_its_dimension():
    responses, masks = problem(3, 1, 4, 6, 5)
    single, several = mask_overlap(responses[:, 0], masks), mask_overlap(responses, masks)
    for name, part in single._asdict().items():
        whole = getattr(several, name)
        assert torch.equal(part, whole if name == "mask" else whole[:, 0])


def test_types_and_layouts():
    responses, masks = problem(2, 2, 3, 6, 7, kind=torch.float32)
    wanted = expected(responses, masks)
    turned = mask_overlap(responses.transpose(2, 3).contiguous().transpose(2, 3), masks[:, [0, 0, 1, 2]][:, 1:])
    agree(turned, wanted, responses, masks)
    agree(mask_overlap(responses, (masks > 0).byte() * 255), expected(responses, masks > 0), responses, masks > 0)
    assert mask_overlap(responses.double(), masks).inter.dtype == torch.float64
    assert mask_overlap(responses, masks.double()).inter.dtype == torch.float64
    for dtype in (torch.float16, torch.bfloat16):
        few = responses.to(dtype)
        assert mask_overlap(few, masks > 0).inter.dtype == torch.float32
        agree(mask_overlap(few, masks), expected(few, masks), few.float(), masks)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision_error(isa, dtype):
    """At most twice the error of plain maths at that precision against float64, plus the rounding of one product."""
    responses, masks = (part.to(dtype) for part in problem(2, 1, 10, 32, 32, kind=torch.float32, seed=3))
    truth = expected(responses.double(), masks.double())
    plain = MaskOverlap(
        (responses.unsqueeze(2) * masks.unsqueeze(1)).sum((-2, -1)),
        responses.sum((-2, -1)),
        masks.sum((-2, -1)),
        None,
        None,
        None,
    )
    actual = mask_overlap(responses, masks, backend="cpp")
    for name in ("inter", "response", "mask"):
        exact = getattr(truth, name)
        allowed = 2 * (getattr(plain, name).double() - exact).abs() + 1e-6 * exact
        assert ((getattr(actual, name).double() - exact).abs() <= allowed).all()


def test_threads_and_levels_give_the_same_bits():
    from cpgr_kernels import native

    module, before, threads = native.cpu()[0], native.cpu()[0].isa(), torch.get_num_threads()
    for kind in KINDS:
        responses, masks = problem(7, 3, 40, 61, 67, kind=kind)
        results = []
        for level in module.supported_isas():
            for count in (1, 2):
                module.use_isa(level), torch.set_num_threads(count)
                results.append(mask_overlap(responses, masks, backend="cpp"))
        module.use_isa(before), torch.set_num_threads(threads)
        for other in results[1:]:
            assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_numpy():
    responses, masks = problem(2, 1, 3, 5, 5)
    overlap = mask_overlap(responses[:, 0].numpy(), masks.numpy())
    assert isinstance(overlap.inter, np.ndarray) and overlap.argmax.dtype == np.int64
    assert np.array_equal(overlap.inter, mask_overlap(responses[:, 0], masks).inter.numpy())


def weighted(overlap, seed=0):
    """A number that every differentiable output reaches with a weight of its own."""
    generator = torch.Generator().manual_seed(seed)
    weights = (torch.rand(part.shape, generator=generator, dtype=torch.float64) for part in overlap[:5])
    return sum((part * weight.to(part.dtype)).sum() for part, weight in zip(overlap[:5], weights))


@pytest.mark.parametrize("soft", [True, False])
def test_gradient_in_double(isa, soft):
    check_gradients("cpp", soft)


@pytest.mark.parametrize("soft", [True, False])
def test_gradient_of_the_reference_in_double(soft):
    check_gradients("reference", soft)


def check_gradients(backend, soft):
    responses, masks = problem(2, 2, 2, 2, 3, kind=torch.float64 if soft else torch.bool, dtype=torch.float64)
    # Every product another number, well apart: no ties at a peak, and nothing close to the threshold.
    generator = torch.Generator().manual_seed(1)
    responses = (torch.randperm(responses.numel(), generator=generator).double() + 1).view(responses.shape) / 10
    if soft:
        masks = 0.5 + torch.randperm(masks.numel(), generator=generator).double().view(masks.shape) / 1e4
    inputs = [responses.requires_grad_(), masks.requires_grad_(soft)]

    def call(p, m):
        return tuple(mask_overlap(p, m, backend=backend)[:5])

    assert torch.autograd.gradcheck(call, inputs)
    assert torch.autograd.gradgradcheck(call, inputs)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sizes", [(2, 1, 3, 5, 7), (3, 2, 40, 32, 32), (1, 3, 2, 50, 50)])
def test_gradient_is_autograds(isa, sizes, kind):
    responses, masks = problem(*sizes, kind=kind, seed=4)
    soft = kind.is_floating_point
    inputs = [responses.requires_grad_(), masks.requires_grad_()] if soft else [responses.requires_grad_()]
    wanted = torch.autograd.grad(weighted(reference.mask_overlap(responses, masks, 1e-9)), inputs)
    actual = torch.autograd.grad(weighted(mask_overlap(responses, masks, backend="cpp")), inputs)
    for got, truth in zip(actual, wanted, strict=True):
        torch.testing.assert_close(got, truth, rtol=1e-5, atol=1e-5)


def test_gradient_of_a_peak_reaches_one_pixel(isa):
    responses, masks = problem(2, 2, 5, 12, 11, seed=5)
    overlap = mask_overlap(responses.requires_grad_(), masks, backend="cpp")
    (gradient,) = torch.autograd.grad(overlap.peak[1, 0, 3], responses)
    at = overlap.argmax[1, 0, 3]
    assert gradient.count_nonzero() == 1 and gradient[1, 0].flatten()[at] == 1
    overlap = mask_overlap(responses, masks, backend="cpp")
    (gradient,) = torch.autograd.grad(overlap.peak.sum(), responses)
    hits = torch.zeros(2, 2, 132).scatter_add_(
        2, overlap.argmax, masks.flatten(2).float().gather(2, overlap.argmax.transpose(1, 2)).transpose(1, 2)
    )
    assert torch.equal(gradient.flatten(2), hits)


def test_gradient_of_one_output_alone(isa):
    responses, masks = problem(2, 2, 5, 9, 9, kind=torch.float32, seed=6)
    inputs = responses.requires_grad_(), masks.requires_grad_()
    for name in ("inter", "response", "mask", "hard", "peak"):
        wanted = torch.autograd.grad(getattr(expected(*inputs), name).sum(), inputs, allow_unused=True)
        actual = torch.autograd.grad(getattr(mask_overlap(*inputs, backend="cpp"), name).sum(), inputs)
        for got, truth in zip(actual, wanted, strict=True):
            torch.testing.assert_close(got, torch.zeros_like(got) if truth is None else truth)


def test_gradient_reaches_half_precision():
    responses, masks = problem(2, 1, 4, 8, 8)
    half = responses.half().requires_grad_()
    (gradient,) = torch.autograd.grad(mask_overlap(half, masks).inter.sum(), half)
    assert gradient.dtype == torch.float16
    torch.testing.assert_close(gradient, masks.sum(1, keepdim=True).half())


@pytest.mark.parametrize(
    ("responses", "masks", "error", "text"),
    [
        (
            torch.zeros(2, 4, 4),
            torch.zeros(2, 3, 4, 5),
            ValueError,
            r"masks \[B, N, H, W\].*\[2, 1, 4, 4\].*\[2, 3, 4, 5\]",
        ),
        (torch.zeros(2, 4, 4), torch.zeros(3, 3, 4, 4), ValueError, "masks"),
        (torch.zeros(2, 4), torch.zeros(2, 3, 4, 4), ValueError, "responses must be"),
        (torch.zeros(2, 4, 4), torch.zeros(2, 4, 4), ValueError, "responses must be"),
        (torch.zeros(2, 0, 4), torch.zeros(2, 3, 0, 4), ValueError, "must not be zero"),
        (
            torch.zeros(2, 4, 4, dtype=torch.int64),
            torch.zeros(2, 3, 4, 4),
            TypeError,
            "responses must be floating.*int64",
        ),
        (torch.zeros(2, 4, 4), torch.zeros(2, 3, 4, 4, dtype=torch.int64), TypeError, "masks must be bool.*int64"),
        (torch.zeros(2, 4, 4), torch.zeros(2, 3, 4, 4, device="meta"), ValueError, "masks is on meta"),
        (torch.zeros(2, 4, 4), [[1]], TypeError, "responses: Tensor, masks: list"),
    ],
)
def test_bad_arguments_are_named(responses, masks, error, text):
    with pytest.raises(error, match=text):
        mask_overlap(responses, masks)


def test_the_registered_ops_check_too():
    responses, masks = problem(2, 1, 3, 4, 4)
    ops, argmax = torch.ops.cpgr_kernels, torch.zeros(2, 1, 3, dtype=torch.int64)
    with pytest.raises(ValueError, match="responses must be"):
        ops.mask_overlap(responses, masks[:, :, :2], 0.0)
    with pytest.raises(ValueError, match="grad_peak must be"):
        ops.mask_overlap_backward(
            None, None, None, None, torch.zeros(2, 1, 2), responses, masks, argmax, 0.0, True, False
        )
    with pytest.raises(TypeError, match="have no gradient"):
        ops.mask_overlap_backward(None, None, None, None, None, responses, masks, argmax, 0.0, True, True)
    with pytest.raises(TypeError, match="argmax must be int64"):
        ops.mask_overlap_backward(None, None, None, None, None, responses, masks, argmax.int(), 0.0, True, False)
    # Pixels that do not exist are written by nobody.
    for wrong in (-1, 16, 2**62):
        args = None, None, None, None, torch.ones(2, 1, 3), responses, masks.float(), argmax + wrong, 0.0, True, True
        for gradient in ops.mask_overlap_backward(*args, "cpp"):
            assert not gradient.any()


@pytest.mark.parametrize("backend", [None, "reference"])
@pytest.mark.parametrize("soft", [True, False])
def test_opcheck(backend, soft):
    responses, masks = problem(2, 2, 3, 4, 4, kind=torch.float32 if soft else torch.bool)
    arguments = responses.requires_grad_(), masks.requires_grad_(soft), 1e-9, backend
    torch.library.opcheck(torch.ops.cpgr_kernels.mask_overlap.default, arguments)
    each, maps, counts = torch.rand(2, 2, 3), torch.rand(2, 2), torch.rand(2, 3)
    argmax = mask_overlap(responses, masks).argmax
    arguments = (each, maps, counts, each, each, responses.detach(), masks.detach(), argmax, 1e-9, True, soft, backend)
    torch.library.opcheck(torch.ops.cpgr_kernels.mask_overlap_backward.default, arguments)


def test_compile_without_recompiles():
    torch._dynamo.reset()
    graphs = 0

    def count(graph, example_inputs):
        nonlocal graphs
        graphs += 1
        return graph

    def loss(responses, masks):
        overlap = mask_overlap(responses, masks)
        dice = overlap.inter / (overlap.response.unsqueeze(-1) + overlap.mask + 2e-5)
        return dice.amax(1).sum() + overlap.peak.sum()

    compiled = torch.compile(loss, backend=count, fullgraph=True, dynamic=True)
    for batch, number, side in ((2, 3, 4), (3, 7, 9), (5, 4, 6)):
        responses, masks = problem(batch, 1, number, side, side, seed=side)
        responses = responses[:, 0].requires_grad_()
        (wanted,) = torch.autograd.grad(loss(responses, masks), responses)
        (actual,) = torch.autograd.grad(compiled(responses, masks), responses)
        torch.testing.assert_close(actual, wanted, rtol=0, atol=0)
    assert graphs == 1


def test_compiled_backward_runs_the_kernel():
    torch._dynamo.reset()
    responses, masks = problem(2, 2, 3, 6, 6)
    responses.requires_grad_()
    (wanted,) = torch.autograd.grad(mask_overlap(responses, masks).inter.sum(), responses)
    compiled = torch.compile(lambda p, m: mask_overlap(p, m).inter.sum(), backend="aot_eager", fullgraph=True)
    (actual,) = torch.autograd.grad(compiled(responses, masks), responses)
    assert torch.equal(actual, wanted)


@pytest.mark.gpu
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sizes", [(1, 1, 1, 1, 1), (3, 1, 40, 32, 32), (2, 6, 5, 99, 101), (2, 3, 140, 17, 9)])
def test_cuda(cuda, sizes, kind):
    responses, masks = problem(*sizes, kind=kind, seed=7)
    here = [responses.requires_grad_(), masks.requires_grad_(kind.is_floating_point)]
    there = [part.detach().to(cuda).requires_grad_(part.requires_grad) for part in here]
    overlap = mask_overlap(*there, backend="cuda")
    agree(
        MaskOverlap(*(part.detach().cpu() for part in overlap)),
        expected(*(p.detach() for p in here)),
        *(p.detach() for p in here),
    )
    inputs = [[part for part in side if part.requires_grad] for side in (here, there)]
    wanted = torch.autograd.grad(weighted(mask_overlap(*here)), inputs[0])
    actual = torch.autograd.grad(weighted(MaskOverlap(*(part.cpu() for part in overlap))), inputs[1])
    for got, truth in zip(actual, wanted, strict=True):
        torch.testing.assert_close(got.cpu(), truth, rtol=1e-4, atol=1e-4)
