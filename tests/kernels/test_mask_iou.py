"""mask_iou: pycocotools' numbers bit for bit."""

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco

from cpgr_kernels import mask_iou, pack_masks, reference

FUZZ = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def random_masks(count, height, width, seed=0):
    """Boxes full of noise of every density, so that some pairs share many tiles and some none; one empty, one full."""
    generator = torch.Generator().manual_seed(seed)
    y, x = torch.arange(height)[:, None], torch.arange(width)
    masks = torch.rand(count, height, width, generator=generator) < torch.rand(count, 1, 1, generator=generator) * 1.5
    for k, mask in enumerate(masks):
        top, bottom, left, right = torch.rand(4, generator=generator).tolist()
        within = (
            (y >= top * height) & (y <= (top + bottom) * height) & (x >= left * width) & (x < (left + right) * width)
        )
        mask &= within if k % 3 else True
    masks[:1], masks[1:2] = False, True
    return masks


def encode(masks):
    if len(masks) == 0:
        return []
    return coco.encode(np.asfortranarray(masks.permute(1, 2, 0).numpy().astype(np.uint8)))


def coco_iou(masks1, masks2, crowd=None):
    crowd = [0] * len(masks2) if crowd is None else crowd
    return torch.from_numpy(coco.iou(encode(masks1), encode(masks2), crowd))


def same(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)


@pytest.mark.parametrize("size", [(1, 1), (7, 63), (9, 65), (64, 130), (480, 640), (700, 20), (3, 900)])
@pytest.mark.parametrize("counts", [(1, 1), (5, 9), (13, 6)])
def test_pycocotools_numbers(isa, size, counts):
    masks1, masks2 = random_masks(counts[0], *size, seed=1), random_masks(counts[1], *size, seed=2)
    crowd = [k % 2 for k in range(counts[1])]
    same(mask_iou(masks1, masks2, backend="cpp"), coco_iou(masks1, masks2))
    same(mask_iou(masks1, masks2, iscrowd=crowd, backend="cpp"), coco_iou(masks1, masks2, crowd))
    same(mask_iou(masks1, masks2, iscrowd=crowd, backend="reference"), coco_iou(masks1, masks2, crowd))


def test_more_masks_than_a_block(isa):
    masks1, masks2 = random_masks(131, 70, 300, seed=1), random_masks(262, 70, 300, seed=2)
    same(mask_iou(masks1, masks2, backend="cpp"), coco_iou(masks1, masks2))
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        same(mask_iou(masks1, masks2, backend="cpp"), coco_iou(masks1, masks2))
    finally:
        torch.set_num_threads(before)


@FUZZ
@given(
    st.integers(0, 9), st.integers(0, 9), st.integers(1, 40), st.integers(1, 200), st.integers(0, 1000), st.booleans()
)
def test_fuzz(isa, rows, columns, height, width, seed, crowded):
    masks1, masks2 = random_masks(rows, height, width, seed), random_masks(columns, height, width, seed + 1)
    crowd = (torch.arange(columns) + seed) % 3 if crowded else None
    actual = mask_iou(masks1, masks2, iscrowd=crowd, backend="cpp")
    same(actual, reference.mask_iou(masks1, masks2, iscrowd=crowd))
    if rows and columns:
        same(actual, coco_iou(masks1, masks2, crowd if crowd is None else (crowd != 0).int().tolist()))
    pairs = min(rows, columns)
    crowd = None if crowd is None else crowd[:pairs]
    one_to_one = mask_iou(masks1[:pairs], masks2[:pairs], iscrowd=crowd, pairwise=False, backend="cpp")
    same(one_to_one, actual[:pairs, :pairs].diagonal())


def test_known_values():
    masks = torch.zeros(4, 20, 100, dtype=torch.bool)
    masks[1, 2:12, 10:90], masks[2, 7:17, 10:90], masks[3] = True, True, True
    iou = mask_iou(masks, masks)
    third, share = 1 / 3, 800 / 2000
    assert iou.tolist() == [
        [0, 0, 0, 0],
        [0, 1, third, share],
        [0, third, 1, share],
        [0, share, share, 1],
    ]
    assert mask_iou(masks, masks, iscrowd=[1, 1, 0, 1]).tolist() == [
        [0, 0, 0, 0],
        [0, 1, third, 1],
        [0, 0.5, 1, 1],
        [0, share, share, 1],
    ]


