"""Packed masks: the reference's bits on every instruction set, from dense masks and from COCO's run lengths."""

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco

from cpgr_kernels import PackedMasks, pack_masks, reference

FUZZ = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
SIZES = [(1, 1), (1, 200), (7, 63), (8, 64), (9, 65), (33, 130), (65, 5), (480, 640)]


def random_masks(*shape, seed=0):
    """Of every density, the first empty and the second full."""
    generator = torch.Generator().manual_seed(seed)
    masks = torch.rand(shape, generator=generator) < torch.rand(*shape[:-2], 1, 1, generator=generator)
    flat = masks.view(-1, *shape[-2:])
    flat[:1], flat[1:2] = False, True
    return masks


def encode(masks):
    return coco.encode(np.asfortranarray(masks.permute(1, 2, 0).numpy().astype(np.uint8)))


def same(actual, expected):
    assert (actual.height, actual.width) == (expected.height, expected.width)
    for ours, theirs in zip(
        (actual.bits, actual.area(), actual.boxes()), (expected.bits, expected.area(), expected.boxes())
    ):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


@pytest.mark.parametrize("size", SIZES)
def test_dense_masks(isa, size):
    masks = random_masks(5, *size)
    packed = pack_masks(masks, backend="cpp")
    same(packed, pack_masks(masks, backend="reference"))
    assert torch.equal(packed.unpack(), masks)
    assert torch.equal(packed.area(), masks.sum((1, 2)))


@pytest.mark.parametrize("size", SIZES)
def test_single_pixels_and_their_boxes(isa, size):
    height, width = size
    masks = torch.zeros(4, *size, dtype=torch.bool)
    places = [(0, 0), (0, width - 1), (height - 1, 0), (height - 1, width - 1)]
    for mask, (y, x) in zip(masks, places):
        mask[y, x] = True
    packed = pack_masks(masks, backend="cpp")
    assert packed.boxes().tolist() == [[x, y, x + 1, y + 1] for y, x in places]
    assert packed.area().tolist() == [1] * 4
    same(packed, pack_masks(masks, backend="reference"))


def test_the_order_of_bits():
    mask = torch.zeros(10, 70, dtype=torch.bool)
    mask[2, 3] = mask[9, 64] = mask[0, 63] = True
    packed = pack_masks(mask)
    words = [0] * 32  # 2 x 2 tiles of eight rows
    words[2], words[0], words[3 * 8 + 1] = 1 << 3, -(1 << 63), 1
    assert packed.bits.tolist() == words
    assert packed.area().item() == 3 and packed.boxes().tolist() == [3, 0, 65, 10]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64])
def test_every_value_but_zero_is_inside(isa, dtype):
    values = torch.arange(-128, 128).to(dtype) if dtype is not torch.uint8 else torch.arange(256).to(dtype)
    masks = values.repeat(3)[: 7 * 109].reshape(1, 7, 109)
    for backend in ("cpp", "reference"):
        assert torch.equal(pack_masks(masks, backend=backend).unpack(), masks != 0)
    assert torch.equal(pack_masks(masks * 256).unpack(), (masks * 256) != 0)


def test_memory_layouts_and_numpy():
    masks = random_masks(6, 40, 70)
    same(pack_masks(masks.permute(2, 0, 1).contiguous().permute(1, 2, 0)), pack_masks(masks))
    same(pack_masks(masks[:, 3:30, 5:69]), pack_masks(masks[:, 3:30, 5:69].contiguous()))
    same(pack_masks(masks.numpy()), pack_masks(masks))
    fortran = np.asfortranarray(masks.permute(1, 2, 0).numpy())
    same(pack_masks(fortran.transpose(2, 0, 1)), pack_masks(masks))


@pytest.mark.parametrize("shape", [(0, 5, 6), (3, 0, 6), (3, 5, 0), (2, 0, 5, 6), (5, 6)])
def test_empty_and_leading_dimensions(shape):
    masks = torch.ones(shape, dtype=torch.bool)
    for backend in ("cpp", "reference"):
        packed = pack_masks(masks, backend=backend)
        assert packed.shape == shape and torch.equal(packed.unpack(), masks)
        assert packed.area().shape == shape[:-2] and packed.boxes().shape == (*shape[:-2], 4)
        same(packed, pack_masks(masks, backend="reference"))


