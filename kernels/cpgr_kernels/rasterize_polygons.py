"""Masks from polygons. What it means is in `reference.rasterize_polygons`."""

import contextlib
import mmap
from array import array
from collections.abc import Sequence
from typing import NoReturn

import torch
from torch import Tensor

from . import dispatch, native, reference
from .arguments import check_device, check_numbers, from_numpy, plain
from .library import define

LIMIT = 2**21  # of coordinates and sides, in pixels; kPolygonLimit of the kernels
LARGE = 1 << 25  # bytes


def rasterize_polygons(
    polygons,
    height: int,
    width: int,
    *,
    count: int | None = None,
    device: torch.device | str | None = None,
    backend: str | None = None,
):
    """Masks of instances that are given as polygons: pycocotools' pixels exactly, without its run lengths.

    Args:
        polygons: either a list of instances as COCO's `segmentation` has them, each a list of polygons
            [x1, y1, x2, y2, ...] in pixels (lists, arrays or tensors); an instance is the union of its polygons. Or a
            tuple of tensors (or arrays): points [P, V, 2], the number of valid points of each polygon, lengths [P],
            and the instance it belongs to, instances [P]; without instances every polygon is one of its own.
        height, width: of the image.
        count: the number of instances N; needed with `instances` and not else.
        device: where a list is rasterized; default the CPU.
        backend: "cpp", "cuda", "reference", or None for the best that can run.

    Returns:
        bool [N, height, width], of torch for a list.

    A polygon of one or two points encloses nothing; pycocotools refuses the one and takes the other's four numbers for
    a box x, y, width, height (cocoapi issue 369). Self-intersections leave holes, as there.

    Errors: a coordinate that is NaN or beyond 2^21 pixels either way raises ValueError with instance and polygon. On a
    GPU tensors are not looked at, as that would wait for it: a polygon with such a coordinate counts for nothing there.

    Example:
        >>> rasterize_polygons([[[1.0, 1.0, 3.0, 1.0, 3.0, 3.0, 1.0, 3.0]]], 4, 4).int()
        tensor([[[0, 0, 0, 0],
                 [0, 1, 1, 0],
                 [0, 1, 1, 0],
                 [0, 0, 0, 0]]], dtype=torch.int32)
    """
    if not isinstance(polygons, tuple):
        if count is not None and count != len(polygons):
            raise ValueError(f"rasterize_polygons: count is {count} and the list has {len(polygons)} instances")
        points, starts, lengths, instances = _flatten(polygons)
        if device is not None and torch.device(device).type != "cpu":
            _check_values(points, starts, lengths, instances, len(polygons))
            points, starts, lengths, instances = (t.to(device) for t in (points, starts, lengths, instances))
        return _op(points, starts, lengths, instances, len(polygons), height, width, backend)
    if not 2 <= len(polygons) <= 3:
        raise ValueError(f"rasterize_polygons: a tuple is (points, lengths[, instances]), got {len(polygons)} entries")
    if not all(isinstance(part, Tensor) for part in polygons):
        tensors = from_numpy("rasterize_polygons", **dict(zip(("points", "lengths", "instances"), polygons)))
        return rasterize_polygons(tuple(tensors), height, width, count=count, backend=backend).numpy()
    points, lengths = polygons[:2]
    if points.dim() != 3 or points.shape[2] != 2 or lengths.shape != points.shape[:1]:
        raise ValueError(
            "rasterize_polygons: points must be [P, V, 2] and lengths [P], "
            f"got {list(points.shape)} and {list(lengths.shape)}"
        )
    number, most = points.shape[:2]
    starts = torch.arange(number, device=points.device) * most
    if len(polygons) == 2:
        instances, count = torch.arange(number, device=points.device), number
    elif count is None:
        raise ValueError("rasterize_polygons: count, the number of instances, must be given with instances")
    else:
        instances = polygons[2]
    # More than V points would be the next polygon's.
    lengths = lengths.clamp(max=most) if lengths.is_cuda else _lengths_within(lengths, most)
    return _op(points.reshape(-1, 2), starts, lengths, instances, count, height, width, backend)


def _lengths_within(lengths: Tensor, most: int) -> Tensor:
    if not torch.compiler.is_compiling() and lengths.numel() and lengths.max() > most:
        raise ValueError(f"rasterize_polygons: lengths reach {int(lengths.max())}, points [P, V, 2] have V = {most}")
    return lengths.clamp(max=most)


