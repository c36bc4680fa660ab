"""rasterize_polygons: pycocotools' pixels, bit for bit."""

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cpgr_kernels import rasterize_polygons

FUZZ = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
NAN, INF = float("nan"), float("inf")
SQUARE = [1.0, 1.0, 3.0, 1.0, 3.0, 3.0, 1.0, 3.0]


def coco(polygons, height, width):
    """One instance by pycocotools; fewer than three points are left out, as it takes two for a box and fails on one."""
    mask = pytest.importorskip("pycocotools.mask")
    polygons = [polygon for polygon in polygons if len(polygon) >= 6]
    if not polygons:
        return torch.zeros(height, width, dtype=torch.bool)
    runs = mask.merge(mask.frPyObjects(polygons, height, width))
    return torch.from_numpy(mask.decode(runs).astype(bool))


def all_coco(instances, height, width):
    return torch.stack([coco(polygons, height, width) for polygons in instances])


def as_tensors(instances):
    """The padded form: points [P, V, 2] with garbage beyond a polygon's length, lengths and instances."""
    polygons = [(i, polygon) for i, instance in enumerate(instances) for polygon in instance]
    most = max((len(polygon) // 2 for _, polygon in polygons), default=0)
    points = torch.full((len(polygons), most, 2), NAN, dtype=torch.float64)
    for row, (_, polygon) in zip(points, polygons, strict=True):
        row[: len(polygon) // 2] = torch.tensor(polygon, dtype=torch.float64).view(-1, 2)
    lengths = torch.tensor([len(polygon) // 2 for _, polygon in polygons], dtype=torch.int64)
    return points, lengths, torch.tensor([i for i, _ in polygons], dtype=torch.int64)


# Around the canvas, on and beside the places where the rule rounds: fifths, halves and tenths of pixels.
coordinates = st.one_of(
    st.floats(-30, 90, allow_subnormal=False),
    st.integers(-150, 450).map(lambda fifth: fifth / 5),
    st.integers(-300, 900).map(lambda tenth: tenth / 10),
    st.sampled_from([0.0, -0.0, -0.1, 0.5, 40.0, 39.5, 1e4, -1e4]),
)
polygon_lists = st.lists(st.lists(st.tuples(coordinates, coordinates), min_size=1, max_size=9), max_size=3)


@FUZZ
@given(
    instances=st.lists(polygon_lists, max_size=3),
    height=st.integers(1, 70),
    width=st.one_of(st.integers(1, 70), st.sampled_from([64, 128, 129])),
)
def test_fuzz(isa, instances, height, width):
    flat = [[[x for point in polygon for x in point] for polygon in instance] for instance in instances]
    masks = rasterize_polygons(flat, height, width, backend="cpp")
    assert masks.shape == (len(flat), height, width) and masks.dtype is torch.bool
    for mask, instance in zip(masks, flat, strict=True):
        assert torch.equal(mask, coco(instance, height, width))
    assert torch.equal(rasterize_polygons(as_tensors(flat), height, width, count=len(flat), backend="cpp"), masks)


@FUZZ
@given(polygons=polygon_lists, height=st.integers(1, 50), width=st.integers(1, 50))
def test_fuzz_reference(polygons, height, width):
    flat = [[x for point in polygon for x in point] for polygon in polygons]
    mask = rasterize_polygons([flat], height, width, backend="reference")[0]
    assert torch.equal(mask, coco(flat, height, width))


def random_polygons(seed, count, points, low, high):
    generator = torch.Generator().manual_seed(seed)
    return [
        [(low + (high - low) * torch.rand(2 * points, generator=generator, dtype=torch.float64)).tolist()]
        for _ in range(count)
    ]


@pytest.mark.parametrize(
    ("name", "instances"),
    [
        ("crossing itself", random_polygons(1, 6, 40, 0, 500)),
        ("mostly outside", random_polygons(2, 6, 5, -2000, 2500)),
        ("triangles", random_polygons(3, 20, 3, -50, 550)),
        ("thin upright", [[[100.2, 0, 100.9, 480, 100.4, 480]], [[3, 1, 3.3, 400, 3.31, 1]]]),
        ("thin level", [[[0, 50.2, 500, 50.9, 500, 50.4]], [[1, 3, 400, 3.3, 1, 3.31]]]),
        ("tiny", [[[10, 10, 10.4, 10, 10.4, 10.4]], [[10.5, 10.5, 11.5, 10.5, 11.5, 11.5, 10.5, 11.5]]]),
        ("repeated points", [[[5, 5, 5, 5, 90, 8, 90, 8, 90, 8, 40, 70, 5, 5]], [[7.0] * 12]]),
        ("on a line", [[[0, 0, 100, 100, 50, 50]], [[0, 10, 50, 10, 99, 10]], [[10, 0, 10, 50, 10, 99]]]),
        ("parts that overlap", [[[10, 10, 200, 10, 200, 200, 10, 200], [100, 100, 300, 90, 310, 310, 90, 300]]]),
        ("a part inside", [[[10, 10, 200, 10, 200, 200, 10, 200], [50, 50, 90, 50, 90, 90, 50, 90]]]),
        ("the canvas", [[[0, 0, 500, 0, 500, 480, 0, 480]], [[-9, -9, 509, -9, 509, 489, -9, 489]]]),
        ("no parts", [[], [[9, 9, 20, 9, 20, 20]], []]),
        (
            "all of it outside",
            [[[-50, -50, -10, -50, -10, -10]], [[600, 10, 700, 10, 650, 90]], [[10, 500, 90, 500, 50, 600]]],
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_shapes(isa, name, instances):
    assert torch.equal(rasterize_polygons(instances, 480, 500, backend="cpp"), all_coco(instances, 480, 500))


@pytest.mark.parametrize("size", [(1, 1), (1, 700), (700, 1), (33, 63), (64, 64), (65, 65), (100, 2300), (1200, 128)])
def test_canvases(isa, size):
    instances = random_polygons(5, 4, 12, -20, max(size) * 1.1)
    assert torch.equal(rasterize_polygons(instances, *size, backend="cpp"), all_coco(instances, *size))


def test_canvases_of_many_strips(isa):
    # More words than the scratch of a thread holds, with one part and with several.
    instances = [random_polygons(6, 1, 9, 0, 3000)[0], [p for (p,) in random_polygons(7, 3, 6, 0, 3000)]]
    assert torch.equal(rasterize_polygons(instances, 2500, 3000, backend="cpp"), all_coco(instances, 2500, 3000))


@pytest.mark.parametrize("reach", [1e4, 1e5, 2**21])
def test_large_coordinates(isa, reach):
    # Long edges are where a computed crossing could differ from a walked one.
    instances = random_polygons(int(reach), 3, 3, -reach, reach)
    for (polygon,), end in zip(instances, (0.0, 250.0, 499.5), strict=True):
        polygon[:2] = [end, 240.3]
        polygon[2] = max(min(polygon[2], 500.0), 0.0)  # one edge steep
    assert torch.equal(rasterize_polygons(instances, 480, 500, backend="cpp"), all_coco(instances, 480, 500))


@pytest.mark.parametrize("backend", ["cpp", "reference"])
def test_fewer_than_three_points_enclose_nothing(backend):
    # pycocotools takes the four numbers for a box of 30 x 40.
    instances = [[[10.0, 10.0, 30.0, 40.0]], [[5.0, 5.0]], [[]], [[10.0, 10.0, 30.0, 40.0], SQUARE]]
    masks = rasterize_polygons(instances, 60, 60, backend=backend)
    assert not masks[:3].any() and masks[3].sum() == 4


@pytest.mark.parametrize("backend", ["cpp", "reference"])
@pytest.mark.parametrize("size", [(0, 5), (5, 0), (0, 0)])
def test_empty(backend, size):
    assert rasterize_polygons([[SQUARE]], *size, backend=backend).shape == (1, *size)
    assert rasterize_polygons([], 4, 5, backend=backend).shape == (0, 4, 5)
    none = torch.zeros(0, 7, 2), torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64)
    assert not rasterize_polygons(none, 4, 5, count=3, backend=backend).any()


def test_large_results_are_written_whole(isa):
    # Above a limit the result lies on fresh pages of which only a part is written, below it all of it is.
    few = random_polygons(8, 3, 7, 0, 400)
    many = few * 60
    masks = rasterize_polygons(many, 480, 400, backend="cpp")
    assert masks.numel() >= 1 << 25
    truth = all_coco(few, 480, 400)
    assert torch.equal(masks.view(60, 3, 480, 400), truth.expand(60, -1, -1, -1))
    used = torch.ones(3, 480, 400, dtype=torch.bool)  # memory with something in it
    del used
    assert torch.equal(rasterize_polygons(few, 480, 400, backend="cpp"), truth)


def test_polygons_of_an_instance_in_any_order(isa):
    polygons = [polygon for (polygon,) in random_polygons(9, 12, 5, 0, 60)]
    instances = torch.tensor([3, 0, 1, 3, 0, 5, 1, 1, 3, 0, 5, 3])
    points, lengths, _ = as_tensors([[polygon] for polygon in polygons])
    masks = rasterize_polygons((points, lengths, instances), 64, 64, count=7, backend="cpp")
    for i in range(7):
        own = [polygon for polygon, instance in zip(polygons, instances.tolist(), strict=True) if instance == i]
        assert torch.equal(masks[i], coco(own, 64, 64))


def test_types_and_layouts():
    points = (torch.rand(6, 9, 2, generator=torch.Generator().manual_seed(1)) * 60).round()
    lengths = torch.tensor([9, 8, 3, 5, 2, 0])
    wanted = rasterize_polygons((points, lengths), 64, 64)
    for dtype in (torch.float64, torch.float16, torch.bfloat16, torch.int32, torch.int64, torch.uint8):
        assert torch.equal(rasterize_polygons((points.to(dtype), lengths.int()), 64, 64), wanted)
    turned = points.transpose(0, 1).contiguous().transpose(0, 1)
    assert torch.equal(rasterize_polygons((turned, lengths), 64, 64), wanted)
    # float32 numbers are taken as they are, not rounded to something else.
    thirds = torch.rand(50, 5, 2, generator=torch.Generator().manual_seed(2)) * 60
    flat = [[polygon.flatten().tolist()] for polygon in thirds]
    assert torch.equal(rasterize_polygons((thirds, torch.full((50,), 5)), 64, 64), all_coco(flat, 64, 64))
    for kind in (np.array, torch.tensor, tuple):
        assert torch.equal(
            rasterize_polygons([[kind(p) for p in each] for each in flat], 64, 64), all_coco(flat, 64, 64)
        )


def test_numpy():
    points, lengths = np.array(SQUARE).reshape(1, 4, 2), np.array([4])
    masks = rasterize_polygons((points, lengths), 4, 4)
    assert isinstance(masks, np.ndarray) and masks.dtype == bool and masks.sum() == 4
    assert np.array_equal(rasterize_polygons((points, lengths, np.array([1])), 4, 4, count=2)[1], masks[0])


def test_threads_give_the_same():
    instances = random_polygons(10, 30, 9, 0, 400)
    before = torch.get_num_threads()
    expected = rasterize_polygons(instances, 400, 400)
    torch.set_num_threads(2)
    try:
        assert torch.equal(rasterize_polygons(instances, 400, 400), expected)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("backend", ["cpp", "reference"])
@pytest.mark.parametrize("value", [NAN, INF, -INF, 2.0**21 + 1, -1e300])
def test_coordinates_that_are_none_are_named(backend, value):
    instances = [[SQUARE], [SQUARE, SQUARE[:5] + [value] + SQUARE[6:]], [SQUARE]]
    with pytest.raises(ValueError, match="instance 1, polygon 1 has the coordinate.*2097152"):
        rasterize_polygons(instances, 8, 8, backend=backend)
    # Beyond a polygon's length anything may stand.
    points = torch.tensor(SQUARE + [value, 0.0]).view(1, 5, 2)
    assert rasterize_polygons((points, torch.tensor([4])), 8, 8, backend=backend).sum() == 4


@pytest.mark.parametrize(
    ("polygons", "error", "text"),
    [
        ([SQUARE], TypeError, "instance 0, polygon 0 must be numbers.*float"),
        ([[SQUARE], {"counts": "x", "size": [4, 4]}], TypeError, "instance 1 must be a list of polygons, got dict"),
        ([[SQUARE], [SQUARE, SQUARE[:7]]], ValueError, "instance 1, polygon 1 has 7 numbers"),
        ([["1, 2"]], TypeError, "polygon 0 must be numbers.*str"),
        ({}, TypeError, "must be a list or a tuple, got dict"),
        ((torch.zeros(2, 4, 2),), ValueError, "tuple is"),
        ((torch.zeros(2, 4), torch.zeros(2)), ValueError, r"points must be \[P, V, 2\].*\[2, 4\]"),
        ((torch.zeros(2, 4, 2), torch.zeros(3)), ValueError, r"lengths \[P\].*\[3\]"),
        ((torch.zeros(2, 4, 2), torch.zeros(2)), TypeError, "lengths must be integers"),
        ((torch.zeros(2, 4, 2), torch.tensor([4, 5])), ValueError, "lengths reach 5.*V = 4"),
        ((torch.zeros(2, 4, 2), torch.tensor([4, 4]), torch.tensor([0, 0])), ValueError, "count"),
        ((torch.zeros(2, 4, 2), [4, 4]), TypeError, "points: Tensor, lengths: list"),
        ((torch.zeros(2, 4, 2, dtype=torch.complex64), torch.tensor([4, 4])), TypeError, "points must be.*complex"),
    ],
)
def test_bad_arguments_are_named(polygons, error, text):
    with pytest.raises(error, match=text):
        rasterize_polygons(polygons, 8, 8)


def test_bad_sizes_are_named():
    for height, width in ((-1, 8), (8, -1), (2**21 + 1, 0)):
        with pytest.raises(ValueError, match="(height|width) must be 0 to 2097152"):
            rasterize_polygons([[SQUARE]], height, width)
    with pytest.raises(ValueError, match="count is 3"):
        rasterize_polygons([[SQUARE]], 8, 8, count=3)


@pytest.mark.parametrize("backend", ["cpp", "reference"])
@pytest.mark.parametrize(
    ("starts", "lengths", "instances", "text"),
    [
        ([0, 2], [4, 3], [0, 0], "polygon 1 has 3 points from 2 on, of 4"),
        ([0, -1], [4, 3], [0, 0], "polygon 1 has 3 points from -1"),
        ([0, 5], [4, 0], [0, 0], "polygon 1 has 0 points from 5"),
        ([0, 0], [4, -2], [0, 0], "polygon 1 has -2 points"),
        ([0, 2**62], [4, 2**62], [0, 0], "polygon 1 has"),
        ([0, 0], [4, 4], [0, 2], "polygon 1 is of instance 2, of 2"),
        ([0, 0], [4, 4], [-1, 0], "polygon 0 is of instance -1, of 2"),
    ],
)
def test_the_registered_op_checks_too(backend, starts, lengths, instances, text):
    numbers = (torch.tensor(values) for values in (starts, lengths, instances))
    with pytest.raises(ValueError, match=text):
        torch.ops.cpgr_kernels.rasterize_polygons(torch.tensor(SQUARE).view(4, 2), *numbers, 2, 8, 8, backend)


def test_the_registered_op_checks_shapes():
    op, one = torch.ops.cpgr_kernels.rasterize_polygons, torch.tensor([0])
    for points, lengths in ((torch.zeros(4, 3), one), (torch.zeros(4, 2), torch.tensor([0, 0]))):
        with pytest.raises(ValueError, match="must be"):
            op(points, one, lengths, one, 1, 8, 8)
    with pytest.raises(ValueError, match="on meta"):
        op(torch.zeros(4, 2), one, one.to("meta"), one, 1, 8, 8)


@pytest.mark.parametrize("backend", [None, "reference"])
def test_opcheck(backend):
    points, lengths, instances = as_tensors(random_polygons(11, 5, 6, 0, 30))
    arguments = points.view(-1, 2), torch.arange(5) * 6, lengths, instances, 5, 32, 40, backend
    torch.library.opcheck(torch.ops.cpgr_kernels.rasterize_polygons.default, arguments)


def test_compile_without_recompiles():
    torch._dynamo.reset()
    graphs = 0

    def count(graph, example_inputs):
        nonlocal graphs
        graphs += 1
        return graph

    def area(points, lengths, side):
        return rasterize_polygons((points, lengths), side, side + 3).flatten(1).sum(1) * 2

    compiled = torch.compile(area, backend=count, fullgraph=True, dynamic=True)
    for number, corners, side in ((3, 4, 20), (5, 7, 40), (9, 6, 33)):
        points = torch.rand(number, corners, 2, generator=torch.Generator().manual_seed(side)) * side
        lengths = torch.full((number,), corners)
        assert torch.equal(compiled(points, lengths, side), area(points, lengths, side))
    assert graphs == 1


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [(1, 1), (480, 500), (33, 63), (2500, 130)])
def test_cuda(cuda, size, dtype):
    reach = max(size) * 1.1
    instances = [[p for (p,) in random_polygons(seed, seed % 4, 3 + seed, -20, reach)] for seed in range(9)]
    instances.append([[0.0, 3.2, 2.0**21, 250.3, -(2.0**21), 470.0, 3.1, -(2.0**20)]])
    points, lengths, members = as_tensors(instances)
    points = points.to(dtype)
    expected = rasterize_polygons((points, lengths, members), *size, count=10)
    there = tuple(part.flip(0).to(cuda) for part in (points, lengths, members))
    assert torch.equal(rasterize_polygons(there, *size, count=10, backend="cuda").cpu(), expected)
    if dtype is torch.float64:
        assert torch.equal(rasterize_polygons(instances, *size, device=cuda).cpu(), expected)


@pytest.mark.gpu
def test_cuda_leaves_out_what_it_cannot_report(cuda):
    points = torch.tensor(SQUARE + SQUARE[:7] + [NAN]).view(-1, 2).to(cuda)
    numbers = ([0, 4, 6, -1, 0, 0], [4, 4, 9, 4, 4, 2**62], [0, 1, 1, 1, 2, 1])
    starts, lengths, instances = (torch.tensor(values, device=cuda) for values in numbers)
    masks = torch.ops.cpgr_kernels.rasterize_polygons(points, starts, lengths, instances, 2, 8, 8)
    assert masks[0].sum() == 4 and not masks[1].any()