def test_a_packed_mask_is_indexed_like_a_tensor():
    masks = random_masks(4, 3, 20, 70)
    packed = pack_masks(masks)
    assert len(packed) == 4 and packed.shape == masks.shape and packed.device == masks.device
    for index in (0, -1, slice(1, 3), (2, 1), (..., 1), torch.tensor([3, 0]), masks.any((1, 2, 3)), [1, 2], (None, 1)):
        assert torch.equal(packed[index].unpack(), masks[index] if index != (..., 1) else masks[:, 1])
        assert torch.equal(packed[index].area(), packed.area()[index])
    with pytest.raises(IndexError):
        packed[0, 0, 0]
    with pytest.raises(IndexError):
        packed[4]
    assert isinstance(packed.to("cpu"), PackedMasks) and "[4, 3, 20, 70]" in repr(packed)


# ---- run lengths ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES)
def test_run_lengths_of_pycocotools(isa, size):
    masks = random_masks(6, *size)
    rle = encode(masks)
    expected = pack_masks(masks, backend="reference")
    same(pack_masks(rle, backend="cpp"), expected)
    text = [{"size": list(size), "counts": mask["counts"].decode()} for mask in rle]
    same(pack_masks(text), expected)


def plain_counts(mask):
    flat = mask.T.flatten().tolist()
    counts, inside = [0], False
    for pixel in flat:
        if pixel != inside:
            counts.append(0)
            inside = pixel
        counts[-1] += 1
    return counts


def test_plain_counts_mix_with_compressed_ones(isa):
    masks = random_masks(4, 30, 67, seed=3)
    rle = encode(masks)
    for k in (0, 2):
        rle[k] = {"size": (30, 67), "counts": plain_counts(masks[k])}
    same(pack_masks(rle, backend="cpp"), pack_masks(masks))
    same(pack_masks(rle, backend="reference"), pack_masks(masks))
    # Runs of length zero, and NumPy's integers, are as good.
    rle = [{"size": [2, 2], "counts": [0, 0, np.int64(1), 0, 0, 2, 1, 0]}]
    assert pack_masks(rle).unpack().tolist() == [[[False, True], [True, False]]]


@FUZZ
@given(st.data())
def test_run_lengths_of_any_mask(data):
    height, width = data.draw(st.integers(0, 20)), data.draw(st.integers(0, 140))
    runs, left = [], height * width
    while left:
        runs.append(data.draw(st.integers(0, min(left, 3 * height))))
        left -= runs[-1]
    rle = [{"size": [height, width], "counts": runs}]
    same(pack_masks(rle, backend="cpp"), pack_masks(rle, backend="reference"))
    if height and width and all(runs[1:]):  # pycocotools itself trips over zeros in the middle
        coded = coco.frPyObjects(rle, height, width)
        same(pack_masks(coded, backend="cpp"), pack_masks(rle, backend="reference"))


def outcome(rle, backend):
    try:
        return pack_masks(rle, backend=backend)
    except (ValueError, TypeError) as error:
        return type(error), str(error)


@FUZZ
@given(
    st.one_of(
        st.binary(max_size=30),
        st.text(st.characters(min_codepoint=48, max_codepoint=111), max_size=30).map(str.encode),
        st.text(max_size=5),
        st.lists(st.integers(-5, 300) | st.integers(-(2**70), 2**70), max_size=8),
    ),
    st.tuples(st.integers(0, 40), st.integers(0, 150)),
)
@example(b"o" * 12 + b"0", (5, 5))
@example(b"o" * 13 + b"0", (5, 5))
@example(b"oooooooooooO", (5, 5))
def test_hostile_run_lengths_end_in_a_value_error_or_a_mask(counts, size):
    rle = [{"size": list(size), "counts": c} for c in ([size[0] * size[1]], counts)]
    actual, expected = outcome(rle, "cpp"), outcome(rle, "reference")
    if isinstance(expected, PackedMasks):
        same(actual, expected)
    else:
        assert actual == expected and actual[0] is ValueError and "masks[1]" in actual[1]


def rle_of(counts, size=(4, 5)):
    return [{"size": [4, 5], "counts": [20]}, {"size": size, "counts": counts}]


