"""Kernels for boxes and, with them, for grounding: fast on the CPU, fast on the GPU, and the same numbers everywhere.

    box_iou       intersection over union, pairwise or element by element, with gradient
    nms           non-maximum suppression, torchvision's indices
    batched_nms   the same within classes (or images)
    pack_masks    masks of one bit a pixel, from dense ones or COCO's run lengths
    mask_iou      intersection over union of masks, pycocotools' numbers

    reference     what each op means, in plain torch; also the fallback
    backends()    which implementation runs, and why
    build_info()  what was compiled, by what, for what

Every op takes `backend=` ("cpp", "cuda", "reference"; None: the best that can run) and torch tensors or NumPy arrays.
The environment variable CPGR_KERNELS_BACKEND forces one for all ops or for named ones; CPGR_KERNELS_ISA forces the
instruction set of the C++ kernels. Ops live in `torch.ops.cpgr_kernels` too, with fake kernels, so they compile and
export. Importing this package needs torch alone.
"""

from . import reference
from .box_iou import box_iou
from .dispatch import backends
from .mask_iou import mask_iou
from .native import build_info
from .nms import batched_nms, nms
from .pack_masks import PackedMasks, pack_masks

__all__ = [
    "PackedMasks",
    "backends",
    "batched_nms",
    "box_iou",
    "build_info",
    "mask_iou",
    "nms",
    "pack_masks",
    "reference",
]
