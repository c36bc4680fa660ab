"""Kernels for grounding: fast on the CPU, fast on the GPU, and the same numbers everywhere.

Boxes
    box_iou                 intersection over union, pairwise or one to one, with gradient
    generalized_box_iou     the same less the empty part of the hull: a loss that sees boxes apart
    box_match               the best partner of every box, both ways, without the matrix
    nms, batched_nms        non-maximum suppression, torchvision's indices
    nms_padded              the same for a batch of images, with a result of fixed size
Masks
    pack_masks              one bit a pixel, from dense masks or COCO's run lengths
    mask_iou                intersection over union, pycocotools' numbers
    rasterize_polygons      masks of COCO polygons, pycocotools' pixels
    mask_overlap            soft and hard overlap of response maps with masks, and their peaks, with gradient
Anchors and queries
    anchor_scores           the best anchors of every image for every query
    anchor_contrast         RefCLIP's contrastive loss
    maxsim                  late interaction of token-level queries
Attention
    attention_with_map      attention, and the head mean of its weights in chosen rows, with gradient
    attention_map           those weights alone
    region_attention        what of a map lies in a box

    reference               what each op means, in plain torch; also the fallback
    backends()              which implementation runs, and why; `python -m cpgr_kernels` prints it
    build_info()            what was compiled, by what, for what
    integrations            for transformers' models and RefCLIP-family code

Every op takes `backend=` ("cpp", "cuda", "triton", "reference"; None: the best that can run). The ops of boxes and masks
take NumPy arrays too. The environment variable CPGR_KERNELS_BACKEND forces a backend for all ops or for named ones;
CPGR_KERNELS_ISA forces the instruction set of the C++ kernels. Ops live in `torch.ops.cpgr_kernels` too, with fake
kernels, so they compile and export. Importing this package needs torch alone.
"""

from . import reference
from .anchor_contrast import anchor_contrast
from .anchor_scores import anchor_scores
from .attention import attention_map, attention_with_map
from .box_iou import box_iou
from .box_match import BoxMatch, box_match
from .dispatch import backends
from .generalized_box_iou import generalized_box_iou
from .mask_iou import mask_iou
from .mask_overlap import MaskOverlap, mask_overlap
from .maxsim import maxsim
from .native import build_info
from .nms import PaddedNms, batched_nms, nms, nms_padded
from .pack_masks import PackedMasks, pack_masks
from .rasterize_polygons import rasterize_polygons
from .region_attention import region_attention

__all__ = [
    "BoxMatch",
    "MaskOverlap",
    "PackedMasks",
    "PaddedNms",
    "anchor_contrast",
    "anchor_scores",
    "attention_map",
    "attention_with_map",
    "backends",
    "batched_nms",
    "box_iou",
    "box_match",
    "build_info",
    "generalized_box_iou",
    "mask_iou",
    "mask_overlap",
    "maxsim",
    "nms",
    "nms_padded",
    "pack_masks",
    "rasterize_polygons",
    "reference",
    "region_attention",
]
