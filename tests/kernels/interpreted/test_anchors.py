"""anchor_scores and anchor_contrast in Triton: the reference's values, ties, NaN, gradients."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import cpgr_kernels
from cpgr_kernels import reference
from cpgr_kernels.triton_kernels import anchors as kernels
from cpgr_kernels.triton_kernels import gradients, top

NAN, INF = float("nan"), float("inf")
TYPES = [torch.float32, torch.float16, torch.bfloat16]
HALF = [torch.float16, torch.bfloat16]


def problem(queries, images, count, features, dtype=torch.float32, seed=0, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    anchors = torch.randn(images, count, features, generator=generator) * scale
    return anchors.to(dtype), torch.randn(queries, features, generator=generator).to(dtype)


def exact_top(anchors, queries, k):
    """In float64, the lower index first among equals."""
    scores = torch.einsum("bnd,qd->qbn", anchors.double(), queries.double())
    values, indices = scores.sort(dim=-1, descending=True, stable=True)
    return values[..., :k], indices[..., :k]


def large(dtype, count, features, k, **changes):
    """The tiles of a problem that fills a card, for a problem that does not."""
    _, constants, options = top.plan(dtype, 1024, 1024, count, features, k, 132)
    names = ("PACK", "TILE", "REST", "BLOCK_Q", "BLOCK_D")
    return {name: constants[name] for name in names} | options | changes


def large_gradients(dtype, count, features, k):
    (rows, _), (items, options) = gradients.plan(dtype, 4096, 4096, count, 512, k)
    names = ("PACK", "TILE", "REST", "BLOCK_R", "BLOCK_D")
    return {name: items[name] for name in names} | {"GATHER_D": rows["GATHER_D"]} | options


def within_rounding(actual, exact, plain):
    """At most twice the error of plain torch at the same precision, and one rounding of the type.

    The interpreter truncates to bfloat16 where a GPU rounds.
    """
    rounding = torch.finfo(actual.dtype).eps * exact.abs().max()
    error, plain_error = ((each.double() - exact).abs().max() for each in (actual, plain))
    assert error <= 2 * plain_error + rounding, (error, plain_error, rounding)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(
    ("queries", "images", "count", "features", "k"),
    [(1, 1, 1, 1, 1), (5, 3, 17, 24, 2), (3, 2, 40, 70, 3), (17, 9, 4, 64, 4), (2, 3, 169, 100, 2), (3, 2, 300, 16, 8)],
)
def test_scores(queries, images, count, features, k, dtype):
    anchors, vectors = problem(queries, images, count, features, dtype)
    exact, order = exact_top(anchors, vectors, k)
    for config in (None, large(dtype, count, features, k, BLOCK_Q=16)):
        values, indices = kernels.anchor_scores_forward(anchors, vectors, k, config=config)
        assert values.dtype == torch.float32 and indices.dtype == torch.int32
        torch.testing.assert_close(values.double(), exact, rtol=1e-5, atol=1e-5)
        assert torch.equal(indices.long(), order)  # these scores differ by more than rounding


@pytest.mark.parametrize("tile", [{"TILE": 8, "REST": 0}, {"TILE": 16, "REST": 4}, {"TILE": 32, "REST": 0, "PACK": 2}])
def test_equal_scores_keep_the_order_of_anchors(tile):
    anchors = torch.ones(5, 20, 4)
    anchors[1, 7] = anchors[1, 13] = 2
    anchors[2] = -0.0
    anchors[3, :19] = -INF
    anchors[3, 19] = 0
    anchors[4, 3:] = -INF
    queries = torch.ones(2, 4)
    values, indices = kernels.anchor_scores_forward(anchors, queries, 3, config={"PACK": 1, **tile})
    for query in range(2):
        assert indices[query].tolist() == [[0, 1, 2], [7, 13, 0], [0, 1, 2], [19, 0, 1], [0, 1, 2]]
    assert values[0].tolist() == [[4, 4, 4], [8, 8, 4], [0, 0, 0], [0, -INF, -INF], [4, 4, 4]]


@pytest.mark.parametrize("dtype", TYPES)
def test_nan_comes_first(dtype):
    anchors, queries = problem(3, 2, 19, 8, dtype)
    best = exact_top(anchors, queries, 3)[1][:, 1]
    anchors[1, 5] = NAN
    anchors[1, 12] = -NAN
    anchors[0, 4] = INF
    anchors[0, 4, 0] = -INF  # INF - INF, where signs differ
    values, indices = kernels.anchor_scores_forward(anchors, queries, 3, config={"TILE": 16, "REST": 0})
    assert values[:, 1, :2].isnan().all() and not values[:, 1, 2].isnan().any()
    assert indices[:, 1, :2].tolist() == [[5, 12]] * 3
    for query in range(3):
        others = [index for index in best[query].tolist() if index not in (5, 12)]
        assert indices[query, 1, 2] == others[0]
    expected = reference.anchor_scores(anchors, queries, 1)[0][:, 0]
    torch.testing.assert_close(values[:, 0, :1], expected, equal_nan=True, rtol=1e-4, atol=1e-4)


@settings(max_examples=12, deadline=None)
@given(
    queries=st.integers(1, 20),
    images=st.integers(1, 7),
    count=st.integers(1, 40),
    features=st.integers(1, 40),
    k=st.integers(1, 3),
    dtype=st.sampled_from(TYPES),
    packed=st.booleans(),
)
def test_fuzz_on_integers(queries, images, count, features, k, dtype, packed):
    """Small integers are exact in every type, and tie often."""
    k = min(k, count)
    generator = torch.Generator().manual_seed(queries * 1000 + count)
    anchors = torch.randint(-2, 3, (images, count, features), generator=generator).to(dtype)
    vectors = torch.randint(-2, 3, (queries, features), generator=generator).to(dtype)
    config = large(dtype, count, features, k, BLOCK_Q=32) if packed else None
    values, indices = kernels.anchor_scores_forward(anchors, vectors, k, config=config)
    exact, order = exact_top(anchors, vectors, k)
    assert torch.equal(values.double(), exact) and torch.equal(indices.long(), order)
    grad = torch.randint(-3, 4, values.shape, generator=generator).float()
    grad_anchors, grad_queries = kernels.anchor_scores_backward(grad, anchors, vectors, indices)
    dense = torch.zeros(queries, images, count).scatter(-1, indices.long(), grad)
    assert torch.equal(grad_anchors, torch.einsum("qbn,qd->bnd", dense, vectors.float()).to(dtype))
    assert torch.equal(grad_queries, torch.einsum("qbn,bnd->qd", dense, anchors.float()).to(dtype))


def autograd(function, *tensors):
    tensors = [tensor.detach().requires_grad_() for tensor in tensors]
    loss = function(*tensors)
    return loss.detach(), *torch.autograd.grad(loss, tensors)


def eager_contrast(anchors, queries, positive, image_ids, k, scale):
    """The formula in the type of its arguments, as autocast would run it."""
    values = torch.einsum("bnd,qd->qbn", anchors, queries).topk(k).values * scale
    ids = torch.arange(len(anchors)) if image_ids is None else image_ids
    best = values[..., 0].gather(1, positive[:, None])
    absent = ids == ids[positive][:, None]
    negatives = values.masked_fill(absent[..., None], -INF).flatten(1)
    return (torch.logsumexp(torch.cat([best, negatives], 1), 1) - best.squeeze(1)).mean()


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(
    ("queries", "images", "count", "features", "k"),
    [(4, 4, 17, 32, 2), (6, 3, 5, 70, 1), (3, 4, 130, 24, 2)],
)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("tiles", ["small", "large"])
def test_contrast(queries, images, count, features, k, dtype, masked, tiles):
    anchors, vectors = problem(queries, images, count, features, dtype, scale=0.3)
    positive = torch.arange(queries).flip(0) % images
    image_ids = torch.arange(images) // 2 if masked else None
    small = tiles == "small"
    config = None if small else large(dtype, count, features, k, BLOCK_Q=16)
    back = None if small else large_gradients(dtype, count, features, k)

    losses, *saved = kernels.anchor_contrast_forward(anchors, vectors, positive, image_ids, k, 0.5, config=config)
    assert saved[2].dtype == torch.int16
    grad = torch.ones(()).div(queries).expand(queries)  # of a mean, not copied
    grads = kernels.anchor_contrast_backward(grad, anchors, vectors, positive, image_ids, *saved, 0.5, config=back)
    exact = autograd(
        lambda a, q: reference.anchor_contrast(
            a, q, positive=positive, image_ids=image_ids, negatives_per_image=k, temperature=2
        ),
        anchors.double(),
        vectors.double(),
    )
    plain = autograd(lambda a, q: eager_contrast(a, q, positive, image_ids, k, 0.5), anchors, vectors)
    torch.testing.assert_close(losses.double().mean(), exact[0], rtol=2e-6, atol=2e-6)
    for actual, true, rounded in zip(grads, exact[1:], plain[1:], strict=True):
        assert actual.dtype == dtype
        within_rounding(actual, true, rounded)


@pytest.mark.parametrize("dtype", TYPES)
def test_gradients_are_sparse_and_the_same_every_time(dtype):
    anchors, queries = problem(4, 4, 40, 16, dtype)
    _, lse, values, indices = kernels.anchor_contrast_forward(anchors, queries, None, None, 2, 1.0)
    grad = torch.rand(4)
    arguments = (grad, anchors, queries, None, None, lse, values, indices, 1.0)
    grad_anchors, grad_queries = kernels.anchor_contrast_backward(*arguments)
    again = kernels.anchor_contrast_backward(*arguments)
    assert torch.equal(grad_anchors, again[0]) and torch.equal(grad_queries, again[1])
    chosen = torch.zeros(4, 40, dtype=torch.bool)
    for image in range(4):
        chosen[image, indices[:, image].flatten().long()] = True
    assert not grad_anchors[~chosen].any() and (~chosen).any()
    assert grad_queries.any(1).all()


def test_positive_none_is_the_query_itself():
    anchors, queries = problem(4, 4, 6, 16)
    own = torch.arange(4)
    ours, theirs = (kernels.anchor_contrast_forward(anchors, queries, each, None, 2, 1.0) for each in (None, own))
    for first, second in zip(ours, theirs, strict=True):
        assert torch.equal(first, second)
    grad = torch.rand(4)
    ours = kernels.anchor_contrast_backward(grad, anchors, queries, None, None, *ours[1:], 1.0)
    theirs = kernels.anchor_contrast_backward(grad, anchors, queries, own, None, *theirs[1:], 1.0)
    assert torch.equal(ours[0], theirs[0]) and torch.equal(ours[1], theirs[1])


def test_loss_of_many_images_and_extreme_scores():
    """More scores than one block holds, and sums that only a running maximum survives."""
    anchors, queries = problem(2, 140, 8, 4, scale=30)
    positive = torch.tensor([3, 139])
    config = {"PACK": 16, "TILE": 8, "BLOCK_Q": 16}
    losses, lse, *_ = kernels.anchor_contrast_forward(anchors, queries, positive, None, 8, 5.0, config=config)
    exact = reference.anchor_contrast_terms(anchors.double(), queries.double(), positive, None, 8, 5.0)
    torch.testing.assert_close(losses.double(), exact[0], rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(lse.double(), exact[1], rtol=1e-6, atol=1e-4)


def test_infinite_and_nan_scores_as_in_the_reference():
    anchors, queries = problem(4, 4, 3, 2)
    queries.abs_()
    anchors[1, 0] = NAN
    anchors[2, 0] = INF
    anchors[3] = -INF
    ids = torch.tensor([0, 1, 1, 2])  # queries 1 and 2 do not see each other's image
    for image_ids in (None, ids):
        losses, lse, *_ = kernels.anchor_contrast_forward(anchors, queries, torch.arange(4), image_ids, 2, 1.0)
        expected = reference.anchor_contrast_terms(anchors, queries, torch.arange(4), image_ids, 2, 1.0)
        torch.testing.assert_close(losses, expected[0], equal_nan=True)
        torch.testing.assert_close(lse, expected[1], equal_nan=True)


def test_one_image_has_no_loss():
    anchors, queries = problem(3, 1, 4, 8)
    positive = torch.zeros(3, dtype=torch.int64)
    losses, *saved = kernels.anchor_contrast_forward(anchors, queries, positive, None, 2, 1.0)
    assert losses.tolist() == [0, 0, 0]
    grads = kernels.anchor_contrast_backward(torch.ones(3), anchors, queries, positive, None, *saved, 1.0)
    assert not grads[0].any() and not grads[1].any()


@pytest.mark.parametrize("wrong", [-1, 3, 2**40])
def test_a_positive_out_of_range_gives_nan(wrong):
    anchors, queries = problem(2, 3, 4, 8)
    positive = torch.tensor([0, wrong])
    losses, *saved = kernels.anchor_contrast_forward(anchors, queries, positive, None, 2, 1.0)
    assert losses.isnan().tolist() == [False, True]
    _, grad_queries = kernels.anchor_contrast_backward(torch.ones(2), anchors, queries, positive, None, *saved, 1.0)
    assert grad_queries[0].isfinite().all() and grad_queries[1].isnan().all()


def test_indices_out_of_range_choose_nothing():
    anchors, queries = problem(2, 1, 4, 8)
    indices = torch.tensor([[[-1, 4]], [[2**30, 3]]], dtype=torch.int32)
    grad_anchors, grad_queries = kernels.anchor_scores_backward(torch.ones(2, 1, 2), anchors, queries, indices)
    assert not grad_anchors[0, :3].any() and torch.equal(grad_anchors[0, 3], queries[1])
    assert not grad_queries[0].any() and torch.equal(grad_queries[1], anchors[0, 3])


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize(("size", "length"), [(1e-9, 1e4), (1e8, 1e-5)])
def test_gradients_of_any_size(dtype, size, length):
    """Weights that float16 cannot hold, times vectors that bring the sum back into its range."""
    anchors, queries = problem(4, 2, 6, 16, dtype)
    queries = (queries.float() * length).to(dtype)
    _, indices = kernels.anchor_scores_forward(anchors, queries, 2)
    grad = (torch.rand(4, 2, 2) + 0.1) * size
    grad_anchors, _ = kernels.anchor_scores_backward(grad, anchors, queries, indices)
    exact = reference.anchor_scores_backward(grad.double(), anchors.double(), queries.double(), indices)[0]
    within_rounding(grad_anchors, exact, exact.to(dtype))


@pytest.mark.parametrize("shape", [(0, 3, 4, 8), (3, 0, 4, 8), (0, 0, 4, 8), (2, 2, 4, 0)])
def test_empty(shape):
    anchors, queries = problem(*shape)
    values, indices = kernels.anchor_scores_forward(anchors, queries, 2)
    assert values.shape == indices.shape == (*shape[:2], 2) and not values.any()
    grads = kernels.anchor_scores_backward(torch.ones_like(values), anchors, queries, indices)
    assert grads[0].shape == anchors.shape and grads[1].shape == queries.shape
    assert not grads[0].any() and not grads[1].any()
    if shape[1]:
        positive = torch.zeros(shape[0], dtype=torch.int64)
        losses, *_ = kernels.anchor_contrast_forward(anchors, queries, positive, None, 2, 1.0)
        assert losses.shape == (shape[0],)


@pytest.mark.parametrize(("k", "dtype"), [(12, torch.float32), (2, torch.float64)])
def test_the_reference_takes_what_the_kernels_do_not(k, dtype):
    anchors, queries = problem(3, 3, 14, 8, dtype)
    values, indices = kernels.anchor_scores_forward(anchors, queries, k)
    assert torch.equal(indices.long(), exact_top(anchors, queries, k)[1]) and values.dtype == dtype
    losses, *saved = kernels.anchor_contrast_forward(anchors, queries, None, None, k, 1.0)
    grads = kernels.anchor_contrast_backward(torch.ones(3), anchors, queries, None, None, *saved, 1.0)
    exact = autograd(lambda a, q: reference.anchor_contrast(a, q, negatives_per_image=k) * 3, anchors, queries)
    torch.testing.assert_close(losses.sum(), exact[0])
    torch.testing.assert_close(grads, exact[1:])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_launches_of_refclips_shape(dtype, monkeypatch):
    """Two forward, one backward."""
    launched = []
    for module, name in ((top, "_top_kernel"), (kernels, "_loss_kernel"), (gradients, "_gradients_kernel")):
        recorder = type(
            "Recorder", (), {"__getitem__": lambda self, grid, name=name: lambda *_, **__: launched.append(name)}
        )
        monkeypatch.setattr(module, name, recorder())
    anchors, queries = problem(64, 64, 17, 512, dtype)
    losses, *saved = kernels.anchor_contrast_forward(anchors, queries, None, None, 2, 1.0)
    kernels.anchor_contrast_backward(losses, anchors, queries, None, None, *saved, 1.0)
    assert launched == ["_top_kernel", "_loss_kernel", "_gradients_kernel"]
    kept = sum(each.numel() * each.element_size() for each in saved[1:])
    assert kept == 12 * 64 * 64


def test_through_the_ops():
    anchors, queries = problem(5, 5, 9, 24)

    def results(backend):
        return autograd(
            lambda a, q: cpgr_kernels.anchor_contrast(a, q, temperature=0.5, backend=backend), anchors, queries
        )

    torch.testing.assert_close(results("triton"), results("reference"))
    scores = [cpgr_kernels.anchor_scores(anchors, queries, k=3, backend=each) for each in ("triton", "reference")]
    torch.testing.assert_close(*scores, check_dtype=False)
