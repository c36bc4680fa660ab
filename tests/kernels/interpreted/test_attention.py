"""Attention with a readable map in Triton: the reference's values and gradients, masks, shared heads, chosen rows."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cpgr_kernels import attention_map, attention_with_map, reference
from cpgr_kernels.triton_kernels import attention as kernels

TYPES = [torch.float32, torch.float16, torch.bfloat16]
MASKS = ["none", "padding", "bool", "numbers", "causal", "all"]


def problem(batch=2, heads=4, groups=2, length=21, keys=21, width=24, value_width=20, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = (batch, length, heads, width), (batch, keys, groups, width), (batch, keys, groups, value_width)
    # Laid out as models have them, [B, T, H, D] in memory.
    return [torch.randn(*shape, generator=generator).to(dtype).transpose(1, 2) for shape in shapes]


def masks(kind, q, k, seed=0):
    generator = torch.Generator().manual_seed(seed)
    (batch, heads, length, _), keys = q.shape, k.shape[2]
    found = {}
    if kind in ("padding", "all"):
        found["key_padding_mask"] = torch.rand(batch, keys, generator=generator) < 0.3
        found["key_padding_mask"][0] = True  # nothing to see for a whole sample
    if kind in ("bool", "all"):
        found["attn_mask"] = torch.rand(batch, 1, length, keys, generator=generator) < 0.7
        found["attn_mask"][:, :, 0] = False  # nor for a row
    if kind == "numbers":
        found["attn_mask"] = torch.randn(heads, length, keys, generator=generator)
    if kind in ("causal", "all"):
        found["is_causal"] = True
    return found


def within_rounding(actual, exact, plain):
    """At most twice the error of plain torch at the same precision, and a rounding of the type.

    The interpreter truncates to bfloat16 where a GPU rounds.
    """
    eps = torch.finfo(actual.dtype).eps if actual.dtype is not torch.float32 else 2**-20
    error, plain_error = ((each.double() - exact).abs().max() for each in (actual, plain))
    assert error <= 2 * plain_error + 2 * eps * exact.abs().max(), (error, plain_error)


def plainly(q, k, v, rows, **masked):
    """The torch maths at the type of the inputs, weights rounded to it, as an eager model does it."""
    exact = {name: each.double() if each.is_floating_point() else each for name, each in (("q", q), ("k", k), ("v", v))}
    weights = reference.attention._weights(
        exact["q"],
        exact["k"],
        masked.get("key_padding_mask"),
        masked.get("attn_mask"),
        masked.get("is_causal", False),
        masked.get("scale"),
    )[0].to(q.dtype)
    shared = v.repeat_interleave(q.shape[1] // v.shape[1], 1)
    return (weights @ shared), reference.attention._rows_of(weights.float().mean(1), rows)


def both(q, k, v, rows, **settings):
    """Output, map and gradients of all three for a loss on both."""
    inputs = [each.detach().clone().requires_grad_() for each in (q, k, v)]
    out, maps = attention_with_map(*inputs, rows=rows, **settings)
    generator = torch.Generator().manual_seed(7)
    weights = [torch.randn(each.shape, generator=generator).to(each.dtype) for each in (out, maps)]
    return out, maps, *torch.autograd.grad((out, maps), inputs, weights)


TWICE = torch.tensor([[3, 0, 20, 3], [5, 20, 1, 2]])


@pytest.mark.parametrize(("kind", "rows"), [*((kind, TWICE) for kind in MASKS), ("none", None), ("all", None)])
def test_masks(kind, rows):
    q, k, v = problem()
    settings = masks(kind, q, k) | {"rows": rows}
    wide = [each.double() for each in (q, k, v)]
    exact = both(*wide, **settings, backend="reference")
    plain = both(q, k, v, **settings, backend="reference")
    for actual, truth, theirs in zip(both(q, k, v, **settings, backend="triton"), exact, plain, strict=True):
        within_rounding(actual, truth, theirs)
    if kind in ("padding", "all"):
        out, maps = attention_with_map(q, k, v, **settings, backend="triton")
        assert not out[0].any() and not maps[0].any()


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("widths", [(64, 64), (16, 40), (128, 8)])
def test_types_and_widths(dtype, widths):
    q, k, v = problem(1, 3, 3, 19, 70, *widths, dtype=dtype)
    rows = torch.tensor([1, 18])
    wide = [each.double() for each in (q, k, v)]
    exact = both(*wide, rows, backend="reference")
    plain = both(q, k, v, rows, backend="reference")
    eager = plainly(q, k, v, rows)
    actual = both(q, k, v, rows, backend="triton")
    assert actual[0].dtype is dtype and actual[1].dtype is torch.float32
    # What is kept in the type of the inputs between two products costs what it costs an eager model.
    for each, truth, theirs in zip(actual[:2], exact, eager):
        within_rounding(each, truth, theirs)
    for each, truth, theirs in zip(actual[2:], exact[2:], plain[2:], strict=True):
        allowed = 4 * torch.finfo(dtype).eps if dtype is not torch.float32 else 2**-18
        error, plain_error = ((x.double() - truth).abs().max() for x in (each, theirs))
        assert error <= 2 * plain_error + allowed * truth.abs().max()


@settings(max_examples=6, deadline=None)
@given(
    st.integers(1, 2),
    st.sampled_from([(1, 1), (2, 2), (4, 2), (3, 1)]),
    st.integers(1, 20),
    st.integers(1, 50),
    st.integers(1, 40),
    st.sampled_from([0.3, -0.2, 0.0]),
    st.sampled_from([None, 1, 5]),
    st.sampled_from(["none", "padding", "bool", "numbers"]),
)
def test_fuzz(batch, heads, length, keys, width, scale, chosen, kind):
    q, k, v = problem(batch, *heads, length, keys, width, 17)
    generator = torch.Generator().manual_seed(1)
    rows = None if chosen is None else torch.randint(0, length, (batch, chosen), generator=generator)
    settings = masks(kind, q, k) | {"rows": rows, "scale": scale}
    actual = both(q, k, v, **settings, backend="triton")
    for ours, theirs in zip(actual, both(q, k, v, **settings, backend="reference"), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    alone = attention_map(q, k, **settings, backend="triton")
    torch.testing.assert_close(alone, actual[1].detach(), rtol=1e-5, atol=1e-6)


WAYS = [
    *(("kept scores", kind, torch.float32) for kind in MASKS),
    *(("kept scores", kind, dtype) for kind in ("none", "all") for dtype in (torch.float16, torch.bfloat16)),
    *(("sums", kind, torch.float32) for kind in MASKS),
    ("sums", "all", torch.bfloat16),
    ("sums in chunks", "all", torch.float32),
    ("sums in chunks", "none", torch.bfloat16),
]


@pytest.mark.parametrize(("way", "kind", "dtype"), WAYS)
def test_the_map_alone(monkeypatch, way, kind, dtype):
    monkeypatch.setattr(kernels, "_keeps_scores", lambda *_: way == "kept scores")
    monkeypatch.setattr(kernels, "multiprocessors", lambda _: 1000 if way == "sums in chunks" else 1)
    length = 300 if way == "sums in chunks" else 140  # several blocks of keys
    q, k, v = problem(2, 4, 2, length, length, 32, 16, dtype)
    rows = torch.tensor([[0, length - 1, 7], [2, 2, 1]])
    settings = masks(kind, q, k) | {"rows": rows}
    actual = attention_map(q, k, **settings, backend="triton")
    exact = attention_map(q.double(), k.double(), **settings, backend="reference")
    plain = attention_map(q, k, **settings, backend="reference")
    plain = plain if dtype is torch.float32 else plainly(q, k, v, **settings)[1]
    within_rounding(actual, exact, plain)
    sums = actual.sum(-1)
    assert ((sums - exact.sum(-1)).abs() <= (1e-5 if dtype is torch.float32 else 1e-3)).all()


def test_gradient_of_the_map_alone_reaches_the_chosen_rows_alone():
    q, k, _ = problem(keys=50)
    rows = torch.tensor([3, 5, 3])
    grads = []
    for backend in ("triton", "reference"):
        inputs = [each.detach().clone().requires_grad_() for each in (q, k)]
        maps = attention_map(*inputs, rows=rows, backend=backend)
        weights = torch.randn(maps.shape, generator=torch.Generator().manual_seed(0))
        grads.append(torch.autograd.grad(maps, inputs, weights))
    for ours, theirs in zip(*grads, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
    others = torch.ones(q.shape[2], dtype=torch.bool)
    others[rows] = False
    assert not grads[0][0][:, :, others].any() and grads[0][0][:, :, rows].any()


def test_rows_that_are_not_there_are_zero():
    # On a GPU nobody looks at them; the kernels must.
    q, k, v = problem()
    rows = torch.tensor([[-1, 4, 21], [1 << 40, 0, -(1 << 40)]])
    arguments = rows, None, None, False, 0.2
    there = torch.tensor([[0, 1, 0], [0, 1, 0]], dtype=torch.bool)
    wanted = attention_map(q, k, rows=torch.where(there, rows, 0), scale=0.2, backend="reference")
    for values in (v, None):
        out, maps, lse = kernels.attention_forward(q, k, values, *arguments)
        assert not maps[~there].any()
        torch.testing.assert_close(maps[there], wanted[there], rtol=1e-5, atol=1e-6)
        grad_map = torch.ones_like(maps) * torch.arange(21.0)
        grads = kernels.attention_backward(None, grad_map, q, k, values, out, lse, *arguments)
        rest = grads[0].clone()
        rest[0, :, 4], rest[1, :, 0] = 0, 0
        assert not rest.any() and grads[0].any()


def test_strides_of_all_kinds():
    q, k, v = problem()
    wanted = attention_with_map(q, k, v, backend="reference")
    packed = torch.randn(2, 21, 3, 4, 24)
    packed[:, :, 0] = q.transpose(1, 2)
    shared = attention_with_map(packed[:, :, 0].transpose(1, 2), k.contiguous(), v.flip(2).flip(2), backend="triton")
    for ours, theirs in zip(shared, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    one = q[:1].expand(2, -1, -1, -1)  # queries of a Q-Former, the same for all samples
    ours, theirs = (attention_with_map(one, k, v, backend=backend) for backend in ("triton", "reference"))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    mask = torch.rand(21, 21, generator=torch.Generator().manual_seed(0)).t() > 0.4
    ours, theirs = (attention_with_map(q, k, v, attn_mask=mask, backend=b) for b in ("triton", "reference"))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_nan_stays_in_its_row():
    q, k, v = problem(keys=50)
    q[0, 0, 3] = torch.nan
    out, maps = attention_with_map(q, k, v, backend="triton")
    assert out[0, 0, 3].isnan().all() and maps[0, 3].isnan().all()
    assert out.isnan().sum() == out.shape[-1] and maps.isnan().sum() == maps.shape[-1]


def test_large_scores_do_not_overflow():
    q, k, v = problem()
    ours, theirs = (attention_with_map(q * 100, k * 10, v, backend=b) for b in ("triton", "reference"))
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


def test_double_and_the_widest_heads_are_the_references():
    q, k, v = problem(1, 1, 1, 3, 4, 300, 16)
    for inputs in ((q, k, v), [each.double() for each in (q, k, v)]):
        ours, theirs = (attention_with_map(*inputs, backend=b) for b in ("triton", "reference"))
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


def test_twice_the_same_bits():
    q, k, v = problem(dtype=torch.float16)
    rows = torch.tensor([4, 4, 4, 1])
    first, second = (both(q, k, v, rows, backend="triton") for _ in range(2))
    for ours, theirs in zip(first, second, strict=True):
        assert torch.equal(ours, theirs)
