"""Polygons to pixels, by COCO's rule."""

import torch
from torch import Tensor


def rasterize_polygons(
    points: Tensor, starts: Tensor, lengths: Tensor, instances: Tensor, count: int, height: int, width: int
) -> Tensor:
    """Masks [count, height, width] (bool) of instances given as polygons, by COCO's rule.

    Polygon p has the lengths[p] points [x, y] from points[starts[p]] on and belongs to instance instances[p]; starts,
    lengths and instances are integers [P], points [total, 2] are in pixels from the image's upper left corner. An
    instance is the union of its polygons; one without polygons is empty. Of fewer than three points a polygon encloses
    nothing. Everything is computed in float64.

    The rule: the outline is drawn on a grid five times finer, vertices at trunc(5 v + 0.5), each edge one grid point a
    step along its longer axis. Where it passes from fine column 5c + 2 to 5c + 3, every pixel of column c from row
    ceil(v / 5 - 0.4) down changes sides, v being the higher of the two points' fine rows and the row clamped to
    0..height. A pixel is inside after an odd number of changes, so a polygon that crosses itself has holes.
    """
    masks = torch.zeros(count, height, width, dtype=torch.bool, device=points.device)
    for start, length, instance in zip(starts.tolist(), lengths.tolist(), instances.tolist(), strict=True):
        if length >= 3:
            masks[instance] |= _inside(points[start : start + length], height, width)
    return masks


def _inside(points: Tensor, height: int, width: int) -> Tensor:
    x, y = _outline((points.double() * 5 + 0.5).long())  # long() goes toward zero
    left, high = torch.minimum(x[1:], x[:-1]), torch.minimum(y[1:], y[:-1])
    column = left.div(5, rounding_mode="floor")
    passes = (x[1:] != x[:-1]) & (left % 5 == 2) & (column >= 0) & (column < width)
    row = ((high + 2).div(5, rounding_mode="floor")).clamp(0, height)
    changes = torch.zeros(height + 1, width, dtype=torch.int32, device=points.device)
    changes.index_put_((row[passes], column[passes]), changes.new_ones(()), accumulate=True)
    return changes[:height].cumsum(0) % 2 == 1


def _outline(vertices: Tensor) -> tuple[Tensor, Tensor]:
    """The grid points of the closed outline, in its order: x and y."""
    ends = vertices.roll(-1, 0)
    moves = (vertices != ends).any(1)
    a, b = vertices[moves], ends[moves]
    size = (b - a).abs()
    steep = size[:, 0] < size[:, 1]
    # The first column is the longer axis from here on.
    a, b, size = (torch.where(steep[:, None], pairs.flip(1), pairs) for pairs in (a, b, size))
    low = torch.where((a[:, :1] > b[:, :1]), b, a)
    rise = torch.where(a[:, 0] > b[:, 0], (a - b)[:, 1], (b - a)[:, 1])
    slope = rise.double() / size[:, 0]

    counts = size[:, 0] + 1
    edge = torch.repeat_interleave(torch.arange(len(counts), device=counts.device), counts)
    step = torch.arange(len(edge), device=counts.device) - (counts.cumsum(0) - counts)[edge]
    step = torch.where((a[:, 0] > b[:, 0])[edge], size[edge, 0] - step, step)  # from a to b, counted from the lower end
    along = low[edge, 0] + step
    across = (low[edge, 1] + slope[edge] * step + 0.5).long()
    return torch.where(steep[edge], across, along), torch.where(steep[edge], along, across)
