"""Kernels for boxes and, with them, for grounding: fast on the CPU, fast on the GPU, and the same numbers everywhere.

    box_iou       intersection over union, pairwise or element by element, with gradient
    nms           non-maximum suppression, torchvision's indices
    batched_nms   the same within classes (or images)

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
from .native import build_info
from .nms import PaddedNms, batched_nms, nms, nms_padded

__all__ = ["PaddedNms", "backends", "batched_nms", "box_iou", "build_info", "nms", "nms_padded", "reference"]
