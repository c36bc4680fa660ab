"""Kernels for boxes and, with them, for grounding: fast on the CPU, fast on the GPU, and the same numbers everywhere.

    box_iou       intersection over union, pairwise or element by element, with gradient
    nms           non-maximum suppression, torchvision's indices
    batched_nms   the same within classes (or images)

    attention_with_map, attention_map   attention whose weights can be read: head mean of chosen rows, with gradient
    region_attention                    what of a map lies in a box

    reference     what each op means, in plain torch; also the fallback
    backends()    which implementation runs, and why
    build_info()  what was compiled, by what, for what

Every op takes `backend=` ("cpp", "cuda", "reference"; None: the best that can run) and torch tensors or NumPy arrays.
The environment variable CPGR_KERNELS_BACKEND forces one for all ops or for named ones; CPGR_KERNELS_ISA forces the
instruction set of the C++ kernels. Ops live in `torch.ops.cpgr_kernels` too, with fake kernels, so they compile and
export. Importing this package needs torch alone.
"""

from . import reference
from .attention import attention_map, attention_with_map
from .box_iou import box_iou
from .dispatch import backends
from .native import build_info
from .nms import batched_nms, nms
from .region_attention import region_attention

__all__ = ["attention_map", "attention_with_map", "backends", "batched_nms", "box_iou", "build_info", "nms", "reference", "region_attention"]
