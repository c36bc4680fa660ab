"""rasterize_polygons: a batch of predicted outlines, and many small objects on one image, against COCO libraries."""

import math
from collections.abc import Callable, Iterator
from functools import partial
from types import ModuleType
from typing import Any

import numpy as np
import torch

from cpgr_kernels import rasterize_polygons

from .harness import Case
from .peers import peer

PEERS = {"pycocotools": "pycocotools.mask", "faster-coco-eval": "faster_coco_eval", "hotcoco": "hotcoco.mask"}
Instances = list[list[list[float]]]


def cases(device: str = "cpu") -> Iterator[Case]:
    """By number, corners and size of the polygons; once with a reader of all pixels behind it."""
    large = _outlines(128, corners=(18, 18), radius=(60, 300), side=640)
    run = {"cpgr_kernels": partial(_ours, large, 640, 640, device)}
    run["reference"] = partial(_ours, large, 640, 640, device, backend="reference")
    yield _case("128 of 18 corners, 640 x 640", run | _peers(large, 640, 640), large, 640, 640)

    small = _outlines(1000, corners=(6, 40), radius=(5, 100), side=480)
    run = {"cpgr_kernels": partial(_ours, small, 480, 640, device)}
    yield _case("1000 small, 480 x 640", run | _peers(small, 480, 640), small, 480, 640)
    if device == "cpu":
        # Pages of a result that nobody has written are cleared when they are first read.
        run = {name: _counted(call) for name, call in (run | _peers(small, 480, 640)).items()}
        yield _case("1000 small, 480 x 640, and every pixel counted", run, small, 480, 640)


def _case(name: str, run: dict[str, Any], instances: Instances, height: int, width: int) -> Case:
    numbers = sum(len(polygon) for polygons in instances for polygon in polygons)
    return Case(
        "rasterize_polygons",
        name,
        run,
        _agree,
        floor_bytes=len(instances) * height * width + 8 * numbers,
        goals={"pycocotools": 10.0},
    )


def _outlines(count: int, corners: tuple[int, int], radius: tuple[float, float], side: int) -> Instances:
    """Polygons round a centre, as outlines of objects are; radii spread by their logarithm."""
    random = np.random.default_rng(count)
    instances = []
    for _ in range(count):
        number = int(random.integers(corners[0], corners[1] + 1))
        angle = np.sort(random.uniform(0, 2 * math.pi, number))
        reach = math.exp(random.uniform(*np.log(radius))) * random.uniform(0.6, 1, number)
        points = (
            random.uniform(0.1 * side, 0.9 * side, 2) + np.stack([np.cos(angle), np.sin(angle)], 1) * reach[:, None]
        )
        instances.append([points.flatten().tolist()])
    return instances


def _ours(instances: Instances, height: int, width: int, device: str, backend: str | None = None) -> torch.Tensor:
    return rasterize_polygons(instances, height, width, device=device, backend=backend)


def _peers(instances: Instances, height: int, width: int) -> dict[str, Any]:
    def make(module: ModuleType) -> Callable[[], np.ndarray]:
        module = getattr(module, "mask", module)

        def run() -> np.ndarray:  # [height, width, N], column by column
            return module.decode([module.merge(module.frPyObjects(each, height, width)) for each in instances])

        return run

    return {name: peer(module, make) for name, module in PEERS.items()}


def _counted(call: Any) -> Any:
    if not callable(call):
        return call

    def run() -> int:
        masks = call()
        pixels = masks.numpy() if isinstance(masks, torch.Tensor) else np.ascontiguousarray(masks.T).view(bool)
        return int(np.count_nonzero(pixels))

    return run


def _agree(ours: Any, theirs: Any) -> None:
    if isinstance(ours, torch.Tensor):
        ours = ours.cpu().numpy()
        theirs = theirs.cpu().numpy() if isinstance(theirs, torch.Tensor) else theirs.transpose(2, 0, 1)
    assert np.array_equal(ours, theirs)
