"""attention_with_map and attention_map: the reference's values and gradients, whatever the shapes, masks and layouts."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cpgr_kernels import attention_map, attention_with_map, reference

FUZZ = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
INF = float("inf")
# batch, heads, key heads, queries, keys, width, value width: around registers, blocks of keys and tiles of queries
SHAPES = [
    (1, 1, 1, 1, 1, 1, 1),
    (2, 4, 2, 5, 7, 3, 6),
    (1, 6, 6, 33, 33, 64, 64),
    (2, 3, 1, 49, 150, 20, 17),
    (1, 2, 2, 65, 73, 16, 33),
    (2, 12, 12, 30, 300, 64, 64),
]


def make(shape, dtype=torch.float32, seed=0, scale=1.5):
    """q, k and v as a model hands them over: views of [B, T, H, D]."""
    batch, heads, groups, queries, keys, width, value_width = shape
    generator = torch.Generator().manual_seed(seed)
    sizes = ((queries, heads, width), (keys, groups, width), (keys, groups, value_width))
    return [
        (torch.randn(batch, *size, generator=generator, dtype=torch.float64) * scale).to(dtype).transpose(1, 2)
        for size in sizes
    ]


def make_mask(kind, shape, dtype=torch.float32, seed=1):
    """Masks in which some queries see no key, and some whole blocks of keys are hidden."""
    batch, heads, _, queries, keys, _, _ = shape
    generator = torch.Generator().manual_seed(seed)
    padding = torch.rand(batch, keys, generator=generator) < 0.4
    padding[:, keys // 2 :] = True
    padding[-1] = True
    seen = torch.rand(batch, 1, queries, keys, generator=generator) < 0.5
    seen[0, :, 0] = False
    numbers = torch.randn(heads, queries, keys, generator=generator).to(dtype)
    numbers[0, 0], numbers[:, :, : keys // 2] = -INF, torch.finfo(dtype).min
    least = torch.full((1, 1, queries, keys), torch.finfo(dtype).min, dtype=dtype)
    return {
        "none": {},
        "padding": {"key_padding_mask": padding},
        "seen": {"attn_mask": seen},
        "numbers": {"attn_mask": numbers},
        "least number": {"attn_mask": least},
        "row of numbers": {"attn_mask": numbers[0, :1]},
        "causal": {"is_causal": True} if queries == keys else {},
        "all": {"key_padding_mask": ~padding, "attn_mask": numbers, "is_causal": queries == keys},
    }[kind]


def some_rows(shape, kind):
    batch, queries = shape[0], shape[3]
    generator = torch.Generator().manual_seed(3)
    return {
        "all": None,
        "one": torch.tensor([queries - 1]),
        "many": torch.randint(0, queries, (9,), generator=generator),
        "by image": torch.randint(0, queries, (batch, 3), generator=generator).int(),
    }[kind]


def close(actual, expected, dtype=torch.float32):
    tolerance = 2e-5 if dtype is torch.float32 else 1e-12
    assert actual.dtype == expected.dtype
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


KINDS = ["none", "padding", "seen", "numbers", "least number", "row of numbers", "causal", "all"]


@pytest.mark.parametrize(
    ("kind", "dtype"), [*((kind, torch.float32) for kind in KINDS), ("none", torch.float64), ("all", torch.float64)]
)
@pytest.mark.parametrize("shape", SHAPES)
def test_values(isa, shape, kind, dtype):
    q, k, v = make(shape, dtype)
    masks = make_mask(kind, shape, dtype)
    for chosen in ("all", "one", "many", "by image"):
        rows = some_rows(shape, chosen)
        expected_out, expected_map = reference.attention_with_map(
            q, k, v, rows=None if rows is None else rows.long(), **masks
        )
        out, maps = attention_with_map(q, k, v, rows=rows, backend="cpp", **masks)
        close(out, expected_out, dtype)
        close(maps, expected_map, dtype)
        close(attention_map(q, k, rows=rows, backend="cpp", **masks), expected_map, dtype)


@FUZZ
@given(data=st.data())
def test_fuzz(isa, data):
    groups = data.draw(st.integers(1, 3))
    sizes = [data.draw(st.integers(low, high)) for low, high in ((0, 3), (0, 40), (0, 160), (1, 70), (0, 70))]
    batch, queries, keys, width, value_width = sizes
    shape = (batch, groups * data.draw(st.integers(1, 2)), groups, queries, keys, width, value_width)
    q, k, v = (x.requires_grad_() for x in make(shape, torch.float64, seed=data.draw(st.integers(0, 99))))
    masks = (
        {}
        if 0 in shape
        else make_mask(data.draw(st.sampled_from(["none", "padding", "seen", "all"])), shape, torch.float64)
    )
    rows = torch.randint(0, queries, (data.draw(st.integers(0, 6)),)) if queries and data.draw(st.booleans()) else None
    expected = reference.attention_with_map(q, k, v, rows=rows, **masks)
    actual = attention_with_map(q, k, v, rows=rows, backend="cpp", **masks)
    weights = [torch.randn_like(x) for x in expected]
    wanted = torch.autograd.grad(expected, (q, k, v), weights)
    for a, b in zip((*actual, *torch.autograd.grad(actual, (q, k, v), weights)), (*expected, *wanted)):
        close(a, b, torch.float64)


def test_rows_sum_to_one_and_blind_rows_are_zero(isa):
    q, k, v = make((2, 4, 4, 20, 500, 32, 32))
    padding = torch.zeros(2, 500, dtype=torch.bool)
    padding[0] = True
    out, maps = attention_with_map(q, k, v, key_padding_mask=padding, backend="cpp")
    assert not out[0].any() and not maps[0].any()
    torch.testing.assert_close(maps[1].sum(-1), torch.ones(20), rtol=0, atol=1e-5)


def test_large_scores_and_weights_too_small_for_the_type(isa):
    q, k, v = make((1, 2, 2, 9, 200, 8, 8), scale=20)
    out, maps = attention_with_map(q, k, v, backend="cpp")
    expected_out, expected_map = reference.attention_with_map(q.double(), k.double(), v.double())
    torch.testing.assert_close(out.double(), expected_out, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(maps.double(), expected_map, rtol=1e-3, atol=1e-5)


def test_nan_stays_in_its_row_and_infinities_are_nan(isa):
    q, k, v = make((1, 2, 2, 20, 100, 8, 8))
    for bad in (float("nan"), INF):
        broken = q.clone()
        broken[0, 1, 3] = bad
        for backend in ("cpp", "reference"):
            out, maps = attention_with_map(broken, k, v, backend=backend)
            assert out[0, 1, 3].isnan().all() and maps[0, 3].isnan().all()
            assert not out[0, 0].isnan().any() and not maps[0, [*range(3), *range(4, 20)]].isnan().any()
        assert attention_map(broken, k, rows=torch.tensor([3, 4]), backend="cpp")[0].isnan().all(-1).tolist() == [
            True,
            False,
        ]


def test_keys_left_out_may_be_nan(isa):
    q, k, _ = make((1, 2, 2, 20, 100, 8, 8))
    padding = torch.zeros(1, 100, dtype=torch.bool)
    padding[0, 90:] = True
    expected = reference.attention_map(q, k, key_padding_mask=padding)
    k[:, :, 90:] = float("nan")
    close(attention_map(q, k, key_padding_mask=padding, backend="cpp"), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_as_good_as_torchs(isa, dtype):
    shape = (2, 4, 2, 40, 150, 33, 24)
    q, k, v = (x.requires_grad_() for x in make(shape, dtype))
    mask = torch.randn(40, 150, generator=torch.Generator().manual_seed(4)).to(dtype)
    rows = torch.tensor([3, 3, 39])

    def run(function, q, k, v, mask, **options):
        out, maps = function(q, k, v, rows=rows, attn_mask=mask, **options)
        weights = torch.linspace(-1, 1, 24, dtype=out.dtype), torch.linspace(-9, 9, 150, dtype=maps.dtype)
        return (
            out,
            maps,
            *torch.autograd.grad([out, maps], [q, k, v], [w.expand_as(x) for w, x in zip(weights, (out, maps))]),
        )

    exact = run(reference.attention_with_map, *(x.double().detach().requires_grad_() for x in (q, k, v)), mask.double())
    # The plain way in this type: every product and sum is rounded to it.
    heads = [x.detach().repeat_interleave(4 // x.shape[1], 1) for x in (q, k, v)]
    weights = (heads[0] @ heads[1].transpose(-1, -2) * 33**-0.5 + mask).softmax(-1)
    plain = (weights @ heads[2], weights.mean(1)[:, rows])
    ours = run(attention_with_map, q, k, v, mask, backend="cpp")
    assert ours[0].dtype == dtype and ours[1].dtype == torch.float32 and ours[2].dtype == dtype
    for mine, theirs, truth in zip(ours, plain, exact):
        rounding = torch.finfo(dtype).eps * truth.abs().max()
        assert (mine - truth).abs().max() <= 2 * (theirs - truth).abs().max() + rounding
    for mine, truth in zip(ours[2:], exact[2:]):
        assert (mine - truth).abs().max() <= 4 * torch.finfo(dtype).eps * truth.abs().max()


def test_memory_layouts(isa):
    shape = (2, 3, 3, 20, 40, 16, 16)
    q, k, v = make(shape)
    expected = attention_with_map(q, k, v, backend="cpp")
    fused = torch.cat([k, v], -1)
    layouts = [
        (q.contiguous(), k.contiguous(), v.contiguous()),
        (q, fused[..., :16], fused[..., 16:]),
        (q.mT.contiguous().mT, k.mT.contiguous().mT, v.mT.contiguous().mT),
        (q.flip(2).flip(2), k[:, :, :, :], v),
    ]
    for layout in layouts:
        for actual, wanted in zip(attention_with_map(*layout, backend="cpp"), expected):
            torch.testing.assert_close(actual, wanted, rtol=0, atol=0)
    # Nothing is copied that a model does not have to copy: out lies as [B, T, H, E].
    assert expected[0].transpose(1, 2).is_contiguous()
    same = attention_with_map(q[:1].expand(2, -1, -1, -1), k, v, backend="cpp")[0]
    torch.testing.assert_close(same[0], expected[0][0], rtol=0, atol=0)


@pytest.mark.parametrize("shape", [(1, 12, 3, 30, 100, 16, 16), (3, 4, 4, 150, 90, 8, 8)])
def test_threads_give_the_same(shape):
    q, k, v = (x.requires_grad_() for x in make(shape))

    def run():
        out, maps = attention_with_map(q, k, v, backend="cpp")
        return out, maps, *torch.autograd.grad((out.sum() + (maps**2).sum()), (q, k, v))

    expected, before = run(), torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        for actual, wanted in zip(run(), expected):
            torch.testing.assert_close(actual, wanted, rtol=0, atol=0)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("kind", ["none", "least number", "all"])
@pytest.mark.parametrize("chosen", ["all", "many", "by image"])
@pytest.mark.parametrize("used", ["out", "map", "both"])
def test_gradient(isa, kind, chosen, used):
    for shape in SHAPES[1:5]:
        for dtype in (torch.float32, torch.float64):
            q, k, v = (x.requires_grad_() for x in make(shape, dtype, scale=1.0))
            masks, rows = make_mask(kind, shape, dtype), some_rows(shape, chosen)
            rows = None if rows is None else rows.long()
            expected = reference.attention_with_map(q, k, v, rows=rows, **masks)
            actual = attention_with_map(q, k, v, rows=rows, backend="cpp", **masks)
            pick = {"out": slice(0, 1), "map": slice(1, 2), "both": slice(0, 2)}[used]
            generator = torch.Generator().manual_seed(7)
            weights = [torch.randn(x.shape, generator=generator, dtype=dtype) for x in expected][pick]
            wanted = torch.autograd.grad(expected[pick], (q, k, v), weights, materialize_grads=True)
            found = torch.autograd.grad(actual[pick], (q, k, v), weights)
            for gradient, truth in zip(found, wanted):
                close(gradient, truth, dtype)
            if used == "map":
                alone = attention_map(q, k, rows=rows, backend="cpp", **masks)
                for gradient, truth in zip(torch.autograd.grad(alone, (q, k), weights), wanted):
                    close(gradient, truth, dtype)


@pytest.mark.parametrize("backend", ["cpp", "reference"])
def test_gradient_in_double(isa, backend):
    q, k, v = (x.requires_grad_() for x in make((1, 2, 1, 3, 4, 2, 3), torch.float64))
    rows, mask = torch.tensor([2, 0, 2]), torch.tensor([[True, True, False, True]] * 3)

    def both(q, k, v):
        return attention_with_map(q, k, v, rows=rows, attn_mask=mask, scale=0.7, backend=backend)

    def only_map(q, k):
        return attention_map(q, k, rows=rows, attn_mask=mask, backend=backend)

    assert torch.autograd.gradcheck(both, (q, k, v)) and torch.autograd.gradgradcheck(both, (q, k, v))
    assert torch.autograd.gradcheck(only_map, (q, k)) and torch.autograd.gradgradcheck(only_map, (q, k))


def test_gradient_of_a_chosen_row_reaches_no_other(isa):
    q, k, _ = (x.requires_grad_() for x in make((1, 2, 2, 40, 50, 8, 8)))
    maps = attention_map(q, k, rows=torch.tensor([7, 30]), backend="cpp")
    gradient, _ = torch.autograd.grad((maps**2).sum(), (q, k))
    reached = gradient.ne(0).any(-1).all(1)[0].nonzero().flatten()
    assert reached.tolist() == [7, 30] and gradient.ne(0).any(-1).sum() == 2 * 2


def test_only_some_arguments_need_a_gradient(isa):
    q, k, v = make((2, 2, 2, 5, 9, 4, 4))
    v.requires_grad_()
    out, _ = attention_with_map(q, k, v, backend="cpp")
    assert out.requires_grad
    (gradient,) = torch.autograd.grad(out.sum(), v)
    weights = reference.attention_map(q[:, :1], k[:, :1]).sum(1)
    torch.testing.assert_close(gradient[:, 0, :, 0], weights)


@pytest.mark.parametrize(
    "shape",
    [(0, 2, 2, 3, 4, 5, 6), (1, 2, 2, 0, 4, 5, 6), (1, 2, 2, 3, 0, 5, 6), (1, 2, 2, 3, 4, 5, 0)],
)
def test_empty(shape):
    batch, heads, _, queries, keys, _, value_width = shape
    q, k, v = (x.requires_grad_() for x in make(shape))
    for backend in ("cpp", "reference"):
        out, maps = attention_with_map(q, k, v, backend=backend)
        assert out.shape == (batch, heads, queries, value_width) and maps.shape == (batch, queries, keys)
        assert value_width == 0 or not out.any()
        for gradient in torch.autograd.grad(out.sum() + maps.sum(), (q, k, v)):
            assert gradient.abs().max() < 1e-6 if gradient.numel() else True
    assert attention_map(q, k, rows=torch.zeros(0, dtype=torch.long)).shape == (batch, 0, keys)


Q, K = torch.zeros(2, 4, 5, 8), torch.zeros(2, 2, 7, 8)


@pytest.mark.parametrize(
    ("q", "k", "v", "options", "error", "text"),
    [
        (Q[0], K, K, {}, ValueError, r"\[B, H, T, D\].*q \[4, 5, 8\]"),
        (Q, K[:1], K[:1], {}, ValueError, r"k \[1, 2, 7, 8\]"),
        (Q, K[..., :3], K, {}, ValueError, r"k \[2, 2, 7, 3\]"),
        (Q, K, K[:, :, :3], {}, ValueError, r"v \[2, 2, 3, 8\]"),
        (Q[:, :3], K, K, {}, ValueError, "multiple of those of k"),
        (Q[:, :0], K[:, :0], K[:, :0], {}, ValueError, "multiple of those of k"),
        (Q, K.double(), K, {}, TypeError, "k torch.float64"),
        (Q.int(), K.int(), K.int(), {}, TypeError, "floating-point"),
        (Q, K, K.to("meta"), {}, ValueError, "v is on meta"),
        (Q, K, K, {"is_causal": True}, ValueError, "as many queries as keys"),
        (Q, K, K, {"rows": torch.tensor([5])}, IndexError, r"0\.\.4, got 5\.\.5"),
        (Q, K, K, {"rows": torch.tensor([0, -1])}, IndexError, r"got -1\.\.0"),
        (Q, K, K, {"rows": torch.tensor([0.0])}, TypeError, "rows must be integers"),
        (Q, K, K, {"rows": torch.zeros(3, 2, dtype=torch.long)}, ValueError, r"\[B, R\] with B = 2"),
        (Q, K, K, {"key_padding_mask": torch.zeros(2, 5, dtype=torch.bool)}, ValueError, r"must be \[2, 7\]"),
        (Q, K, K, {"key_padding_mask": torch.zeros(2, 7)}, TypeError, "True at keys left out"),
        (Q, K, K, {"attn_mask": torch.zeros(5, 5)}, ValueError, r"broadcast to \[2, 4, 5, 7\]"),
        (Q, K, K, {"attn_mask": torch.zeros(5, 7, dtype=torch.int32)}, TypeError, "attn_mask must be bool"),
        (Q, K, K, {"attn_mask": torch.zeros(5, 7, requires_grad=True)}, ValueError, "attn_mask gets no gradient"),
    ],
)
def test_bad_arguments_are_named(q, k, v, options, error, text):
    for gradient in (False, True):
        query = q.clone().requires_grad_() if gradient and q.is_floating_point() else q
        with pytest.raises(error, match=text):
            attention_with_map(query, k, v, **options)
    if v is K:
        with pytest.raises(error, match=text):
            attention_map(q, k, **options)


def test_the_registered_ops_check_too():
    ops = torch.ops.cpgr_kernels
    out, maps, lse = ops.attention_with_map(Q, K, K, None, None, None, False, 1.0)
    common = (None, None, None, False, 1.0)
    with pytest.raises(IndexError, match="rows must be"):
        ops.attention_map(Q, K, torch.tensor([99]), None, None, False, 1.0)
    for arguments, text in (
        ((out[:, :, :2], maps, Q, K, K, out, lse), "grad_out must be"),
        ((out, maps[:, :2], Q, K, K, out, lse), "grad_map must be"),
        ((out, maps, Q, K, K, out, lse[:1]), "lse must be"),
        ((out, maps, Q, K, None, None, lse), "grad_out must be None where v is"),
        ((out, maps, Q, K, K, out.double(), lse), "out of q's type"),
    ):
        with pytest.raises((ValueError, TypeError), match=text):
            ops.attention_backward(*arguments, *common)
    # A gradient of another type is converted, not read as what it is not.
    half = ops.attention_backward(torch.ones_like(out).half(), None, Q, K, K, out, lse, *common)
    full = ops.attention_backward(torch.ones_like(out), None, Q, K, K, out, lse, *common)
    torch.testing.assert_close(half, full)


@pytest.mark.parametrize("backend", [None, "reference"])
def test_opcheck(backend):
    shape = (2, 4, 2, 5, 7, 3, 6)
    q, k, v = (x.requires_grad_() for x in make(shape))
    masks = make_mask("padding", shape)["key_padding_mask"], torch.rand(5, 7), False, 0.5, backend
    rows = torch.tensor([1, 4, 1])
    ops = torch.ops.cpgr_kernels
    torch.library.opcheck(ops.attention_with_map.default, (q, k, v, rows, *masks))
    torch.library.opcheck(ops.attention_map.default, (q, k, None, *masks))
    out, maps, lse = (x.detach() for x in ops.attention_with_map(q, k, v, rows, *masks))
    arguments = torch.ones_like(out), torch.ones_like(maps), q.detach(), k.detach(), v.detach(), out, lse, rows, *masks
    torch.library.opcheck(ops.attention_backward.default, arguments)


def test_compile_without_recompiles():
    torch._dynamo.reset()
    graphs = 0

    def count(graph, example_inputs):
        nonlocal graphs
        graphs += 1
        return graph

    def loss(q, k, v, padding):
        out, maps = attention_with_map(q, k, v, key_padding_mask=padding)
        return out.sum() + (maps**2).sum()

    compiled = torch.compile(loss, backend=count, fullgraph=True, dynamic=True)
    for batch, queries, keys in ((2, 5, 9), (3, 17, 40), (4, 33, 77)):
        q, k, v = (x.requires_grad_() for x in make((batch, 4, 4, queries, keys, 8, 8)))
        padding = torch.zeros(batch, keys, dtype=torch.bool)
        wanted = torch.autograd.grad(loss(q, k, v, padding), (q, k, v))
        for actual, truth in zip(torch.autograd.grad(compiled(q, k, v, padding), (q, k, v)), wanted):
            torch.testing.assert_close(actual, truth)
    assert graphs == 1


def test_compiled_backward_runs_the_kernel():
    torch._dynamo.reset()
    q, k, v = (x.requires_grad_() for x in make((2, 4, 2, 5, 9, 8, 8)))

    def loss(q, k, v):
        out, maps = attention_with_map(q, k, v, rows=torch.tensor([0]))
        return out.sum() + (maps**2).sum() + (attention_map(q, k) ** 2).sum()

    wanted = torch.autograd.grad(loss(q, k, v), (q, k, v))
    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    for actual, truth in zip(torch.autograd.grad(compiled(q, k, v), (q, k, v)), wanted):
        torch.testing.assert_close(actual, truth)


def test_no_tensor_of_all_scores_is_made():
    """Forward: no allocation by torch of the size of [B, H, T, S]; scratch of the kernel is a tile's."""
    q, k, v = make((1, 8, 8, 200, 300, 8, 8))
    with torch.profiler.profile(profile_memory=True) as profile:
        attention_with_map(q, k, v, rows=torch.tensor([0]), backend="cpp")
    largest = max(event.cpu_memory_usage for event in profile.key_averages())
    assert largest < 8 * 200 * 300 * 4 / 2
