"""anchor_contrast: RefCLIP's published loss, its options, and a gradient that needs 12 bytes a query and image."""

import runpy
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cpgr_kernels import anchor_contrast, reference

refclip_loss = runpy.run_path(str(Path(__file__).with_name("refclip_loss.py")))["refclip_loss"]
FUZZ = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
NAN, INF = float("nan"), float("inf")
SIZES = [(2, 2, 1), (5, 7, 16), (64, 17, 64), (9, 170, 33), (3, 600, 40), (70, 3, 65)]


def make(images, count, width, queries=None, dtype=torch.float64, seed=0):
    """Features whose products are of the order of 1, as after training with a temperature."""
    generator = torch.Generator().manual_seed(seed)
    scale = width**-0.25
    anchors = torch.randn(images, count, width, generator=generator, dtype=torch.float64) * scale
    given = torch.randn(queries or images, width, generator=generator, dtype=torch.float64) * scale
    return anchors.to(dtype).requires_grad_(), given.to(dtype).requires_grad_()


def with_gradients(loss, *features):
    return loss, *torch.autograd.grad(loss, features)


@pytest.mark.parametrize("backend", ["cpp", "reference"])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_refclips_loss_and_gradients_in_double(isa, size, backend):
    anchors, queries = make(*size)
    actual = with_gradients(anchor_contrast(anchors, queries, backend=backend), anchors, queries)
    wanted = with_gradients(refclip_loss(anchors, queries.unsqueeze(1)), anchors, queries)
    for ours, theirs in zip(actual, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("size", [(64, 17, 512), *SIZES[1:]], ids=str)
def test_single_precision_is_near_double(isa, size):
    anchors, queries = make(*size, dtype=torch.float32)
    actual = with_gradients(anchor_contrast(anchors, queries, backend="cpp"), anchors, queries)
    wide = anchors.detach().double().requires_grad_(), queries.detach().double().requires_grad_()
    wanted = with_gradients(reference.anchor_contrast(*wide), *wide)
    for ours, truth in zip(actual, wanted, strict=True):
        assert (ours - truth).norm() <= 1e-6 * truth.norm()


def test_bfloat16_is_no_worse_than_plain_torch(isa):
    anchors, queries = make(40, 17, 130, dtype=torch.bfloat16)
    wide = anchors.detach().double().requires_grad_(), queries.detach().double().requires_grad_()
    truth = with_gradients(reference.anchor_contrast(*wide), *wide)
    ours = with_gradients(anchor_contrast(anchors, queries, backend="cpp"), anchors, queries)
    plain = with_gradients(reference.anchor_contrast(anchors, queries), anchors, queries)
    assert ours[1].dtype is torch.bfloat16
    for a, b, wanted in zip(ours, plain, truth, strict=True):
        rounding = 1e-6 * wanted.norm()  # of float32 sums: the products of bfloat16 are exact in it
        assert (a - wanted).norm() <= 2 * (b - wanted).norm() + rounding


@FUZZ
@given(
    images=st.integers(1, 12),
    count=st.integers(1, 9),
    width=st.integers(0, 20),
    queries=st.integers(1, 40),
    data=st.data(),
)
def test_fuzz_options(isa, images, count, width, queries, data):
    dtype = data.draw(st.sampled_from([torch.float32, torch.float64]))
    anchors, given = make(images, count, width or 1, queries, dtype, seed=images)
    anchors, given = (each.detach()[..., :width].requires_grad_() for each in (anchors, given))
    some = st.lists(st.integers(0, images - 1), min_size=queries, max_size=queries)
    ids = st.lists(st.integers(-2, 2), min_size=images, max_size=images)
    options = {
        "positive": torch.tensor(data.draw(some)),
        "image_ids": data.draw(st.one_of(st.none(), ids.map(torch.tensor))),
        "negatives_per_image": data.draw(st.integers(1, count)),
        "temperature": data.draw(st.sampled_from([0.07, 1.0, 3.0])),
        "normalize": data.draw(st.booleans()),
    }
    actual = with_gradients(anchor_contrast(anchors, given, **options, backend="cpp"), anchors, given)
    wide = anchors.detach().double().requires_grad_(), given.detach().double().requires_grad_()
    wanted = with_gradients(reference.anchor_contrast(*wide, **options), *wide)
    rtol = 1e-11 if dtype is torch.float64 else 2e-5
    for ours, truth in zip(actual, wanted, strict=True):
        torch.testing.assert_close(ours.double(), truth, rtol=rtol, atol=rtol)


def test_images_of_one_id_are_no_negatives():
    anchors, queries = make(4, 5, 8)
    ids = torch.tensor([7, 8, 7, 9])
    loss = anchor_contrast(anchors, queries, image_ids=ids)
    # Query by query, with the images that count: for images 0 and 2 without each other.
    kept = ([0, 1, 3], 0), ([0, 1, 2, 3], 1), ([1, 2, 3], 1), ([0, 1, 2, 3], 3)
    each = [
        anchor_contrast(anchors[images], queries[q : q + 1], positive=torch.tensor([own]))
        for q, (images, own) in enumerate(kept)
    ]
    torch.testing.assert_close(loss, torch.stack(each).mean())


def test_several_queries_an_image():
    anchors, queries = make(3, 5, 8, queries=7)
    positive = torch.tensor([0, 0, 2, 1, 1, 1, 2])
    wanted = torch.stack(
        [anchor_contrast(anchors, queries[q : q + 1], positive=positive[q : q + 1]) for q in range(7)]
    ).mean()
    for integers in (positive, positive.int(), positive.to(torch.uint8)):
        torch.testing.assert_close(anchor_contrast(anchors, queries, positive=integers), wanted)


def test_one_image_and_no_query(isa):
    anchors, queries = make(1, 5, 8)
    loss, *grads = with_gradients(anchor_contrast(anchors, queries, backend="cpp"), anchors, queries)
    assert loss == 0 and not any(each.any() for each in grads)
    for backend in ("cpp", "reference"):
        nothing = torch.zeros(0, 8, requires_grad=True)
        loss = anchor_contrast(anchors, nothing, positive=torch.zeros(0).long(), backend=backend)
        assert loss.isnan()
        loss.backward()
        assert nothing.grad.shape == (0, 8)


def test_a_small_loss_keeps_its_digits(isa):
    # The own anchor leads by 30: the loss is about exp(-30), not the rounding of 100.
    anchors = torch.tensor([[[100.0, 0.0], [0.0, 0.0]], [[70.0, 0.0], [0.0, 0.0]]])
    queries = torch.tensor([[1.0, 0.0]])
    loss = anchor_contrast(anchors, queries, positive=torch.tensor([0]), backend="cpp")
    torch.testing.assert_close(loss, torch.tensor(-30.0).exp(), rtol=1e-5, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("value", [NAN, INF, -INF, 3e38])
@pytest.mark.parametrize("image", [0, 1, 2])
def test_what_is_not_finite(isa, value, image, dtype):
    anchors, _ = make(3, 4, 1, dtype=dtype)
    anchors = anchors.detach()
    anchors[image, 2] = value
    queries = torch.tensor([[1.0], [-1.0], [2.0]], dtype=dtype)
    for options in ({}, {"image_ids": torch.tensor([5, 6, 5])}):
        ours = torch.stack([_loss_of(anchors, queries, q, "cpp", **options) for q in range(3)])
        truth = torch.stack([_loss_of(anchors, queries, q, "reference", **options) for q in range(3)])
        torch.testing.assert_close(ours, truth, equal_nan=True)
        if value != value and not options:
            assert ours.isnan().all()


def _loss_of(anchors, queries, q, backend, **options):
    return anchor_contrast(anchors, queries[q : q + 1], positive=torch.tensor([q]), backend=backend, **options)


def test_exponentials(isa):
    # 2 anchors, k = 1: the loss is log(1 + exp(x)), which shows exp at every x below 0.
    x = torch.cat([torch.linspace(-87, 0, 5000), torch.tensor([-88.0, -100.0, -1e4])])
    anchors = torch.tensor([[[0.0]], [[1.0]]])
    queries = x[:, None].requires_grad_()
    positive = torch.zeros(len(x), dtype=torch.int64)
    loss = anchor_contrast(anchors, queries, positive=positive, negatives_per_image=1, backend="cpp")
    (grad,) = torch.autograd.grad(loss, queries)
    # Below exp(-87) there are only denormal numbers, which count as 0.
    torch.testing.assert_close(grad.squeeze(1).double() * len(x), torch.sigmoid(x.double()), rtol=1e-6, atol=2e-38)


def test_memory_for_the_gradient():
    images, count, width = 48, 17, 32
    anchors, queries = make(images, count, width, dtype=torch.float32)
    own = {anchors.data_ptr(), queries.data_ptr()}
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda each: saved.append(each) or each, lambda each: each):
        anchor_contrast(anchors, queries)
    extra = sum(each.numel() * each.element_size() for each in saved if each.data_ptr() not in own)
    assert 12 * images * images <= extra <= 12 * images * images + 16 * images


def test_many_anchors_need_wider_indices(isa):
    anchors, queries = make(2, 33000, 2, dtype=torch.float32)
    with torch.no_grad():
        anchors[:, 32900] = 9 * queries[0]  # among the best for query 0
    loss, *grads = with_gradients(anchor_contrast(anchors, queries, backend="cpp"), anchors, queries)
    wanted = with_gradients(reference.anchor_contrast(anchors, queries), anchors, queries)
    for ours, truth in zip((loss, *grads), wanted, strict=True):
        torch.testing.assert_close(ours, truth, rtol=1e-5, atol=1e-6)
    assert grads[0][:, 32900].any()


@pytest.mark.parametrize("backend", ["cpp", "reference"])
def test_gradient_in_double(isa, backend):
    anchors, queries = make(3, 4, 3, queries=5)
    options = {"positive": torch.tensor([0, 2, 1, 1, 0]), "image_ids": torch.tensor([1, 2, 1]), "temperature": 0.5}

    def loss(anchors, queries):
        return anchor_contrast(anchors, queries, **options, backend=backend)

    assert torch.autograd.gradcheck(loss, (anchors, queries))
    assert torch.autograd.gradgradcheck(loss, (anchors, queries))


def test_gradient_of_one_side():
    anchors, queries = make(6, 4, 8)
    both = with_gradients(anchor_contrast(anchors, queries), anchors, queries)
    assert torch.equal(torch.autograd.grad(anchor_contrast(anchors.detach(), queries), queries)[0], both[2])
    assert torch.equal(torch.autograd.grad(anchor_contrast(anchors, queries.detach()), anchors)[0], both[1])


def test_gradient_is_sparse(isa):
    anchors, queries = make(4, 90, 8, dtype=torch.float32)
    (grad,) = torch.autograd.grad(anchor_contrast(anchors, queries, backend="cpp"), anchors)
    _, indices = reference.anchor_scores(anchors, queries, 2)
    wins = torch.zeros(4, 90, dtype=torch.bool)
    for image in range(4):
        wins[image, indices[:, image].flatten()] = True
    assert not grad[~wins].any()
    assert (grad != 0).any(-1).sum() <= wins.sum() <= 4 * 4 * 2


def test_threads_give_the_same():
    anchors, queries = make(100, 17, 260, dtype=torch.float32)
    expected = with_gradients(anchor_contrast(anchors, queries, backend="cpp"), anchors, queries)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        actual = with_gradients(anchor_contrast(anchors, queries, backend="cpp"), anchors, queries)
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"queries": torch.zeros(4, 8)}, ValueError, "without `positive`.*4 queries and 3 images"),
        ({"queries": torch.zeros(3, 9)}, ValueError, "same D"),
        ({"anchors": torch.zeros(3, 8)}, ValueError, r"anchors must be \[B, N, D\]"),
        ({"anchors": torch.zeros(3, 1, 8)}, ValueError, "negatives_per_image must be in 1..N.*got 2 with N = 1"),
        ({"negatives_per_image": 0}, ValueError, "negatives_per_image must be in 1..N"),
        ({"temperature": 0.0}, ValueError, "temperature must be positive"),
        ({"temperature": NAN}, ValueError, "temperature must be positive"),
        ({"positive": torch.zeros(2).long()}, ValueError, r"positive must be \[3\].*\[2\]"),
        ({"positive": torch.zeros(3)}, TypeError, "positive must be integers.*float32"),
        ({"positive": torch.tensor([0, 1, 3])}, IndexError, r"positive must be in 0..2, got 0..3"),
        ({"positive": torch.tensor([0, -1, 2])}, IndexError, "positive must be in 0..2, got -1..2"),
        ({"image_ids": torch.zeros(4).long()}, ValueError, r"image_ids must be \[3\]"),
        ({"image_ids": torch.zeros(3, dtype=torch.bool)}, TypeError, "image_ids must be integers"),
        ({"image_ids": torch.zeros(3, device="meta").long()}, ValueError, "image_ids is on meta"),
    ],
)
def test_bad_arguments_are_named(change, error, text):
    arguments = {"anchors": torch.zeros(3, 4, 8), "queries": torch.zeros(3, 8), **change}
    for backend in ("cpp", "reference"):
        with pytest.raises(error, match=text):
            anchor_contrast(**arguments, backend=backend)


