"""mask_iou: from dense masks, packed once, and from COCO's run lengths; instances and masks all over the image."""

from collections.abc import Iterator
from functools import partial

import numpy as np
import torch

from cpgr_kernels import PackedMasks, mask_iou, pack_masks

from .harness import Case, agree_exactly
from .masks import blobs, ragged
from .peers import peer

HEIGHT, WIDTH = 480, 640
SIZES = (1, 10, 100, 256)
KINDS = {"blobs": blobs, "small blobs": partial(blobs, small=True), "ragged": ragged}
RLE_LIBRARIES = {
    "pycocotools": "pycocotools.mask",
    "faster-coco-eval": "faster_coco_eval.core.mask",
    "hotcoco": "hotcoco.mask",
}


def cases(device: str = "cpu") -> Iterator[Case]:
    """By kind of mask and number, each from dense masks and packed once; run lengths at 100 x 100."""
    for kind, make in KINDS.items():
        for count in SIZES:
            drawn = [make(count, HEIGHT, WIDTH, seed) for seed in (1, 2)]
            dense = [masks.to(device) for masks in drawn]
            name = f"{count} x {count} {kind}"
            pixels = 2 * count * HEIGHT * WIDTH
            aimed = count == 100
            arrays = [np.asfortranarray(masks.numpy().transpose(1, 2, 0).view(np.uint8)) for masks in drawn]
            yield Case(
                "mask_iou",
                f"{name}, from dense",
                {
                    "cpgr_kernels": partial(mask_iou, *dense),
                    "pycocotools encode + iou": peer("pycocotools.mask", partial(_encode_and_iou, arrays)),
                    "torch float32 matmul": partial(_matmul, *dense),
                },
                agree_exactly,
                floor_bytes=pixels + 8 * count * count,
                goals={"pycocotools encode + iou": 15} if aimed else {},
            )
            yield _packed_case(name, [pack_masks(masks) for masks in dense], arrays, pixels // 8, aimed)
            if aimed and device == "cpu":
                yield _rle_case(name, arrays)


def _packed_case(name: str, packed: list[PackedMasks], arrays: list[np.ndarray], floor: int, aimed: bool) -> Case:
    return Case(
        "mask_iou",
        f"{name}, packed once",
        {"cpgr_kernels": partial(mask_iou, *packed), **_rle_libraries(arrays)},
        agree_exactly,
        floor_bytes=floor + 8 * len(packed[0]) ** 2,
        goals=dict.fromkeys(RLE_LIBRARIES, 12) if aimed else {},
    )


def _rle_case(name: str, arrays: list[np.ndarray]) -> Case:
    def ours(mask):
        return partial(mask_iou, *(mask.encode(array) for array in arrays))

    runs = {"cpgr_kernels": peer("pycocotools.mask", ours), **_rle_libraries(arrays)}
    return Case("mask_iou", f"{name}, from run lengths", runs, agree_exactly)


def _rle_libraries(arrays: list[np.ndarray]) -> dict:
    """Each library with the run lengths as it makes them itself."""

    def runs(mask):
        first, second = (mask.encode(array) for array in arrays)
        nobody = [0] * len(second)
        return lambda: torch.from_numpy(np.asarray(mask.iou(first, second, nobody)))

    return {name: peer(module, runs) for name, module in RLE_LIBRARIES.items()}


def _encode_and_iou(arrays: list[np.ndarray], mask):
    def run():
        first, second = (mask.encode(array) for array in arrays)
        return torch.from_numpy(mask.iou(first, second, [0] * len(second)))

    return run


def _matmul(masks1: torch.Tensor, masks2: torch.Tensor) -> torch.Tensor:
    first, second = masks1.flatten(1).float(), masks2.flatten(1).float()  # counts below 2^24 are exact
    inter = (first @ second.T).double()
    union = first.sum(1).double()[:, None] + second.sum(1).double() - inter
    return torch.where(inter == 0, 0, inter / union)
