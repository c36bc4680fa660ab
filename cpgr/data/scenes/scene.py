"""A scene: what is where, independent of how it is painted."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from .silhouettes import silhouette


@dataclass(frozen=True)
class Placement:
    """Where a silhouette is drawn: x,y of its window's top left corner, longest side, turn (pixels of the scene)."""

    x: int
    y: int
    side: int
    turn: int = 0
    texture: int = 0


@dataclass(frozen=True)
class SceneObject:
    """One object. box: x1,y1,x2,y2 pixels, tight around the visible mask, right and bottom edge exclusive.
    area: visible pixels. keypoints: COCO's x,y,v five times (top, right, bottom, left, centre of the full
    silhouette; v 2 visible, 1 occluded). placement is None for an object read back from annotations."""

    category: str
    colour: str
    size: str
    pattern: str
    box: tuple
    area: int
    keypoints: tuple
    placement: Placement | None = None

    @property
    def centre(self):
        """Middle of the box, pixels."""
        return (self.box[0] + self.box[2]) / 2, (self.box[1] + self.box[3]) / 2

    @property
    def extent(self):
        """Longest side of the full silhouette in pixels: an object half covered does not become smaller."""
        points = self.keypoints
        return max(points[3] - points[9], points[7] - points[1]) + 1


@dataclass(frozen=True)
class Scene:
    """Objects from back to front on an image of width x height pixels."""

    objects: tuple
    width: int
    height: int

    @cached_property
    def having(self):
        """{attribute word: bit set of the objects that have it}; no word belongs to two attributes."""
        bits = {}
        for index, item in enumerate(self.objects):
            for word in (item.category, item.colour, item.pattern, item.size):
                bits[word] = bits.get(word, 0) | 1 << index
        return bits

    @cached_property
    def memo(self):
        """{noun: its members}, filled as nouns are asked for."""
        return {}

    @cached_property
    def centres(self):
        """Middles of the boxes, pixels."""
        return tuple(item.centre for item in self.objects)


def rim(pixels: int) -> int:
    """Width of an object's outline in pixels."""
    return max(1, round(pixels / 128))


def paint(labels: np.ndarray, index: int, category: str, placement: Placement) -> None:
    """Writes `index` into labels [H,W] where the silhouette covers it."""
    mask = silhouette(category, placement.turn, placement.side, rim(labels.shape[1])).mask
    height, width = mask.shape
    labels[placement.y:placement.y + height, placement.x:placement.x + width][mask] = index


def describe(labels: np.ndarray, specifications) -> tuple:
    """SceneObjects from labels [H,W] (-1: ground) and (category, colour, size, pattern, placement) back to front."""
    objects = []
    for index, (category, colour, size, pattern, place) in enumerate(specifications):
        shape = silhouette(category, place.turn, place.side, rim(labels.shape[1]))
        height, width = shape.mask.shape
        seen = labels[place.y:place.y + height, place.x:place.x + width] == index
        rows, columns = seen.any(1), seen.any(0)
        box = (place.x + int(columns.argmax()), place.y + int(rows.argmax()),
               place.x + width - int(columns[::-1].argmax()), place.y + height - int(rows[::-1].argmax()))
        keypoints = []
        for x, y in shape.points:
            x, y = x + place.x, y + place.y
            # A ring's centre is a hole, so a point is hidden only by an object in front.
            keypoints += [x, y, 1 if labels[y, x] > index else 2]
        objects.append(SceneObject(category, colour, size, pattern, box, int(np.count_nonzero(seen)), tuple(keypoints),
                                   place))
    return tuple(objects)


def resized(scene: Scene, pixels: int) -> Scene:
    """The same scene at another image size; boxes and keypoints are measured anew."""
    ratio = pixels / scene.width
    labels = np.full((pixels, pixels), -1, np.int8)
    specifications = []
    for index, item in enumerate(scene.objects):
        if item.placement is None:
            raise ValueError("a scene read from annotations holds no silhouettes to draw; sample a scene instead")
        old = item.placement
        side = max(6, round(old.side * ratio))
        height, width = silhouette(item.category, old.turn, side, rim(pixels)).mask.shape
        place = Placement(min(round(old.x * ratio), pixels - width), min(round(old.y * ratio), pixels - height), side,
                          old.turn, old.texture)
        paint(labels, index, item.category, place)
        specifications.append((item.category, item.colour, item.size, item.pattern, place))
    return Scene(describe(labels, specifications), pixels, pixels)