@pytest.mark.parametrize(
    ("rle", "text"),
    [
        (rle_of([3, 4]), r"masks\[1\] of 4 x 5: .*shorter"),
        (rle_of([3, 18]), r"masks\[1\] of 4 x 5: .*longer"),
        (rle_of([25, -5]), "longer"),
        (rle_of([5, -5, 20]), "negative"),
        (rle_of([]), "shorter"),
        (rle_of(b""), "shorter"),
        (rle_of(b"d"), "end within"),
        (rle_of(b"4\x00"), "not COCO's"),
        (rle_of(b"\xff"), "not COCO's"),
        (rle_of("\u0416"), r"masks\[1\]: counts must be bytes or text"),
        (rle_of([1.5, 18.5]), "64-bit integers"),
        (rle_of([2**63]), "64-bit integers"),
        (rle_of(7), "64-bit integers"),
        (rle_of([20], (5, 4)), r"masks\[1\] is 5 x 4 and masks\[0\] is 4 x 5"),
        (rle_of([20], (4, 5, 1)), "two integers"),
        (rle_of([20], (4.0, 5)), "two integers"),
        (rle_of([20], (-4, -5)), "at most 2.28"),
        (rle_of([20], None), "two integers"),
        ([{"size": [2**31, 2**31], "counts": [2**62]}], "at most 2.28"),
        ([{"size": [2**62, 0], "counts": []}], "at most 2.28"),
        ([{"size": [2**70, 1], "counts": []}], "two integers"),
        ([], "empty list"),
    ],
)
def test_damaged_run_lengths_are_named(rle, text):
    with pytest.raises(ValueError, match=text):
        pack_masks(rle)


@pytest.mark.parametrize("size", [(1, 1), (13, 22), (9, 130)])
def test_the_reference_decodes_as_pycocotools(size):
    masks = random_masks(5, *size, seed=9)
    same(pack_masks(encode(masks), backend="reference"), pack_masks(masks))
    for mask, rle in zip(masks, encode(masks)):
        assert torch.equal(reference.decode_rle(rle["counts"], *size), mask)
        assert torch.equal(reference.decode_rle(plain_counts(mask), *size), mask)


# ---- arguments and torch --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("masks", "error", "text"),
    [
        (torch.zeros(2, 3, 4), TypeError, r"masks must be bool or integers.*float32.*masks > 0.5"),
        (np.zeros((2, 3, 4)), TypeError, "float64"),
        (torch.zeros(2, 3, 4, dtype=torch.complex64), TypeError, "complex64"),
        (torch.zeros(4, dtype=torch.bool), ValueError, r"\[..., H, W\], got \[4\]"),
        (torch.ones(2, 3, 4, dtype=torch.bool).to_sparse(), TypeError, "dense tensor"),
        ([torch.zeros(3, 4, dtype=torch.bool)], TypeError, r"masks\[0\] must be {\"size\".*got Tensor"),
        ({"size": [1, 1], "counts": [1]}, TypeError, "masks: dict"),
        ("text", TypeError, "masks: str"),
    ],
)
def test_bad_arguments_are_named(masks, error, text):
    with pytest.raises(error, match=text):
        pack_masks(masks)


def test_the_registered_op_checks_too():
    op, mask = torch.ops.cpgr_kernels.pack_masks, torch.zeros(2, 3, 4, dtype=torch.bool)
    with pytest.raises(ValueError, match="at least one"):
        op([])
    with pytest.raises(ValueError, match="one size"):
        op([mask, torch.zeros(2, 4, 3, dtype=torch.bool)])
    with pytest.raises(ValueError, match="one device"):
        op([mask, mask.to("meta")])
    with pytest.raises(TypeError, match=r"masks\[1\] must be bool"):
        op([mask, mask.float()])


@pytest.mark.parametrize("backend", [None, "reference"])
def test_opcheck(backend):
    masks = [random_masks(3, 9, 70), random_masks(2, 9, 70).to(torch.int32)]
    torch.library.opcheck(torch.ops.cpgr_kernels.pack_masks.default, (masks, backend))


def test_threads_give_the_same():
    masks = random_masks(40, 300, 400)
    rle, expected = encode(masks), pack_masks(masks)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        same(pack_masks(masks), expected)
        same(pack_masks(rle), expected)
    finally:
        torch.set_num_threads(before)


@pytest.mark.gpu
@pytest.mark.parametrize("size", [*SIZES, (31, 100), (40, 160), (5, 2)])
def test_cuda(cuda, size):
    masks = random_masks(40, *size)
    for values in (masks, masks.to(torch.uint8) * 200, masks.long() * 256):
        packed = pack_masks(values.to(cuda), backend="cuda")
        same(packed.to("cpu"), pack_masks(masks))
    shifted = torch.zeros(masks.numel() + 1, dtype=torch.bool, device=cuda)[1:].view(masks.shape)
    same(pack_masks(shifted.copy_(masks), backend="cuda").to("cpu"), pack_masks(masks))
