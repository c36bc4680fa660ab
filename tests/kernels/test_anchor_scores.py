"""anchor_scores: the reference's winners and scores on every instruction set, and a gradient that touches them alone."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cpgr_kernels import anchor_scores, reference

FUZZ = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
NAN, INF = float("nan"), float("inf")
# Images, anchors, features, queries, k: around the sizes of registers, panels, tiles and blocks, with more than one
# block of queries and of images in the last two.
SIZES = [
    (1, 1, 1, 1, 1),
    (5, 7, 16, 5, 2),
    (3, 17, 63, 65, 1),
    (9, 170, 33, 47, 3),
    (2, 300, 40, 20, 2),
    (4, 6, 5, 15, 6),
    (70, 3, 65, 130, 2),
    (2, 66, 3, 1030, 2),
]


def make(images, count, width, queries, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    anchors = torch.randn(images, count, width, generator=generator, dtype=torch.float64)
    return anchors.to(dtype), torch.randn(queries, width, generator=generator, dtype=torch.float64).to(dtype)


def best(scores, k):
    """The definition in plain Python: descending, NaN first, equal scores in the order of their anchors."""
    rows = scores.flatten(0, 1).tolist()
    order = [
        sorted(range(len(row)), key=lambda n: (row[n] == row[n], -row[n] if row[n] == row[n] else 0)) for row in rows
    ]
    indices = torch.tensor([each[:k] for each in order]).reshape(*scores.shape[:2], k)
    return scores.gather(-1, indices), indices


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_sizes(isa, size, dtype):
    *shape, k = size
    anchors, queries = make(*shape, dtype=dtype)
    values, indices = anchor_scores(anchors, queries, k, backend="cpp")
    assert indices.dtype == torch.int64 and values.dtype == (dtype if dtype == torch.float64 else torch.float32)
    truth = torch.einsum("bnd,qd->qbn", anchors.double(), queries.double())
    # Each score is that of its anchor, and no anchor left out is above the last one by more than rounding.
    close = {"rtol": 1e-12, "atol": 1e-12} if dtype is torch.float64 else {"rtol": 2e-6, "atol": 2e-5}
    torch.testing.assert_close(values.double(), truth.gather(-1, indices), **close)
    torch.testing.assert_close(values.double(), truth.topk(k).values, **close)
    assert (indices.sort(-1).values.diff(dim=-1) > 0).all()


scores = st.sampled_from([0.0, -0.0, 1.0, 2.0, 3.0, -5.0, NAN, INF, -INF])


@FUZZ
@given(rows=st.lists(scores, min_size=1, max_size=60), queries=st.integers(1, 40), data=st.data())
def test_fuzz_ties_and_not_numbers(isa, rows, queries, data):
    count = data.draw(st.sampled_from([each for each in range(1, len(rows) + 1) if len(rows) % each == 0]))
    k = data.draw(st.integers(1, count))
    dtype = data.draw(st.sampled_from([torch.float32, torch.float64]))
    # One feature, and queries of 1: the scores are the anchors.
    anchors = torch.tensor(rows, dtype=dtype).reshape(-1, count, 1)
    wanted, where = best(anchors.squeeze(-1).expand(queries, -1, -1), k)
    values, indices = anchor_scores(anchors, torch.ones(queries, 1, dtype=dtype), k, backend="cpp")
    torch.testing.assert_close(values, wanted, rtol=0, atol=0, equal_nan=True)
    assert torch.equal(indices, where)


@pytest.mark.parametrize("at", [0, 131, 132, 500])
@pytest.mark.parametrize("k", [1, 2, 3])
def test_one_nan_among_many_tiles(isa, at, k):
    anchors, queries = make(2, 600, 4, 3, dtype=torch.float32)
    anchors[1, at] = NAN
    values, indices = anchor_scores(anchors, queries, k, backend="cpp")
    assert (indices[:, 1, 0] == at).all() and values[:, 1, 0].isnan().all()
    assert not values[:, 0].isnan().any() and not values[:, 1, 1:].isnan().any()
    _, without = anchor_scores(torch.cat([anchors[:, :at], anchors[:, at + 1 :]], 1), queries, k, backend="cpp")
    assert torch.equal(indices[:, 1, 1:], without[:, 1, : k - 1] + (without[:, 1, : k - 1] >= at))


def test_equal_scores_take_the_lowest_index(isa):
    for k in (1, 2, 5):
        _, indices = anchor_scores(torch.ones(2, 300, 3), torch.ones(70, 3), k, backend="cpp")
        assert torch.equal(indices, torch.arange(k).expand(70, 2, k))


def test_types():
    anchors, queries = make(3, 5, 8, 4)
    values, _ = anchor_scores(anchors.half(), queries.half(), 2)
    torch.testing.assert_close(values, reference.anchor_scores(anchors.half(), queries.half(), 2)[0])
    assert anchor_scores(anchors, queries.float())[0].dtype == torch.float64
    mixed, _ = anchor_scores(anchors.bfloat16(), queries.float())
    torch.testing.assert_close(mixed, reference.anchor_scores(anchors.bfloat16().float(), queries.float())[0])


def test_memory_layouts():
    anchors, queries = make(3, 5, 8, 4)
    wanted = anchor_scores(anchors, queries, 2)
    wide = torch.zeros(4, 20, dtype=queries.dtype)
    wide[:, 3:11] = queries
    for given in (anchors.transpose(0, 1).contiguous().transpose(0, 1), anchors.mT.contiguous().mT):
        for actual, expected in zip(anchor_scores(given, wide[:, 3:11], 2), wanted, strict=True):
            assert torch.equal(actual, expected)


@pytest.mark.parametrize("backend", ["cpp", "reference"])
def test_empty(backend):
    for images, width, queries in ((0, 4, 3), (3, 4, 0), (2, 0, 3)):
        anchors = torch.zeros(images, 5, width, requires_grad=True)
        given = torch.zeros(queries, width, requires_grad=True)
        values, indices = anchor_scores(anchors, given, 2, backend=backend)
        assert values.shape == indices.shape == (queries, images, 2) and not values.any()
        values.sum().backward()
        assert anchors.grad.shape == anchors.shape and not anchors.grad.any() and not given.grad.any()


def test_threads_give_the_same():
    for size in ((40, 17, 96, 130), (1, 400, 130, 700)):
        anchors, queries = (each.requires_grad_() for each in make(*size, dtype=torch.float32))

        def both(anchors=anchors, queries=queries):
            values, indices = anchor_scores(anchors, queries, 2, backend="cpp")
            return values, indices, *torch.autograd.grad(values.square().sum(), (anchors, queries))

        before, expected = torch.get_num_threads(), both()
        torch.set_num_threads(3)
        try:
            assert all(torch.equal(a, b) for a, b in zip(both(), expected, strict=True))
        finally:
            torch.set_num_threads(before)


@pytest.mark.parametrize("backend", ["cpp", "reference"])
def test_gradient_in_double(isa, backend):
    anchors, queries = (each.requires_grad_() for each in make(3, 5, 4, 4))

    def scores(anchors, queries):
        return anchor_scores(anchors, queries, 2, backend=backend)[0]

    assert torch.autograd.gradcheck(scores, (anchors, queries))
    assert torch.autograd.gradgradcheck(scores, (anchors, queries))


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradient(isa, size, dtype):
    *shape, k = size
    anchors, queries = (each.requires_grad_() for each in make(*shape, dtype=dtype))
    values, indices = anchor_scores(anchors, queries, k, backend="cpp")
    grad = torch.randn(values.shape, generator=torch.Generator().manual_seed(1), dtype=dtype)
    actual = torch.autograd.grad(values, (anchors, queries), grad)
    wanted = reference.anchor_scores_backward(grad.double(), anchors.double(), queries.double(), indices)
    for gradient, truth in zip(actual, wanted, strict=True):
        assert (gradient - truth).norm() <= (1e-14 if dtype is torch.float64 else 1e-6) * truth.norm()
    # Anchors that win nowhere get nothing.
    wins = torch.zeros(anchors.shape[:2], dtype=torch.bool)
    images = torch.arange(len(anchors))[None, :, None].expand_as(indices)
    wins[images, indices] = True
    assert not actual[0][~wins].any()


def test_gradient_keeps_the_type():
    for dtype in (torch.float16, torch.bfloat16):
        anchors, queries = (each.requires_grad_() for each in make(3, 5, 40, 4, dtype=dtype))
        grads = torch.autograd.grad(anchor_scores(anchors, queries)[0].sum(), (anchors, queries))
        wanted = torch.autograd.grad(reference.anchor_scores(anchors, queries)[0].sum(), (anchors, queries))
        for actual, truth in zip(grads, wanted, strict=True):
            assert actual.dtype == dtype
            torch.testing.assert_close(actual, truth)


@pytest.mark.parametrize(
    ("anchors", "queries", "k", "error", "text"),
    [
        (torch.zeros(3, 4), torch.zeros(2, 4), 1, ValueError, r"anchors must be \[B, N, D\], got \[3, 4\]"),
        (torch.zeros(3, 4, 5), torch.zeros(5), 1, ValueError, r"queries must be \[Q, D\], got \[5\]"),
        (torch.zeros(3, 4, 5), torch.zeros(2, 6), 1, ValueError, r"same D.*\[3, 4, 5\] and \[2, 6\]"),
        (torch.zeros(3, 4, 5), torch.zeros(2, 5), 5, ValueError, r"k must be in 1..N.*got 5 with N = 4"),
        (torch.zeros(3, 4, 5), torch.zeros(2, 5), 0, ValueError, "k must be in 1..N"),
        (torch.zeros(3, 0, 5), torch.zeros(2, 5), 1, ValueError, "k must be in 1..N"),
        (torch.zeros(3, 4, 5).long(), torch.zeros(2, 5).long(), 1, TypeError, "anchors must be floating.*int64"),
        (torch.zeros(3, 4, 5), torch.zeros(2, 5, device="meta"), 1, ValueError, "queries is on meta"),
    ],
)
def test_bad_arguments_are_named(anchors, queries, k, error, text):
    with pytest.raises(error, match=text):
        anchor_scores(anchors, queries, k)


def test_the_registered_ops_check_too():
    anchors, queries = make(3, 4, 5, 2, dtype=torch.float32)
    backward = torch.ops.cpgr_kernels.anchor_scores_backward
    grad, indices = torch.zeros(2, 3, 1), torch.zeros(2, 3, 1, dtype=torch.int32)
    with pytest.raises(ValueError, match="k must be"):
        torch.ops.cpgr_kernels.anchor_scores(anchors, queries, 9)
    with pytest.raises(TypeError, match="anchors are torch.float32 and queries are torch.float64"):
        torch.ops.cpgr_kernels.anchor_scores(anchors, queries.double(), 1)
    with pytest.raises(ValueError, match="grad and indices"):
        backward(grad[:1], anchors, queries, indices)
    with pytest.raises(ValueError, match="int32"):
        backward(grad, anchors, queries, indices.long())
    for wrong in (-1, 4, 1 << 30):
        with pytest.raises(IndexError, match=r"indices must be in 0..3"):
            backward(grad, anchors, queries, torch.full_like(indices, wrong), "cpp")


@pytest.mark.parametrize("backend", [None, "reference"])
def test_opcheck(backend):
    anchors, queries = (each.requires_grad_() for each in make(3, 5, 4, 4, dtype=torch.float32))
    torch.library.opcheck(torch.ops.cpgr_kernels.anchor_scores.default, (anchors, queries, 2, backend))
    indices = anchor_scores(anchors, queries, 2)[1].int()
    arguments = (torch.rand(4, 3, 2), anchors.detach(), queries.detach(), indices, backend)
    torch.library.opcheck(torch.ops.cpgr_kernels.anchor_scores_backward.default, arguments)


def test_compile_without_recompiles():
    torch._dynamo.reset()
    compiled_graphs = 0

    def count(graph, example_inputs):
        nonlocal compiled_graphs
        compiled_graphs += 1
        return graph

    compiled = torch.compile(lambda a, q: anchor_scores(a, q, 2)[0].sum(), backend=count, fullgraph=True, dynamic=True)
    for size in ((3, 5, 4, 6), (7, 4, 9, 2), (2, 33, 17, 70)):
        anchors, queries = (each.requires_grad_() for each in make(*size))
        wanted = torch.autograd.grad(anchor_scores(anchors, queries, 2)[0].sum(), (anchors, queries))
        actual = torch.autograd.grad(compiled(anchors, queries), (anchors, queries))
        assert all(torch.equal(a, b) for a, b in zip(actual, wanted, strict=True))
    assert compiled_graphs == 1