def _flatten(polygons: Sequence) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Points, starts, lengths and instances of COCO's nested lists."""
    if not isinstance(polygons, list):
        raise TypeError(f"rasterize_polygons: polygons must be a list or a tuple, got {type(polygons).__name__}")
    numbers, starts, lengths, instances = array("d"), array("q"), array("q"), array("q")
    for i, instance in enumerate(polygons):
        if not isinstance(instance, (list, tuple)):
            raise TypeError(
                f"rasterize_polygons: instance {i} must be a list of polygons, got {type(instance).__name__}"
            )
        for p, polygon in enumerate(instance):
            start = len(numbers)
            try:
                # An array's own numbers are slow to walk over.
                numbers.extend(polygon.reshape(-1).tolist() if hasattr(polygon, "tolist") else polygon)
            except TypeError:
                raise TypeError(
                    f"rasterize_polygons: instance {i}, polygon {p} must be numbers x1, y1, x2, y2, ..., "
                    f"got {type(polygon).__name__}"
                ) from None
            length = len(numbers) - start
            if length % 2:
                raise ValueError(f"rasterize_polygons: instance {i}, polygon {p} has {length} numbers, an odd count")
            starts.append(start // 2)
            lengths.append(length // 2)
            instances.append(i)
    return _tensor(numbers).view(-1, 2), _tensor(starts), _tensor(lengths), _tensor(instances)


def _tensor(values: array) -> Tensor:
    dtype = torch.float64 if values.typecode == "d" else torch.int64
    return torch.frombuffer(values, dtype=dtype) if values else torch.empty(0, dtype=dtype)


def _check(points, starts, lengths, instances, count, height, width) -> None:
    if points.dim() != 2 or points.shape[1] != 2:
        raise ValueError(f"rasterize_polygons: points must be [total, 2], got {list(points.shape)}")
    check_numbers("rasterize_polygons", "points", points)
    for name, values in (("starts", starts), ("lengths", lengths), ("instances", instances)):
        if values.dim() != 1 or values.shape != starts.shape:
            raise ValueError(f"rasterize_polygons: {name} must be [P], one entry a polygon, got {list(values.shape)}")
        if values.is_floating_point() or values.dtype is torch.bool:
            raise TypeError(f"rasterize_polygons: {name} must be integers, got {values.dtype}")
        check_numbers("rasterize_polygons", name, values)
    check_device("rasterize_polygons", points=points, starts=starts, lengths=lengths, instances=instances)
    for name, value, limit in (("count", count, None), ("height", height, LIMIT), ("width", width, LIMIT)):
        if value < 0 or (limit and value > limit):
            raise ValueError(f"rasterize_polygons: {name} must be 0 to {limit or '2^63 - 1'}, got {value}")


def _check_values(points, starts, lengths, instances, count) -> None:
    """Raise for what a look at the numbers tells: the reference and error messages; the kernel looks itself."""
    total = len(points)
    bad = (starts < 0) | (lengths < 0) | (lengths > total - starts) | (instances < 0) | (instances >= count)
    if not bad.any():
        wrong = torch.cat([points.new_zeros(1), (~(points.abs() <= LIMIT)).any(1).to(points.dtype)]).cumsum(0)
        bad = wrong[starts + lengths] > wrong[starts]
    if bad.any():
        _refuse(points, starts, lengths, instances, count, int(bad.nonzero()[0]))


def _refuse(points, starts, lengths, instances, count, index: int) -> NoReturn:
    start, length, instance = int(starts[index]), int(lengths[index]), int(instances[index])
    if not 0 <= instance < count:
        raise ValueError(f"rasterize_polygons: polygon {index} is of instance {instance}, of {count}")
    if start < 0 or length < 0 or length > len(points) - start:
        raise ValueError(
            f"rasterize_polygons: polygon {index} has {length} points from {start} on, of {len(points)} points"
        )
    number = int((instances[:index] == instance).sum())
    values = points[start : start + length].reshape(-1)
    value = values[~(values.abs() <= LIMIT)][0].item()
    raise ValueError(
        f"rasterize_polygons: instance {instance}, polygon {number} has the coordinate {value}; "
        f"coordinates must be numbers from -{LIMIT} to {LIMIT}"
    )


def _rasterize(points, starts, lengths, instances, count, height, width, backend=None) -> Tensor:
    _check(points, starts, lengths, instances, count, height, width)
    run = dispatch.choose("rasterize_polygons", points.device.type, backend)
    starts, lengths, instances = (values.long().contiguous() for values in (starts, lengths, instances))
    return run(plain(points), starts, lengths, instances, count, height, width)


def _fake(points, starts, lengths, instances, count, height, width, backend=None):
    _check(points, starts, lengths, instances, count, height, width)
    return points.new_empty((count, height, width), dtype=torch.bool)


def _cpp(points, starts, lengths, instances, count, height, width) -> Tensor:
    shape = count, height, width
    cleared = count * height * width >= LARGE
    out = _fresh_zeros(shape) if cleared else torch.empty(shape, dtype=torch.bool)
    addresses = points.data_ptr(), len(points), starts.data_ptr(), lengths.data_ptr(), instances.data_ptr()
    bad = native.cpu()[0].rasterize_polygons(
        points.dtype is torch.float64, *addresses, len(starts), *shape, cleared, out.data_ptr(), torch.get_num_threads()
    )
    if bad >= 0:
        _refuse(points, starts, lengths, instances, count, bad)
    return out


def _fresh_zeros(shape: tuple[int, int, int]) -> Tensor:
    """Zeros on pages of their own, which the system clears at their first use, once and not twice.

    Large pages: the faults of small ones would take several times as long as the kernel.
    """
    size = shape[0] * shape[1] * shape[2]
    pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(AttributeError, OSError):  # only a hint, and not on every system
        pages.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(pages, dtype=torch.bool).view(shape)


def _cuda(points, starts, lengths, instances, count, height, width) -> Tensor:
    out = points.new_empty((count, height, width), dtype=torch.bool)
    with torch.cuda.device(points.device):
        instances, members = instances.sort(stable=True)
        ends = torch.searchsorted(instances, torch.arange(-1, count, device=points.device), right=True)
        addresses = points.data_ptr(), len(points), starts.data_ptr(), lengths.data_ptr(), members.data_ptr()
        native.cuda()[0].rasterize_polygons(
            points.dtype is torch.float64,
            *addresses,
            ends.data_ptr(),
            count,
            height,
            width,
            out.data_ptr(),
            *native.launch_place(points),
        )
    return out


def _reference(points, starts, lengths, instances, count, height, width) -> Tensor:
    _check_values(points, starts, lengths, instances, count)
    return reference.rasterize_polygons(points, starts, lengths, instances, count, height, width)


dispatch.register("rasterize_polygons", cpp=_cpp, cuda=_cuda, reference=_reference)

_op = define(
    "rasterize_polygons(Tensor points, Tensor starts, Tensor lengths, Tensor instances, SymInt count, SymInt height,"
    " SymInt width, str? backend=None) -> Tensor",
    _rasterize,
    _fake,
)
