"""What each op means, in plain torch: the truth of the tests and the fallback where no kernel runs.

float64 stays float64; every other type is computed in float32. One file a family of ops; their docstrings state
shapes, masks, ties, NaN and empty inputs.
"""

from .anchors import (
    anchor_contrast,
    anchor_contrast_backward,
    anchor_contrast_terms,
    anchor_scores,
    anchor_scores_backward,
    maxsim,
    maxsim_backward,
    maxsim_terms,
)
from .attention import attend, attention_backward, attention_map, attention_with_map, region_attention
from .boxes import (
    BoxMatch,
    PaddedNms,
    batched_nms,
    box_area,
    box_iou,
    box_iou_backward,
    box_match,
    generalized_box_iou,
    generalized_box_iou_backward,
    nms,
    nms_padded,
)
from .masks import decode_rle, mask_iou, pack_masks, packed_words, unpack_masks
from .overlap import mask_overlap, mask_overlap_backward
from .polygons import rasterize_polygons
from .precision import upcast

__all__ = [
    "BoxMatch",
    "PaddedNms",
    "anchor_contrast",
    "anchor_contrast_backward",
    "anchor_contrast_terms",
    "anchor_scores",
    "anchor_scores_backward",
    "attend",
    "attention_backward",
    "attention_map",
    "attention_with_map",
    "batched_nms",
    "box_area",
    "box_iou",
    "box_iou_backward",
    "box_match",
    "decode_rle",
    "generalized_box_iou",
    "generalized_box_iou_backward",
    "mask_iou",
    "mask_overlap",
    "mask_overlap_backward",
    "maxsim",
    "maxsim_backward",
    "maxsim_terms",
    "nms",
    "nms_padded",
    "pack_masks",
    "packed_words",
    "rasterize_polygons",
    "region_attention",
    "unpack_masks",
    "upcast",
]
