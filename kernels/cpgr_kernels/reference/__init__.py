"""What each op means, in plain torch: the truth of the tests and the fallback where no kernel runs.

float64 stays float64; every other type is computed in float32. One file a family of ops; their docstrings state
shapes, masks, ties, NaN and empty inputs.
"""

from .anchors import anchor_contrast, anchor_scores, maxsim
from .attention import attention_map, attention_with_map, region_attention
from .boxes import PaddedNms, batched_nms, box_area, box_iou, box_iou_backward, nms, nms_padded
from .precision import upcast

__all__ = [
    "PaddedNms",
    "anchor_contrast",
    "anchor_scores",
    "attention_map",
    "attention_with_map",
    "batched_nms",
    "box_area",
    "box_iou",
    "box_iou_backward",
    "maxsim",
    "nms",
    "nms_padded",
    "region_attention",
    "upcast",
]
