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
from .attention import attention_map, attention_with_map, region_attention
from .boxes import batched_nms, box_area, box_iou, box_iou_backward, nms
from .precision import upcast

__all__ = [
    "anchor_contrast",
    "anchor_contrast_backward",
    "anchor_contrast_terms",
    "anchor_scores",
    "anchor_scores_backward",
    "attention_map",
    "attention_with_map",
    "batched_nms",
    "box_area",
    "box_iou",
    "box_iou_backward",
    "maxsim",
    "maxsim_backward",
    "maxsim_terms",
    "nms",
    "region_attention",
    "upcast",
]
