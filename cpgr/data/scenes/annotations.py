"""COCO records of scenes, and scenes back from COCO records."""

from collections.abc import Iterable, Mapping

import numpy as np
from pycocotools import mask as coco_mask

from ...errors import DataError
from .scene import Scene, SceneObject
from .vocabulary import CATEGORIES, KEYPOINTS, category_id, supercategory


def categories() -> list[dict]:
    """COCO categories with their keypoint names; the supercategory is `thing` or `shape`."""
    return [{"id": category_id(name), "name": name, "supercategory": supercategory(name),
             "keypoints": list(KEYPOINTS), "skeleton": []} for name in CATEGORIES]


def annotations(scene: Scene, masks: np.ndarray, image_id: int, first_id: int) -> list[dict]:
    """COCO annotations of the objects from back to front. masks: visible masks [n,H,W] bool.

    bbox is x,y,width,height; segmentation the compressed RLE of the visible mask; the field `attributes` is ours.
    """
    encoded = coco_mask.encode(np.asfortranarray(masks.transpose(1, 2, 0), np.uint8))
    records = []
    for index, (item, rle) in enumerate(zip(scene.objects, encoded)):
        x1, y1, x2, y2 = item.box
        records.append({
            "id": first_id + index, "image_id": image_id, "category_id": category_id(item.category),
            "bbox": [x1, y1, x2 - x1, y2 - y1], "area": item.area, "iscrowd": 0,
            "segmentation": {"size": [int(side) for side in rle["size"]], "counts": rle["counts"].decode("ascii")},
            "keypoints": list(item.keypoints), "num_keypoints": len(KEYPOINTS),
            "attributes": {"colour": item.colour, "size": item.size, "pattern": item.pattern},
        })
    return records


def scene_from_annotations(image, records: Iterable[Mapping]) -> Scene:
    """The scene that stored annotations describe, for `judge`: objects in the order of `records`, nothing to draw.

    image: anything with a width and a height, as keys or as attributes. Boxes are taken as stored, so a text is judged
    exactly as on the scene that was written. A record without keypoints is as large as its box.
    """
    width, height = ((image["width"], image["height"]) if isinstance(image, Mapping) else (image.width, image.height))
    objects = []
    for record in records:
        x, y, across, down = record["bbox"]
        points = record.get("keypoints")
        if not points:
            points = (x, y, 2, x + across - 1, y, 2, x, y + down - 1, 2, x, y, 2, x + across // 2, y + down // 2, 2)
        try:
            words = record["attributes"]
            described = words["colour"], words["size"], words["pattern"]
        except KeyError as missing:
            raise DataError("instances.json", f"annotation {record.get('id')}", f"no {missing} of a scene's object",
                            "only files of the built-in world hold what its expressions are judged by") from None
        objects.append(SceneObject(CATEGORIES[record["category_id"] - 1], *described, (x, y, x + across, y + down),
                                   record["area"], tuple(points)))
    return Scene(tuple(objects), width, height)