def test_every_kind_of_side_gives_the_same():
    masks1, masks2 = random_masks(6, 50, 90, seed=1), random_masks(7, 50, 90, seed=2)
    expected = coco_iou(masks1, masks2)
    sides1 = (masks1, masks1.to(torch.uint8) * 255, masks1.long(), pack_masks(masks1), encode(masks1))
    sides2 = (masks2, masks2.to(torch.uint8) * 7, masks2.long(), pack_masks(masks2), tuple(encode(masks2)))
    for side1 in sides1:
        for side2 in sides2:
            same(mask_iou(side1, side2), expected)
    same(mask_iou(encode(masks1), masks2, backend="reference"), expected)
    same(mask_iou(masks1, masks1), coco_iou(masks1, masks1))
    iou = mask_iou(masks1.numpy(), masks2.numpy(), iscrowd=np.zeros(7, bool))
    assert isinstance(iou, np.ndarray)
    same(torch.from_numpy(iou), expected)
    assert isinstance(mask_iou(masks1.numpy(), pack_masks(masks2)), np.ndarray)


def test_parts_of_packed_masks():
    masks1, masks2 = random_masks(9, 50, 90, seed=1), random_masks(11, 50, 90, seed=2)
    packed1, packed2 = pack_masks(masks1), pack_masks(masks2)
    some = torch.tensor([8, 0, 3])
    same(mask_iou(packed1[some], packed2[2::3]), coco_iou(masks1[some], masks2[2::3]))
    same(mask_iou(packed1[:0], packed2), torch.zeros(0, 11, dtype=torch.float64))


def test_one_to_one_with_leading_dimensions():
    masks1, masks2 = (random_masks(6, 50, 90, seed=seed).view(2, 3, 50, 90) for seed in (1, 2))
    expected = coco_iou(masks1.flatten(0, 1), masks2.flatten(0, 1)).diagonal()
    for backend in ("cpp", "reference"):
        same(mask_iou(masks1, masks2, pairwise=False, backend=backend), expected.view(2, 3))
        alone = mask_iou(masks1[1, 2], masks2[1, 2], pairwise=False, backend=backend)
        assert alone.shape == () and alone == expected[-1]


@pytest.mark.parametrize(
    "shapes", [((0, 4, 5), (3, 4, 5)), ((3, 4, 5), (0, 4, 5)), ((2, 0, 5), (3, 0, 5)), ((2, 4, 0), (1, 4, 0))]
)
def test_empty(shapes):
    masks1, masks2 = (torch.ones(shape, dtype=torch.bool) for shape in shapes)
    for backend in ("cpp", "reference"):
        expected = torch.zeros(shapes[0][0], shapes[1][0], dtype=torch.float64)
        same(mask_iou(masks1, masks2, backend=backend), expected)


def test_empty_lists_have_the_other_sides_size():
    masks = random_masks(3, 4, 5)
    assert mask_iou([], masks).shape == (0, 3)
    assert mask_iou(encode(masks), []).shape == (3, 0)
    assert mask_iou([], encode(masks)).shape == (0, 3)
    assert mask_iou(pack_masks(masks), []).shape == (3, 0)
    assert mask_iou([], []).shape == (0, 0)
    assert mask_iou(masks, [], iscrowd=[]).shape == (3, 0)


MASKS = torch.zeros(3, 4, 5, dtype=torch.bool)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "text"),
    [
        ((MASKS, MASKS[:, :3]), {}, ValueError, "masks1 are 4 x 5 and masks2 are 3 x 5"),
        ((MASKS, pack_masks(MASKS[:, :3])), {}, ValueError, "masks1 are 4 x 5 and masks2 are 3 x 5"),
        ((MASKS, [{"size": [5, 4], "counts": [20]}]), {}, ValueError, "masks1 are 4 x 5 and masks2 are 5 x 4"),
        ((MASKS, MASKS.float()), {}, TypeError, r"masks2 must be bool.*masks2 > 0.5"),
        ((MASKS, [{"size": [4, 5], "counts": [19]}]), {}, ValueError, r"mask_iou: masks2\[0\] of 4 x 5"),
        (([{"size": [4, 5], "counts": [19]}], MASKS), {}, ValueError, r"mask_iou: masks1\[0\] of 4 x 5"),
        ((MASKS[None], MASKS[None]), {}, ValueError, r"pairwise=True.*\[1, 3, 4, 5\]"),
        ((MASKS, MASKS[:2]), {"pairwise": False}, ValueError, r"as many.*\[3, 4, 5\] and \[2, 4, 5\]"),
        ((MASKS, MASKS), {"iscrowd": [True]}, ValueError, r"iscrowd must be \[3\].*\[1\]"),
        ((MASKS, MASKS), {"iscrowd": [0.5] * 3}, ValueError, "iscrowd must be.*float32"),
        ((MASKS, MASKS.to("meta")), {}, ValueError, "meta"),
        ((MASKS, None), {}, TypeError, "masks2: NoneType"),
        ((None, None), {}, TypeError, "masks1: NoneType"),
    ],
)
def test_bad_arguments_are_named(arguments, options, error, text):
    with pytest.raises(error, match=text):
        mask_iou(*arguments, **options)


