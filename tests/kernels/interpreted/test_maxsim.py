"""maxsim in Triton: the reference's values, masks, ties, NaN, gradients."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import cpgr_kernels
from cpgr_kernels import reference
from cpgr_kernels.triton_kernels import maxsim as kernels

NAN, INF = float("nan"), float("inf")
TYPES = [torch.float32, torch.float16, torch.bfloat16]


def problem(queries, tokens, documents, count, features, dtype=torch.float32, masked=False, seed=0):
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.randn(queries, tokens, features, generator=generator).to(dtype)
    items = torch.randn(documents, count, features, generator=generator).to(dtype)
    if not masked:
        return vectors, items, None, None
    query_mask = torch.rand(queries, tokens, generator=generator) > 0.3
    document_mask = torch.rand(documents, count, generator=generator) > 0.5
    query_mask[-1], document_mask[0] = False, False
    return vectors, items, query_mask, document_mask


def exact(vectors, items, query_mask, document_mask):
    """Scores in float64 and the first token that has each maximum."""
    similarity = torch.einsum("qtd,bnd->qbtn", vectors.double(), items.double())
    if document_mask is not None:
        similarity = similarity.masked_fill(~document_mask[None, :, None], -INF)
    indices = similarity.sort(dim=-1, descending=True, stable=True).indices[..., 0]
    if document_mask is not None:
        indices = indices.masked_fill(~document_mask.any(-1)[None, :, None], -1)
    if query_mask is not None:
        indices = indices.masked_fill(~query_mask[:, None], -1)
    return reference.maxsim(vectors.double(), items.double(), query_mask, document_mask), indices


SHAPES = [
    (1, 1, 1, 1, 1),
    (5, 7, 3, 17, 24),
    (2, 5, 2, 65, 128),  # one chunk of features, two tiles of tokens
    (1, 33, 2, 130, 40),
]
CASES = [(shape, dtype, masked) for shape in SHAPES for dtype in TYPES for masked in (False, True)]
# Queries longer than a program's rows, more features than one chunk.
CASES += [((1, 70, 1, 9, 136), torch.float32, True), ((1, 130, 1, 9, 136), torch.bfloat16, False)]


@pytest.mark.parametrize(("shape", "dtype", "masked"), CASES)
def test_values_and_gradients(shape, dtype, masked):
    arguments = problem(*shape, dtype, masked)
    scores, indices = kernels.maxsim_forward(*arguments)
    expected, order = exact(*arguments)
    assert scores.dtype == torch.float32 and indices.dtype == torch.int32
    torch.testing.assert_close(scores.double(), expected, rtol=1e-5, atol=1e-4)
    assert torch.equal(indices.long(), order)  # these similarities differ by more than rounding

    grad = torch.randn(scores.shape, generator=torch.Generator().manual_seed(1))
    vectors, items = arguments[:2]
    grads = kernels.maxsim_backward(grad, vectors, items, indices)
    exact_grads = reference.maxsim_backward(grad.double(), vectors.double(), items.double(), indices)
    plain = reference.maxsim_backward(grad.to(dtype).to(torch.float32), vectors, items, indices)
    for actual, true, rounded in zip(grads, exact_grads, plain, strict=True):
        assert actual.dtype == dtype
        # The interpreter truncates to bfloat16 where a GPU rounds.
        rounding = torch.finfo(dtype).eps * true.abs().max()
        error, plain_error = ((each.double() - true).abs().max() for each in (actual, rounded.to(dtype)))
        assert error <= 2 * plain_error + rounding
    chosen = torch.zeros(items.shape[:2], dtype=torch.bool)
    for document in range(len(items)):
        chosen[document, order[:, document][order[:, document] >= 0]] = True
    assert not grads[1][~chosen].any()
    again = kernels.maxsim_backward(grad, vectors, items, indices)
    assert torch.equal(grads[0], again[0]) and torch.equal(grads[1], again[1])


@settings(max_examples=15, deadline=None)
@given(
    queries=st.integers(1, 5),
    tokens=st.integers(1, 20),
    documents=st.integers(1, 5),
    count=st.integers(1, 40),
    features=st.integers(1, 24),
    dtype=st.sampled_from(TYPES),
    masked=st.booleans(),
    tile=st.sampled_from([16, 64]),
)
def test_fuzz_on_integers(queries, tokens, documents, count, features, dtype, masked, tile):
    """Small integers are exact in every type, and tie often."""
    vectors, items, *masks = problem(queries, tokens, documents, count, features, dtype, masked)
    vectors, items = vectors.round(), items.round()
    config = {"TILE": tile, "PACK": 4, "TOKENS": 8}
    scores, indices = kernels.maxsim_forward(vectors, items, *masks, config=config)
    expected, order = exact(vectors, items, *masks)
    assert torch.equal(scores.double(), expected) and torch.equal(indices.long(), order)


def test_nan_reaches_the_scores_of_its_tokens_alone():
    vectors, items, *_ = problem(3, 4, 3, 70, 8)
    vectors[0, 1, 3] = NAN
    items[1, 66, 2] = NAN
    items[2, 5] = NAN
    document_mask = torch.ones(3, 70, dtype=torch.bool)
    document_mask[2, 5] = False
    query_mask = torch.ones(3, 4, dtype=torch.bool)
    query_mask[:, 1] = False  # the NaN token of query 0 and two others
    for hidden in (False, True):
        mask = query_mask if hidden else None
        scores, indices = kernels.maxsim_forward(vectors, items, mask, document_mask)
        expected = reference.maxsim(vectors, items, mask, document_mask)
        torch.testing.assert_close(scores, expected, rtol=1e-5, atol=1e-5, equal_nan=True)
        assert scores.isnan().any() and not scores.isnan().all()
        assert (indices >= 0).sum() == 36 - (3 * 3 if hidden else 0) and (indices < 70).all()


@pytest.mark.parametrize(
    ("shape", "empty"),
    [
        ((0, 3, 2, 4, 8), False),
        ((2, 0, 2, 4, 8), False),
        ((2, 3, 0, 4, 8), False),
        ((2, 3, 2, 0, 8), True),
        ((2, 3, 2, 4, 0), False),
    ],
)
def test_empty(shape, empty):
    vectors, items, *_ = problem(*shape)
    scores, indices = kernels.maxsim_forward(vectors, items, None, None)
    assert scores.shape == (shape[0], shape[2]) and not scores.any()
    assert indices.shape == (shape[0], shape[2], shape[1]) and (indices == (-1 if empty else 0)).all()
    grads = kernels.maxsim_backward(torch.ones_like(scores), vectors, items, indices)
    assert grads[0].shape == vectors.shape and grads[1].shape == items.shape
    assert not grads[0].any() and not grads[1].any()


def test_float64_by_the_reference():
    vectors, items, *_ = problem(2, 3, 2, 5, 8, torch.float64)
    scores, indices = kernels.maxsim_forward(vectors, items, None, None)
    assert scores.dtype == torch.float64
    assert torch.equal(scores, reference.maxsim(vectors, items))
    grads = kernels.maxsim_backward(torch.ones_like(scores), vectors, items, indices)
    torch.testing.assert_close(grads, reference.maxsim_backward(torch.ones_like(scores), vectors, items, indices))


def test_through_the_op():
    arguments = problem(3, 5, 4, 9, 16, masked=True)
    results = []
    for backend in ("triton", "reference"):
        vectors, items = (each.clone().requires_grad_() for each in arguments[:2])
        scores = cpgr_kernels.maxsim(vectors, items, *arguments[2:], backend=backend)
        scores.square().sum().backward()
        results.append((scores.detach(), vectors.grad, items.grad))
    torch.testing.assert_close(*results)