def test_the_registered_ops_check_too():
    ops = torch.ops.cpgr_kernels
    anchors, queries = (each.detach() for each in make(3, 4, 8, dtype=torch.float32))
    losses, lse, values, indices = ops.anchor_contrast(anchors, queries, None, None, 2, 1.0, "cpp")
    saved = {"lse": lse, "values": values, "indices": indices}

    def backward(grad=losses, positive=None, **change):
        given = {**saved, **change}.values()
        return ops.anchor_contrast_backward(grad, anchors, queries, positive, None, *given, 1.0, "cpp")

    backward()
    with pytest.raises(IndexError, match="positive"):
        backward(positive=torch.tensor([0, 1, 7]))
    with pytest.raises(ValueError, match="grad_losses must be"):
        backward(grad=losses[:1])
    with pytest.raises(ValueError, match="lse must be"):
        backward(lse=lse[:1])
    with pytest.raises(ValueError, match="values must be"):
        backward(values=values[:, :1])
    with pytest.raises(TypeError, match="torch.int16"):
        backward(indices=indices.int())
    with pytest.raises(IndexError, match=r"indices must be in 0..3"):
        backward(indices=indices + 4)


@pytest.mark.parametrize("backend", [None, "reference"])
def test_opcheck(backend):
    anchors, queries = make(3, 5, 4, dtype=torch.float32)
    op = torch.ops.cpgr_kernels.anchor_contrast.default
    torch.library.opcheck(op, (anchors, queries, None, None, 2, 1.0, backend))
    positive, ids = torch.tensor([0, 2, 1]), torch.tensor([1, 1, 2])
    torch.library.opcheck(op, (anchors, queries, positive, ids, 2, 1.0, backend))
    with torch.no_grad():
        losses, *saved = op(anchors, queries, None, None, 2, 1.0, backend)
    arguments = (losses, anchors.detach(), queries.detach(), None, None, *saved, 1.0, backend)
    torch.library.opcheck(torch.ops.cpgr_kernels.anchor_contrast_backward.default, arguments)


def test_compile_without_recompiles():
    torch._dynamo.reset()
    compiled_graphs = 0

    def count(graph, example_inputs):
        nonlocal compiled_graphs
        compiled_graphs += 1
        return graph

    compiled = torch.compile(anchor_contrast, backend=count, fullgraph=True, dynamic=True)
    for size in ((3, 5, 4), (7, 4, 9), (20, 33, 17)):
        anchors, queries = make(*size)
        wanted = with_gradients(anchor_contrast(anchors, queries), anchors, queries)
        actual = with_gradients(compiled(anchors, queries), anchors, queries)
        assert all(torch.equal(a, b) for a, b in zip(actual, wanted, strict=True))
    assert compiled_graphs == 1


def test_compiled_backward_runs_the_kernel():
    torch._dynamo.reset()
    anchors, queries = make(5, 7, 6)
    wanted = with_gradients(anchor_contrast(anchors, queries), anchors, queries)
    compiled = torch.compile(anchor_contrast, backend="aot_eager", fullgraph=True)
    actual = with_gradients(compiled(anchors, queries), anchors, queries)
    for ours, theirs in zip(actual, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