def parts(masks):
    packed = pack_masks(masks)
    return packed.bits, packed.area(), packed.boxes()


def test_the_registered_op_checks_too():
    op, masks = torch.ops.cpgr_kernels.mask_iou, random_masks(3, 9, 70)
    side = parts(masks)
    same(op(*side, *side, 9, 70, True), mask_iou(masks, masks))
    with pytest.raises(ValueError, match="bits1, areas1 and boxes1"):
        op(*side, *side, 17, 70, True)
    with pytest.raises(ValueError, match="bits2, areas2 and boxes2"):
        op(*side, side[0], side[1], side[2][:2], 9, 70, True)
    with pytest.raises(ValueError, match="int32"):
        op(*side, side[0], side[1], side[2].long(), 9, 70, True)
    with pytest.raises(ValueError, match="negative"):
        op(*side, *side, -9, 70, True)
    with pytest.raises(ValueError, match="iscrowd"):
        op(*side, *side, 9, 70, True, torch.zeros(2, dtype=torch.bool))


def test_boxes_that_lie_are_kept_within_the_mask(isa):
    bits, areas, boxes = parts(torch.ones(2, 9, 70, dtype=torch.bool))
    huge = torch.tensor(
        [[-(2**31), -(2**31), 2**31 - 1, 2**31 - 1], [2**31 - 1, 2**31 - 1, -(2**31), 5]], dtype=torch.int32
    )
    for pairwise in (True, False):
        iou = torch.ops.cpgr_kernels.mask_iou(bits, areas, huge, bits, areas, boxes, 9, 70, pairwise, None, "cpp")
        assert iou[0].flatten()[0] == 1 and iou[1].flatten()[0] == 0


@pytest.mark.parametrize("backend", [None, "reference"])
@pytest.mark.parametrize("pairwise", [True, False])
def test_opcheck(backend, pairwise):
    side1, side2 = parts(random_masks(4, 9, 70, seed=1)), parts(random_masks(4, 9, 70, seed=2))
    arguments = (*side1, *side2, 9, 70, pairwise, torch.tensor([True, False, True, False]), backend)
    torch.library.opcheck(torch.ops.cpgr_kernels.mask_iou.default, arguments)


def test_compile_without_recompiles():
    torch._dynamo.reset()
    compiled_graphs = 0

    def count(graph, example_inputs):
        nonlocal compiled_graphs
        compiled_graphs += 1
        return graph

    compiled = torch.compile(lambda a, b: 2 * mask_iou(a, b), backend=count, fullgraph=True, dynamic=True)
    for rows, columns, height, width in ((5, 7, 20, 70), (17, 3, 33, 200), (9, 8, 480, 640)):
        masks1, masks2 = random_masks(rows, height, width, seed=1), random_masks(columns, height, width, seed=2)
        same(compiled(masks1, masks2), 2 * mask_iou(masks1, masks2))
    assert compiled_graphs == 1


@pytest.mark.gpu
@pytest.mark.parametrize("size", [(1, 1), (9, 65), (480, 640)])
@pytest.mark.parametrize("counts", [(1, 1), (17, 9), (100, 100), (400, 500)])
def test_cuda(cuda, size, counts):
    masks1, masks2 = random_masks(counts[0], *size, seed=1), random_masks(counts[1], *size, seed=2)
    crowd = torch.arange(counts[1]) % 2
    there1, there2 = masks1.to(cuda), masks2.to(cuda)
    same(mask_iou(there1, there2, backend="cuda").cpu(), mask_iou(masks1, masks2))
    crowded = mask_iou(there1, pack_masks(there2), iscrowd=crowd, backend="cuda")
    same(crowded.cpu(), mask_iou(masks1, masks2, iscrowd=crowd))
    pairs = min(counts)
    one_to_one = mask_iou(there1[:pairs], there2[:pairs], pairwise=False, backend="cuda")
    same(one_to_one.cpu(), mask_iou(masks1[:pairs], masks2[:pairs], pairwise=False))
    same(mask_iou(there1, encode(masks2)).cpu(), mask_iou(masks1, masks2))
