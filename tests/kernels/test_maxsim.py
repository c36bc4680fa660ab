"""maxsim: the reference's late interaction with masks, and its gradient to the first token that is best."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cpgr_kernels import anchor_scores, maxsim, reference

FUZZ = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
NAN, INF = float("nan"), float("inf")


def make(queries, tokens, documents, length, width, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = (queries, tokens, width), (documents, length, width)
    features = [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes]
    masks = [torch.rand(shape[:2], generator=generator) > 0.3 for shape in shapes]
    return *(each.requires_grad_() for each in features), *masks


def with_gradients(scores, *features):
    grad = torch.randn(scores.shape, generator=torch.Generator().manual_seed(9))
    return scores, *torch.autograd.grad(scores, features, grad.to(scores.dtype))


@pytest.mark.parametrize(
    "size", [(1, 1, 1, 1, 1), (3, 5, 4, 7, 16), (5, 13, 70, 64, 33), (40, 32, 3, 300, 24)], ids=str
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("masked", [False, True])
def test_sizes(isa, size, dtype, masked):
    queries, documents, *masks = make(*size, dtype=dtype)
    masks = masks if masked else (None, None)
    actual = with_gradients(maxsim(queries, documents, *masks, backend="cpp"), queries, documents)
    wide = queries.detach().double().requires_grad_(), documents.detach().double().requires_grad_()
    wanted = with_gradients(reference.maxsim(*wide, *masks), *wide)
    for ours, truth in zip(actual, wanted, strict=True):
        assert ours.dtype is dtype
        assert (ours - truth).norm() <= (1e-13 if dtype is torch.float64 else 2e-6) * truth.norm()


numbers = st.sampled_from([0.0, 1.0, 2.0, -3.0, NAN, INF, -INF])


@FUZZ
@given(rows=st.lists(st.tuples(numbers, st.booleans()), max_size=30), tokens=st.integers(0, 5), data=st.data())
def test_fuzz_masks_ties_and_not_numbers(isa, rows, tokens, data):
    lengths = [each for each in range(1, len(rows) + 1) if len(rows) % each == 0] or [1]
    length = data.draw(st.sampled_from(lengths))
    documents = torch.tensor([row[0] for row in rows]).reshape(-1, length, 1)
    document_mask = torch.tensor([row[1] for row in rows], dtype=torch.bool).reshape(-1, length)
    queries = torch.tensor([[1.0], [-1.0], [2.0], [1.0], [-2.0]])[:tokens].expand(3, tokens, 1)
    query_mask = torch.tensor([[1, 1, 1, 1, 1], [1, 0, 1, 1, 0], [0] * 5], dtype=torch.bool)[:, :tokens]
    op = torch.ops.cpgr_kernels.maxsim
    for masks in ((None, None), (query_mask, document_mask), (None, document_mask), (query_mask, None)):
        scores, indices = op(queries, documents, *masks, "cpp")
        wanted, _ = op(queries, documents, *masks, "reference")
        torch.testing.assert_close(scores, wanted, equal_nan=True)
        # The first of the best, among tokens that count: what the gradient goes to.
        products = torch.einsum("qtd,bnd->qbtn", queries, documents)
        counts = torch.ones_like(document_mask) if masks[1] is None else document_mask
        for q, b, t in torch.cartesian_prod(*map(torch.arange, indices.shape)).reshape(-1, 3).tolist():
            row = [(x == x, -x if x == x else 0, n) for n, x in enumerate(products[q, b, t].tolist()) if counts[b, n]]
            silent = not row or (masks[0] is not None and not query_mask[q, t])
            assert indices[q, b, t] == (-1 if silent else min(row)[2])


def test_one_token_is_anchor_scores(isa):
    queries, documents, *_ = make(6, 1, 5, 7, 20)
    best, _ = anchor_scores(documents, queries.squeeze(1), backend="cpp")
    torch.testing.assert_close(maxsim(queries, documents, backend="cpp"), best.squeeze(-1))


def test_what_does_not_count_gets_no_gradient(isa):
    queries, documents, query_mask, document_mask = make(4, 6, 5, 9, 12, dtype=torch.float32)
    query_mask[1], document_mask[2] = False, False
    scores = maxsim(queries, documents, query_mask, document_mask, backend="cpp")
    assert not scores[1].any() and not scores[:, 2].any()
    grads = torch.autograd.grad(scores.sum(), (queries, documents))
    assert not grads[0][~query_mask].any() and not grads[1][~document_mask].any()
    assert grads[0][query_mask].any(-1).all()


@pytest.mark.parametrize("backend", ["cpp", "reference"])
@pytest.mark.parametrize("size", [(0, 3, 2, 4, 5), (2, 0, 2, 4, 5), (2, 3, 0, 4, 5), (2, 3, 2, 0, 5), (2, 3, 2, 4, 0)])
def test_empty(backend, size):
    queries, documents, *masks = make(*size)
    for given in ((None, None), masks):
        scores = maxsim(queries, documents, *given, backend=backend)
        assert scores.shape == (size[0], size[2]) and not scores.any()
        for grad, features in zip(torch.autograd.grad(scores.sum(), (queries, documents)), (queries, documents)):
            assert grad.shape == features.shape and not grad.any()


def test_low_precision_is_no_worse_than_plain_torch(isa):
    for dtype in (torch.float16, torch.bfloat16):
        queries, documents, *masks = make(5, 9, 8, 20, 64, dtype=dtype)
        truth = reference.maxsim(queries.double(), documents.double(), *masks)
        ours = maxsim(queries, documents, *masks, backend="cpp")
        plain = reference.maxsim(queries, documents, *masks)
        assert (ours - truth).norm() <= 2 * (plain - truth).norm() + 1e-6 * truth.norm()
        grads = torch.autograd.grad(ours.sum(), (queries, documents))
        wanted = torch.autograd.grad(plain.sum(), (queries, documents))
        for actual, expected in zip(grads, wanted, strict=True):
            assert actual.dtype is dtype
            torch.testing.assert_close(actual, expected)


def test_memory_layouts_and_threads():
    queries, documents, *masks = make(12, 9, 40, 30, 70, dtype=torch.float32)
    expected = with_gradients(maxsim(queries, documents, *masks), queries, documents)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        actual = with_gradients(maxsim(queries, documents, *masks), queries, documents)
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))
    strided = maxsim(
        queries.mT.contiguous().mT, documents.mT.contiguous().mT, *(each.t().contiguous().t() for each in masks)
    )
    assert torch.equal(strided, expected[0])


@pytest.mark.parametrize("backend", ["cpp", "reference"])
def test_gradient_in_double(isa, backend):
    queries, documents, *masks = make(3, 4, 2, 5, 3)

    def scores(queries, documents):
        return maxsim(queries, documents, *masks, backend=backend)

    assert torch.autograd.gradcheck(scores, (queries, documents))
    assert torch.autograd.gradgradcheck(scores, (queries, documents))


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"queries": torch.zeros(3, 4)}, ValueError, r"queries must be \[Q, T, D\], got \[3, 4\]"),
        ({"documents": torch.zeros(3, 4)}, ValueError, r"documents must be \[B, N, D\]"),
        ({"documents": torch.zeros(2, 5, 9)}, ValueError, r"same D.*\[3, 4, 8\] and \[2, 5, 9\]"),
        ({"query_mask": torch.ones(3, 5).bool()}, ValueError, r"query_mask must be \[3, 4\], got \[3, 5\]"),
        ({"document_mask": torch.ones(2, 5)}, TypeError, "document_mask must be bool.*float32"),
        ({"documents": torch.zeros(2, 5, 8, device="meta")}, ValueError, "documents is on meta"),
        ({"queries": torch.zeros(3, 4, 8).int(), "documents": torch.zeros(2, 5, 8).int()}, TypeError, "floating point"),
    ],
)
def test_bad_arguments_are_named(change, error, text):
    arguments = {"queries": torch.zeros(3, 4, 8), "documents": torch.zeros(2, 5, 8), **change}
    with pytest.raises(error, match=text):
        maxsim(**arguments)


def test_the_registered_backward_checks_too():
    queries, documents, *_ = make(3, 4, 2, 5, 8, dtype=torch.float32)
    grad, indices = torch.ones(3, 2), torch.zeros(3, 2, 4, dtype=torch.int32)
    backward = torch.ops.cpgr_kernels.maxsim_backward
    with pytest.raises(ValueError, match="grad must be"):
        backward(grad[:1], queries, documents, indices)
    with pytest.raises(ValueError, match="indices must be"):
        backward(grad, queries, documents, indices.long())
    for wrong in (-2, 5):
        with pytest.raises(IndexError, match=r"indices must be in -1..4"):
            backward(grad, queries, documents, torch.full_like(indices, wrong), "cpp")


@pytest.mark.parametrize("backend", [None, "reference"])
def test_opcheck(backend):
    queries, documents, *masks = make(3, 4, 2, 5, 8, dtype=torch.float32)
    op = torch.ops.cpgr_kernels.maxsim.default
    torch.library.opcheck(op, (queries, documents, *masks, backend))
    with torch.no_grad():
        scores, indices = op(queries, documents, *masks, backend)
    arguments = (scores, queries.detach(), documents.detach(), indices, backend)
    torch.library.opcheck(torch.ops.cpgr_kernels.maxsim_backward.default, arguments)


def test_compile_without_recompiles():
    torch._dynamo.reset()
    compiled_graphs = 0

    def count(graph, example_inputs):
        nonlocal compiled_graphs
        compiled_graphs += 1
        return graph

    compiled = torch.compile(maxsim, backend=count, fullgraph=True, dynamic=True)
    for size in ((3, 5, 4, 6, 8), (7, 4, 9, 2, 16), (2, 33, 17, 70, 5)):
        queries, documents, *masks = make(*size)
        wanted = with_gradients(maxsim(queries, documents, *masks), queries, documents)
        actual = with_gradients(compiled(queries, documents, *masks), queries, documents)
        assert all(torch.equal(a, b) for a, b in zip(actual, wanted, strict=True))
    assert compiled_graphs == 1
